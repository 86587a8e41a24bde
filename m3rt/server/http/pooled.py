"""The forms of vLLM's pooling requests and answers, and how answers are written."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.native import Usage, pieces, used
from m3rt.server.http.replies import Reply, dumps
from m3rt.server.service import Service
from m3rt.server.work import Answer

BYTES = "application/octet-stream"
MOST_METADATA = 60_000  # bytes of a header: many clients read no line of over 64 KiB

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# a text, texts, the token ids of a text, or those of several
Inputs = str | list[str | TokenId | list[TokenId]]


class Plugin(msgspec.Struct):
    """Texts whose dense and lexical outputs are wanted in one answer."""

    input: Inputs
    embed_task: Literal["dense", "sparse", "dense&sparse"] = "dense&sparse"
    return_tokens: bool | None = None
    add_special_tokens: bool = True


class PoolingRequest(msgspec.Struct):
    """Texts, and the output wanted of them: ``input``, or ``data`` for the task plugin.

    ``truncate_prompt_tokens`` is how many tokens of a text are kept, -1 for as many as the model
    takes; ``priority`` above 0 is bulk. ``dimensions`` can only be the model's own, and
    ``use_activation`` only true: vectors are unit vectors, weights are not negative.
    ``messages`` are refused, as the model has no chat template. Other fields are not read.
    """

    input: Inputs | None = None
    data: Plugin | None = None
    messages: Any = None
    task: Literal["embed", "token_embed", "token_classify", "plugin"] | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    dimensions: int | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    priority: int = 0
    request_id: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class Pooled(msgspec.Struct):
    """The output of one text: a vector, vectors, weights, or base64 of their numbers."""

    index: int
    object: Literal["pooling"]
    data: list[float | list[float]] | str


class PoolingReply(msgspec.Struct):
    """Outputs, in the order of the texts.

    embed has a vector of a text, token_embed a vector for each token but the first, and
    token_classify a weight for each token but the first and the last.
    """

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


class TokenWeight(msgspec.Struct):
    """The lexical weight of a token; its name if it was asked for."""

    token_id: int
    weight: float
    token: str | None


class BothPooled(msgspec.Struct):
    """Dense and lexical outputs of one text; null where not asked for."""

    index: int
    object: Literal["dense", "sparse", "dense&sparse"]
    sparse_embedding: list[TokenWeight] | None
    dense_embedding: list[float] | None


class PluginData(msgspec.Struct):
    """Outputs of all texts."""

    data: list[BothPooled]
    usage: Usage


class PluginReply(msgspec.Struct):
    """The answer to the task plugin."""

    request_id: str
    created_at: int
    data: PluginData


def rows_of(answer: Answer, service: Service) -> list[NDArray[np.float32]]:
    """Return the output of each text: (h,), (t_i - 1, d) or (t_i - 2,)."""
    found = answer.embeddings
    if found.dense is not None:
        return list(found.dense)
    if found.colbert is not None:
        return found.colbert
    rows = []
    for row in range(len(found)):
        _, weights = pieces(answer, row, service.model)
        assert weights is not None
        rows.append(weights[1:-1])
    return rows


def written(body: PoolingRequest, answer: Answer, service: Service, request_id: str) -> Reply:
    """Write outputs in one of the four encodings.

    Raises:
        RefusedError: where they are in a header, they are more than fits.
    """
    rows = rows_of(answer, service)
    content: dict[str, Any] = {
        "id": f"pool-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": service.name,
    }
    if body.encoding_format in ("bytes", "bytes_only"):
        parts = [encoded(row, body.embed_dtype, body.endianness) for row in rows]
        if body.encoding_format == "bytes_only":
            return Reply(b"".join(parts), media=BYTES)
        del content["object"]
        content["data"] = placed(parts, rows, body)
        content["usage"] = used(answer)
        metadata = json.dumps(content)
        if len(metadata) > MOST_METADATA:
            raise RefusedError(
                Kind.TOO_LARGE,
                f"the header metadata would have {len(metadata)} bytes for {len(rows)} texts, over "
                f"{MOST_METADATA}: send fewer texts, or take base64",
                param="encoding_format",
            )
        return Reply(b"".join(parts), media=BYTES, headers={"metadata": metadata})
    items: Sequence[Any] = rows
    if body.encoding_format == "base64":
        items = [
            base64.b64encode(encoded(row, body.embed_dtype, body.endianness)).decode()
            for row in rows
        ]
    content["data"] = [
        {"index": i, "object": "pooling", "data": item} for i, item in enumerate(items)
    ]
    content["usage"] = used(answer)
    return Reply(dumps(content))


def placed(
    parts: Sequence[bytes], rows: Sequence[NDArray[np.float32]], body: PoolingRequest
) -> list[dict[str, Any]]:
    """Return where each output is in the body."""
    items, end = [], 0
    for index, (part, row) in enumerate(zip(parts, rows, strict=True)):
        start, end = end, end + len(part)
        item = {"index": index, "embed_dtype": body.embed_dtype, "endianness": body.endianness}
        items.append({**item, "start": start, "end": end, "shape": row.shape})
    return items


def encoded(values: NDArray[np.float32], dtype: str, endianness: str) -> bytes:
    """Return the numbers' bytes; bfloat16 is rounded to nearest, ties to even."""
    numbers: NDArray[Any] = np.ascontiguousarray(values)
    if dtype == "bfloat16":
        bits = numbers.view(np.uint32)
        numbers = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    elif dtype == "float16":
        numbers = numbers.astype(np.float16)
    if endianness not in ("native", sys.byteorder):
        numbers = numbers.byteswap()
    return numbers.tobytes()


def written_plugin(
    body: PoolingRequest, answer: Answer, service: Service, request_id: str
) -> Reply:
    """Write dense and lexical outputs as vLLM's plugin for M3 does."""
    assert body.data is not None
    found = answer.embeddings
    data: list[dict[str, Any]] = []
    for row in range(len(found)):
        entries = None
        if found.sparse is not None:
            ids = found.sparse.ids[row].tolist()
            names = [
                service.model.tokenizer.piece(i) if body.data.return_tokens else None for i in ids
            ]
            columns = zip(ids, found.sparse.weights[row], names, strict=True)
            entries = [{"token_id": i, "weight": w, "token": name} for i, w, name in columns]
        item = {"index": row, "object": body.data.embed_task, "sparse_embedding": entries}
        item["dense_embedding"] = None if found.dense is None else found.dense[row]
        data.append(item)
    content = {
        "request_id": request_id,
        "created_at": int(time.time()),
        "data": {"data": data, "usage": used(answer)},
    }
    return Reply(dumps(content))
