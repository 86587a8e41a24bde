"""The Open Inference Protocol's requests and answers over HTTP: their forms, and reading them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import tensors
from m3rt.server.http.tensors import Asked, Given

HEADER = "inference-header-content-length"  # where the JSON of a body ends


class Input(msgspec.Struct):
    """A tensor of a request; without ``data``, ``binary_data_size`` is among its parameters."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Output(msgspec.Struct):
    """A tensor that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """What is sent to infer, before binary tensors."""

    inputs: list[Input]
    outputs: list[Output] = []
    id: str = ""
    parameters: dict[str, Any] = {}


class ServerReply(msgspec.Struct):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Metadata(msgspec.Struct):
    """A tensor of the model; -1 stands for any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelReply(msgspec.Struct):
    """The model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Metadata]
    outputs: list[Metadata]


class LiveReply(msgspec.Struct):
    """Whether the server lives."""

    live: bool


class ReadyReply(msgspec.Struct):
    """Whether requests are answered."""

    ready: bool


class ModelReadyReply(msgspec.Struct):
    """Whether the model's requests are answered."""

    name: str
    ready: bool


class Tensor(msgspec.Struct):
    """A tensor of an answer; without ``data``, ``binary_data_size`` is among its parameters."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[float] | None = None


class InferReply(msgspec.Struct):
    """Tensors."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str = ""


def header(headers: Mapping[str, str], size: int) -> int:
    """Return where the JSON of a body ends.

    Raises:
        RefusedError: what says so is no number, or the body is shorter.
    """
    text = headers.get(HEADER)
    if text is None:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= size):
        message = f"Inference-Header-Content-Length is no number of at most {size}, the body's size"
        raise RefusedError(Kind.MALFORMED, message, param="Inference-Header-Content-Length")
    return int(text)


def inflated(raw: bytes, encoding: str, most: int) -> bytes:
    """Decompress a body, and no more of it than is taken of one that is not compressed.

    Raises:
        RefusedError: it is damaged, too large, or compressed in another way.
    """
    if encoding == "identity":
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        message = "Content-Encoding is none of gzip, deflate and identity"
        raise RefusedError(Kind.MALFORMED, message, param="Content-Encoding")
    inflater = zlib.decompressobj(zlib.MAX_WBITS if encoding == "deflate" else zlib.MAX_WBITS | 16)
    try:
        body = inflater.decompress(raw, most + 1)
    except zlib.error as error:
        message = f"the body is not {encoding}: {error}"
        raise RefusedError(Kind.MALFORMED, message, param="Content-Encoding") from error
    if len(body) > most:
        message = f"the body inflates to over {most} bytes, which are the most taken"
        raise RefusedError(Kind.TOO_LARGE, message)
    if not inflater.eof or inflater.unused_data:
        message = f"the body's {encoding} data is cut short, or more follows it"
        raise RefusedError(Kind.MALFORMED, message, param="Content-Encoding")
    return body


@dataclass(frozen=True, slots=True)
class Found:
    """A request to infer, read."""

    asked: Asked
    id: str
    binary: Mapping[str, bool]  # whether an output is to be binary, by name
    usual: bool  # whether those that do not say are

    def is_binary(self, name: str) -> bool:
        """Whether an output is to be binary."""
        return self.binary.get(name, self.usual)


def asked_of(body: InferRequest, rest: memoryview, name: str) -> Found:
    """Put the binary tensors of a body to their inputs.

    Args:
        body: its JSON.
        rest: what follows it.
        name: of the model, as the client called it.

    Raises:
        RefusedError: sizes that do not fit, or what is not supported.
    """
    inputs = []
    for one in body.inputs:
        _no_sharing(one.parameters, one.name)
        size = one.parameters.get("binary_data_size")
        content: memoryview | list[Any]
        if size is None:
            if one.data is None:
                message = f"input '{tensors.clip(one.name)}' has neither data nor binary_data_size"
                raise RefusedError(Kind.INVALID, message, param="inputs")
            content = one.data
        else:
            size = tensors.number(size, "binary_data_size")
            if one.data is not None:
                message = f"input '{tensors.clip(one.name)}' has both data and binary_data_size"
                raise RefusedError(Kind.INVALID, message, param="inputs")
            if size > len(rest):
                message = (
                    f"unexpected end of binary data for input '{tensors.clip(one.name)}': "
                    f"{len(rest)} bytes are left, binary_data_size says more"
                )
                raise RefusedError(Kind.INVALID, message, param="inputs")
            content, rest = rest[:size], rest[size:]
        inputs.append(Given(one.name, one.datatype, one.shape, content))
    if rest:
        message = f"unexpected additional input data: {len(rest)} bytes"
        raise RefusedError(Kind.INVALID, message, param="inputs")
    usual = _flag(body.parameters.get("binary_data_output", False), "binary_data_output")
    binary: dict[str, bool] = {}
    for output in body.outputs:
        _no_sharing(output.parameters, output.name)
        if output.parameters.get("classification"):
            message = "classification of outputs is not supported"
            raise RefusedError(Kind.INVALID, message, param="outputs")
        asked_for = output.parameters.get("binary_data", usual)
        binary.setdefault(output.name, _flag(asked_for, "binary_data"))
    in_json = not all(binary.values()) if binary else not usual
    asked = Asked(name, inputs, list(binary), body.parameters, in_json)
    return Found(asked, body.id, binary, usual)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise RefusedError(Kind.INVALID, f"parameter '{name}' is a boolean", param=name)
    return value


def _no_sharing(parameters: Mapping[str, Any], name: str) -> None:
    if "shared_memory_region" in parameters:
        message = f"tensor '{tensors.clip(name)}': shared memory is not supported"
        raise RefusedError(Kind.INVALID, message, param="parameters")
