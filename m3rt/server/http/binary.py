"""Binary answers: Arrow's stream and safetensors. The header Accept asks for them.

Ragged outputs are end to end, as in m3rt.types.Ragged: the rows of text i are those from
``offsets[i]`` to ``offsets[i + 1]``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import m3rt
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.work import Answer
from m3rt.types import offsets

ARROW = "application/vnd.apache.arrow.stream"
SAFETENSORS = "application/x-safetensors"

Array = np.ndarray[Any, np.dtype[Any]]

# safetensors' names, and what its header is padded to, so that the numbers are aligned
DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "bool": "BOOL"}
ALIGNED = 8


def chosen(accept: str, offered: Sequence[str]) -> str:
    """Return the media type that the header Accept likes best, of equal ones the first offered.

    Args:
        accept: the header; empty takes anything.
        offered: media types in lower case.

    Raises:
        RefusedError: it takes none of them, or the package that writes the only one is not there.
    """
    wanted = accepted(accept) or {"*/*": 1.0}
    ranked = {media: quality(wanted, media) for media in offered}
    best = max(ranked, key=lambda media: ranked[media])
    # only where it is what is wanted: to look for a package takes a while
    lost = best == ARROW and ranked[best] > 0 and not writable()
    if lost:
        del ranked[ARROW]
        best = max(ranked, key=lambda media: ranked[media])
    if ranked[best] > 0:
        return best
    message = f"accept is {accept[:200]!r}; there are {', '.join(offered)}"
    if lost:
        message = f"{ARROW} needs pyarrow on the server: pip install 'm3rt[parquet]'"
    raise RefusedError(Kind.UNACCEPTABLE, message, param="accept")


def writable() -> bool:
    """Return whether what writes Arrow is installed."""
    return importlib.util.find_spec("pyarrow") is not None


@functools.lru_cache(256)
def accepted(header: str) -> Mapping[str, float]:
    """Read a header Accept: media ranges in lower case, and how much each is liked, 0 to 1."""
    found = {}
    for part in header.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        liked = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    liked = min(max(float(value), 0.0), 1.0)
                except ValueError:
                    liked = 0.0
        if media:
            found[media] = liked
    return found


def quality(wanted: Mapping[str, float], media: str) -> float:
    """Return how much a media type is liked: what is said most exactly of it counts."""
    for name in (media, media.partition("/")[0] + "/*", "*/*"):
        if name in wanted:
            return wanted[name]
    return 0.0


def tensors(answer: Answer, dtype: np.dtype[Any]) -> dict[str, Array]:
    """Return an answer as arrays; those of heads that were not asked for are left out.

    dense (n, h) and colbert (t, d) have the dtype; colbert_offsets (n + 1,), sparse_indices (nnz,)
    and sparse_values (nnz,) with sparse_offsets (n + 1,), n_tokens (n,) and truncated (n,).
    """
    found = answer.embeddings
    arrays: dict[str, Array] = {}
    if found.dense is not None:
        arrays["dense"] = found.dense.astype(dtype, copy=False)
    if (sparse := found.sparse) is not None:
        arrays["sparse_indices"] = sparse.ids.values
        arrays["sparse_values"] = sparse.weights.values
        arrays["sparse_offsets"] = sparse.ids.starts
    if found.colbert is not None:
        lengths = [len(rows) for rows in found.colbert]
        arrays["colbert"] = np.concatenate([rows.astype(dtype) for rows in found.colbert])
        arrays["colbert_offsets"] = offsets(lengths)
    arrays["n_tokens"] = found.n_tokens.astype(np.int32)
    arrays["truncated"] = found.truncated
    return arrays


def safetensors(answer: Answer, dtype: np.dtype[Any], model: str) -> bytes:
    """Write the tensors of an answer in the format of safetensors.

    It is a header of JSON, its length before it, and the arrays, little-endian, without gaps.
    """
    # the widest numbers first, so that each array starts at a multiple of its numbers' size
    arrays = sorted(tensors(answer, dtype).items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": described(model)}
    parts: list[bytes] = []
    end = 0
    for name, values in arrays:
        parts.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        begin, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": DTYPES[values.dtype.name],
            "shape": values.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNED)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def arrow(answer: Answer, dtype: np.dtype[Any], model: str) -> bytes:
    """Write an answer as one record batch of Arrow's stream; a row for each text.

    dense fixed_size_list, sparse struct<indices: list<int32>, values: list<float>>, colbert
    list<fixed_size_list>, n_tokens int32, truncated bool.
    """
    import pyarrow as pa

    found = tensors(answer, dtype)
    columns: dict[str, Any] = {}
    if "dense" in found:
        columns["dense"] = vectors(pa, found["dense"])
    if "sparse_offsets" in found:
        starts = pa.array(found["sparse_offsets"].astype(np.int32))
        fields = {
            name: pa.ListArray.from_arrays(starts, pa.array(found[f"sparse_{name}"]))
            for name in ("indices", "values")
        }
        columns["sparse"] = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    if "colbert" in found:
        starts = pa.array(found["colbert_offsets"].astype(np.int32))
        columns["colbert"] = pa.ListArray.from_arrays(starts, vectors(pa, found["colbert"]))
    columns["n_tokens"] = pa.array(found["n_tokens"])
    columns["truncated"] = pa.array(found["truncated"])
    batch = pa.record_batch(columns).replace_schema_metadata(described(model))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def vectors(pa: Any, rows: Array) -> Any:
    """Return a matrix as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def described(model: str) -> dict[str, str]:
    """Return what a file says of its making."""
    return {"model": model, "m3rt": m3rt.__version__}


Writer = Callable[[Answer, "np.dtype[Any]", str], bytes]

WRITERS: Mapping[str, Writer] = {ARROW: arrow, SAFETENSORS: safetensors}
