"""What an answer should hold, and whether it does.

Batching changes the order of additions on some engines, so vectors are compared by their cosine
(and length: see nearest). An answer that is equal byte for byte is not read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

COSINE = 1 - 1e-5
DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"}
TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the texts of a request gave when it was sent alone."""

    digest: bytes  # of the vectors as they were written
    arrays: Sequence[Mapping[str, Array]]  # of each text, by name
    tokens: int  # of all texts


def expect(body: bytes, form: str) -> Expected:
    """Read an answer that others are compared with.

    Raises:
        ValueError: it is not of that form.
    """
    return Expected(digest(body, form), read(body, form), tokens(body, form))


def fault(body: bytes, form: str, expected: Expected, cosine: float = COSINE) -> str | None:
    """Say how an answer differs from what was expected; None: it does not.

    Args:
        body: of the answer.
        form: json, base64 or binary.
        expected: of a request with the same texts in the same order.
        cosine: the least that a vector may have with the expected one.
    """
    if digest(body, form) == expected.digest:
        return None
    try:
        found = read(body, form)
    except ValueError as error:
        return f"not to be read: {error}"
    return difference(found, expected.arrays, cosine)


def difference(
    found: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]], cosine: float
) -> str | None:
    """Say how texts' arrays differ; None: they do not."""
    if len(found) != len(expected):
        return f"{len(found)} texts, expected {len(expected)}"
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.keys() != other.keys():
            return f"text {row} has {', '.join(one)}, expected {', '.join(other)}"
        for name in one.keys() - {"values"}:
            if name == "indices":
                least = lexical(one, other)
            elif one[name].shape != other[name].shape:
                return f"{name} of text {row} is {one[name].shape}, not {other[name].shape}"
            elif one[name].dtype.kind in "iub":
                least = 1.0 if np.array_equal(one[name], other[name]) else 0.0
            else:
                least = nearest(one[name], other[name])
            if not least >= cosine:
                return f"{name} of text {row} has a cosine of {least:.8f}, expected {cosine:g}"
    return None


def nearest(one: Array, other: Array) -> float:
    """Return the least likeness of rows; two of zeros are alike. NaN is like nothing.

    It is 2ab / (aa + bb): the cosine of vectors of the same length, and less if they differ in it.
    """
    a, b = (np.atleast_2d(array).astype(np.float64) for array in (one, other))
    if not a.size:
        return 1.0
    equal = (a == b).all(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(equal, 1.0, 2 * (a * b).sum(-1) / ((a * a).sum(-1) + (b * b).sum(-1)))
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def lexical(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return the likeness of two sets of lexical weights: one by zero may be left out."""
    ids = np.union1d(one["indices"], other["indices"])
    full = np.zeros((2, len(ids)))
    for row, part in enumerate((one, other)):
        if len(part["indices"]) != len(part["values"]):
            return -1.0
        full[row, np.searchsorted(ids, part["indices"])] = part["values"]
    return nearest(full[0], full[1])


def digest(body: bytes, form: str) -> bytes:
    """Hash the vectors of an answer as they were written; what it says of its time is left out."""
    view = memoryview(body)
    if form == "binary":
        start = 8 + int.from_bytes(body[:8], "little")
        return blake2b(view[start:], digest_size=16).digest()
    end = body.rfind(b'"usage"')
    return blake2b(view[: end if end >= 0 else len(body)], digest_size=16).digest()


def tokens(body: bytes, form: str) -> int:
    """Return the tokens that an answer counts; 0 where it does not."""
    if form == "binary":
        try:
            return int(tensors(body)["n_tokens"].sum())
        except (ValueError, KeyError):
            return 0
    found = TOKENS.search(body[-400:])
    return int(found[1]) if found else 0


def read(body: bytes, form: str) -> list[dict[str, Array]]:
    """Return the arrays of each text.

    Raises:
        ValueError: the answer is not of that form.
    """
    try:
        return of_tensors(body) if form == "binary" else of_json(body)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def of_json(body: bytes) -> list[dict[str, Array]]:
    """Read m3rt's own answer, in either of its forms as JSON."""
    found: list[dict[str, Array]] = []
    for row, item in enumerate(loads()(body)["data"]):
        if item["index"] != row:
            raise ValueError(f"index {item['index']} in place {row}")
        arrays = {"n_tokens": np.array(item["n_tokens"], np.int64)}
        for name in ("dense", "colbert"):
            if name in item:
                arrays[name] = array(item[name])
        if "sparse" in item:
            arrays["indices"] = np.array(item["sparse"]["indices"], np.int64)
            arrays["values"] = array(item["sparse"]["values"])
        found.append(arrays)
    return found


def array(value: Any) -> Array:
    """Read numbers, or base64 of them."""
    if isinstance(value, dict):
        data = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]))
        return data.reshape(value["shape"]) if "shape" in value else data
    return np.array(value, np.float32)


def of_tensors(body: bytes) -> list[dict[str, Array]]:
    """Read m3rt's own answer in safetensors: texts follow each other, and offsets part them."""
    found = tensors(body)
    texts: list[dict[str, Array]] = []
    for row in range(len(found["n_tokens"])):
        arrays = {"n_tokens": found["n_tokens"][row].astype(np.int64)}
        if "dense" in found:
            arrays["dense"] = found["dense"][row]
        for name, parts in (("colbert", ("colbert",)), ("sparse", ("indices", "values"))):
            if (starts := found.get(f"{name}_offsets")) is not None:
                place = slice(int(starts[row]), int(starts[row + 1]))
                for part in parts:
                    whole = found[part if part == name else f"{name}_{part}"]
                    arrays[part] = whole[place]
        texts.append(arrays)
    return texts


def tensors(body: bytes) -> dict[str, Array]:
    """Read safetensors.

    Raises:
        ValueError: it is none.
    """
    start = 8 + int.from_bytes(body[:8], "little")
    found: dict[str, Array] = {}
    for name, about in json.loads(body[8:start]).items():
        if name != "__metadata__":
            first, last = about["data_offsets"]
            data = np.frombuffer(body[start + first : start + last], DTYPES[about["dtype"]])
            found[name] = data.reshape(about["shape"])
    return found


def loads() -> Callable[[bytes], Any]:
    """Return what reads JSON fastest here."""
    try:
        found: Callable[[bytes], Any] = import_module("orjson").loads
    except ImportError:
        return json.loads
    return found
