"""Tensors of the Open Inference Protocol, whether HTTP or gRPC carries them.

One input, TEXT. Outputs of unequal length have no type of their own in the protocol: their rows
stand end to end, and the offsets, one more than there are texts, say where each starts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.native import cut_of
from m3rt.server.service import Service
from m3rt.server.work import Ask, Cut, Lane, Sender
from m3rt.types import NO_HEADS, Embeddings, Heads, Sparse, offsets

INPUT = "TEXT"
VERSION = "1"  # of the model; there is one
PLATFORM = "m3rt"
EXTENSIONS = ("binary_tensor_data", "schedule_policy", "parameters")

DTYPES: Mapping[str, str] = {"FP32": "<f4", "FP16": "<f2", "INT32": "<i4"}
MOST_IN_JSON = 12.0  # bytes of a number


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor of a request."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: memoryview | Sequence[Any]  # as bytes, each text after its length; or its elements


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor of the model."""

    name: str
    datatype: str
    shape: tuple[int, ...]  # -1: any
    head: Heads = NO_HEADS  # that it is made from; none: from any


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, whoever carries it."""

    model: str
    inputs: Sequence[Given]
    outputs: Sequence[str]  # none: all
    parameters: Mapping[str, Any]
    in_json: bool = False  # whether any output is to be written as JSON


def known(model: M3) -> dict[str, Known]:
    """Return the outputs of a model by name, in the order in which they are given."""
    manifest = model.manifest
    found = (
        Known("dense", "FP32", (-1, manifest.hidden), Heads.DENSE),
        Known("sparse_indices", "INT32", (-1,), Heads.SPARSE),
        Known("sparse_values", "FP32", (-1,), Heads.SPARSE),
        Known("sparse_offsets", "INT32", (-1,), Heads.SPARSE),
        Known("colbert", "FP16", (-1, manifest.colbert_dim or -1), Heads.COLBERT),
        Known("colbert_offsets", "INT32", (-1,), Heads.COLBERT),
        Known("n_tokens", "INT32", (-1,)),
    )
    return {one.name: one for one in found if one.head in model.heads}


def check_model(service: Service, name: str, version: str = "") -> None:
    """Refuse another model than the one served, which also has the last part of its name.

    Raises:
        RefusedError: in Triton's words.
    """
    if name not in (service.name, service.name.rpartition("/")[2]):
        version = f" version {clip(version)}" if version else ""
        message = f"Request for unknown model: '{clip(name)}'{version} is not found"
        raise RefusedError(Kind.NOT_FOUND, message, param="model_name")
    if version not in ("", VERSION):
        message = f"Request for unknown model: '{name}' version {clip(version)} is not found"
        raise RefusedError(Kind.NOT_FOUND, message, param="model_version")


def clip(name: str, most: int = 80) -> str:
    """Shorten a name that a client chose, for a message."""
    return name if len(name) <= most else f"{name[:most]}..."


def understood(service: Service, asked: Asked, sender: Sender) -> tuple[Ask, Sender, list[str]]:
    """Return what to embed, for whom, and the names of the outputs to give.

    Takes its time for large requests, so these are for another thread.

    Raises:
        RefusedError: says what is wrong with the request.
    """
    outputs = wanted(service.model, asked)
    heads = heads_of(service.model, outputs)
    max_length, cut = kept(asked.parameters, service.settings.auto_truncate)
    sender = prompted(asked.parameters, sender)
    texts = texts_of(asked, service.settings.max_client_batch_size)
    size = MOST_IN_JSON if asked.in_json else 4.0
    return Ask(texts, heads, max_length, cut, size), sender, outputs


def wanted(model: M3, asked: Asked) -> list[str]:
    """Return the names of the outputs to give, none twice.

    Raises:
        RefusedError: the model has no such output.
    """
    there = known(model)
    for name in asked.outputs:
        if name not in there:
            raise RefusedError(
                Kind.INVALID,
                f"unexpected inference output '{clip(name)}' for model '{asked.model}', which has "
                f"{', '.join(there)}",
                param="outputs",
            )
    return list(dict.fromkeys(asked.outputs or there))


def heads_of(model: M3, outputs: Iterable[str]) -> Heads:
    """Return the heads that these outputs are made from, one at least."""
    there = known(model)
    heads = NO_HEADS
    for name in outputs:
        heads |= there[name].head
    return heads or next(iter(model.heads))


def kept(parameters: Mapping[str, Any], usual: bool) -> tuple[int | None, Cut]:
    """Read what to do with long texts: ``max_length`` and ``truncate``.

    Raises:
        RefusedError: they are something else than a number, and a side or whether at all.
    """
    max_length = parameters.get("max_length")
    if max_length is not None:
        max_length = number(max_length, "max_length")
    truncate = parameters.get("truncate")
    if truncate is None or isinstance(truncate, bool) or truncate in ("right", "left", "none"):
        return max_length, cut_of(truncate, usual)
    message = "parameter 'truncate' is a boolean, or one of 'right', 'left' and 'none'"
    raise RefusedError(Kind.INVALID, message, param="truncate")


def prompted(parameters: Mapping[str, Any], sender: Sender) -> Sender:
    """Read how soon the answer is wanted.

    ``priority``: 1 is the highest, more than 1 is bulk, 0 is the server's choice. ``timeout``, in
    microseconds, 0 for none; the earlier deadline wins.

    Raises:
        RefusedError: they are no such numbers.
    """
    if priority := number(parameters.get("priority", 0), "priority"):
        sender = replace(sender, lane=Lane.INTERACTIVE if priority == 1 else Lane.BULK)
    if timeout := number(parameters.get("timeout", 0), "timeout"):
        deadline = time.monotonic() + min(timeout, 2**62) * 1e-6
        sender = replace(sender, deadline=min(deadline, sender.deadline or math.inf))
    return sender


def number(value: object, name: str) -> int:
    """Read a parameter that is a number, and not negative.

    Raises:
        RefusedError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        message = f"parameter '{name}' is a whole number, and not negative"
        raise RefusedError(Kind.INVALID, message, param=name)
    return value


def texts_of(asked: Asked, most: int) -> list[str]:
    """Return the texts of the one input.

    Raises:
        RefusedError: there are other inputs, of another type or shape, too many, or no texts.
    """
    names = [given.name for given in asked.inputs]
    for name in names:
        if name != INPUT:
            message = f"unexpected inference input '{clip(name)}' for model '{asked.model}'"
            raise RefusedError(Kind.INVALID, f"{message}, which has '{INPUT}'", param="inputs")
    if len(names) != 1:
        message = f"expected 1 inputs but got {len(names)} inputs for model '{asked.model}'"
        raise RefusedError(Kind.INVALID, f"{message}: expected '{INPUT}', once", param="inputs")
    given = asked.inputs[0]
    if given.datatype != "BYTES":
        raise RefusedError(
            Kind.INVALID,
            f"inference input '{INPUT}' data-type is '{clip(given.datatype)}', but model "
            f"'{asked.model}' expects 'BYTES'",
            param="inputs",
        )
    shape = list(given.shape)
    if not 1 <= len(shape) <= 2 or shape[1:] not in ([], [1]) or shape[0] < 0:
        raise RefusedError(
            Kind.INVALID,
            f"unexpected shape for input '{INPUT}' for model '{asked.model}'. Expected [-1] or "
            f"[-1,1], got {clip(str(shape[:8]))}",
            param="inputs",
        )
    count = shape[0]
    if not count:
        raise RefusedError(Kind.EMPTY, f"input '{INPUT}' has no elements", param="inputs")
    if count > most:
        message = f"input '{INPUT}' has {clip(str(count))} elements, at most {most} are taken"
        raise RefusedError(Kind.TOO_MANY, message, param="inputs")
    if isinstance(given.content, memoryview):
        return strings(given.content, count)
    return elements(given.content, count)


def strings(content: memoryview, count: int) -> list[str]:
    """Read texts in UTF-8, each after its length in four bytes.

    Raises:
        RefusedError: in Triton's words: one is cut short, or there are more or fewer.
    """
    texts: list[str] = []
    place = 0
    while place < len(content) and len(texts) < count:
        if place + 4 > len(content):
            raise _unlike(
                f"incomplete string length indicator for inference input '{INPUT}', expecting 4 "
                f"bytes but only {len(content) - place} bytes available"
            )
        length = int.from_bytes(content[place : place + 4], "little")
        place += 4
        if place + length > len(content):
            raise _unlike(
                f"incomplete string data for inference input '{INPUT}', expecting string of "
                f"length {length} but only {len(content) - place} bytes available"
            )
        texts.append(_text(bytes(content[place : place + length]), len(texts)))
        place += length
    if place < len(content):
        message = f"unexpected number of string elements for inference input '{INPUT}'"
        raise _unlike(f"{message}: more than {count}, which its shape says")
    if len(texts) != count:
        message = f"expected {count} string elements for inference input '{INPUT}'"
        raise _unlike(f"{message}, got {len(texts)}")
    return texts


def elements(content: Sequence[Any], count: int) -> list[str]:
    """Read texts that are elements, in a row or each in a list of its own.

    Raises:
        RefusedError: one is no text, or there are more or fewer.
    """
    if len(content) != count:
        message = f"expected {count} string elements for inference input '{INPUT}'"
        raise _unlike(f"{message}, got {len(content)}")
    texts = []
    for row, found in enumerate(content):
        one = found[0] if isinstance(found, list) and len(found) == 1 else found
        if not isinstance(one, str | bytes):
            raise _unlike(f"element {row} of inference input '{INPUT}' is not a string")
        texts.append(one if isinstance(one, str) else _text(one, row))
    return texts


def _text(content: bytes, row: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        message = f"element {row} of inference input '{INPUT}' is not UTF-8"
        raise RefusedError(Kind.TOKENIZER, message, param="inputs") from None


def _unlike(message: str) -> RefusedError:
    return RefusedError(Kind.INVALID, message, param="inputs")


def array(name: str, found: Embeddings, half: bool) -> NDArray[Any]:
    """Return an output as the protocol has it: little-endian, without gaps.

    Args:
        name: one of known.
        found: with the head that it is made from.
        half: whether ColBERT vectors are float16, which they are not in JSON.
    """
    made = np.ascontiguousarray(MAKERS[name](found))
    datatype = "FP16" if half and name == "colbert" else ("INT32", "FP32")[made.dtype.kind == "f"]
    return made.astype(DTYPES[datatype], copy=False)


def datatype(made: NDArray[Any]) -> str:
    """Return what the protocol calls the type of an array that array made."""
    return next(name for name, dtype in DTYPES.items() if made.dtype == np.dtype(dtype))


def _dense(found: Embeddings) -> NDArray[Any]:
    assert found.dense is not None
    return found.dense


def _sparse(part: Callable[[Sparse], NDArray[Any]]) -> Callable[[Embeddings], NDArray[Any]]:
    def make(found: Embeddings) -> NDArray[Any]:
        assert found.sparse is not None
        return part(found.sparse)

    return make


def _colbert(found: Embeddings) -> NDArray[Any]:
    assert found.colbert is not None
    return np.concatenate(found.colbert)


def _colbert_offsets(found: Embeddings) -> NDArray[Any]:
    assert found.colbert is not None
    return offsets(list(map(len, found.colbert)))


MAKERS: Mapping[str, Callable[[Embeddings], NDArray[Any]]] = {
    "dense": _dense,
    "sparse_indices": _sparse(lambda sparse: sparse.ids.values),
    "sparse_values": _sparse(lambda sparse: sparse.weights.values),
    "sparse_offsets": _sparse(lambda sparse: sparse.ids.starts),
    "colbert": _colbert,
    "colbert_offsets": _colbert_offsets,
    "n_tokens": lambda found: found.n_tokens,
}
