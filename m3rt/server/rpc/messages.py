"""The messages of gRPC.

They stand in a pool of their own: a client in the same process, as Triton's, has messages of the
same names in the pool that all share.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.exchange import SMALL
from m3rt.server.service import Service
from m3rt.types import Floats

DECODE_ERRORS = (message.DecodeError, RecursionError)


def _filled() -> Any:
    pool = descriptor_pool.DescriptorPool()
    raw = files("m3rt.server.rpc").joinpath("protos.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.Add(file)
    return pool


POOL = _filled()


@cache
def kind(name: str) -> Any:
    """Return the class of a message, by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def methods(service: str) -> list[Any]:
    """Return the descriptors of a service's methods, by its full name."""
    return list(POOL.FindServiceByName(service).methods)


async def read(service: Service, form: Any, raw: bytes) -> Any:
    """Read a message; a large one in another thread.

    Raises:
        RefusedError: it is none of this form.
    """
    try:
        if len(raw) <= SMALL:
            return form.FromString(raw)
        return await service.off(form.FromString, raw)
    except DECODE_ERRORS:
        name = form.DESCRIPTOR.full_name
        raise RefusedError(Kind.MALFORMED, f"the message is no {name}") from None


def floats(field: int, values: Floats) -> bytes:
    """Write a repeated float of a message, without a Python object for each number.

    Messages may be written in parts, end to end.

    Args:
        field: its number, less than 16.
        values: (n,) numbers.
    """
    data = np.ascontiguousarray(values, "<f4").tobytes()
    return _tag(field, len(data)) + data


def rows(field: int, values: Floats) -> bytes:
    """Write repeated messages, each of which has nothing but a repeated float of number 1.

    Args:
        field: their number, less than 16.
        values: (n, d) numbers.
    """
    data = np.ascontiguousarray(values, "<f4").view("u1").reshape(len(values), -1)
    inner = _tag(1, data.shape[1])
    outer = _tag(field, len(inner) + data.shape[1]) + inner
    before = np.broadcast_to(np.frombuffer(outer, "u1"), (len(data), len(outer)))
    return np.concatenate([before, data], axis=1).tobytes()


def _tag(field: int, size: int) -> bytes:
    """Return what stands before so many bytes: the field's number and type, and the size."""
    found = bytearray([field << 3 | 2])
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    found.append(size)
    return bytes(found)
