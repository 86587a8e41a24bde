"""m3rt's own requests: every head of a text, in one answer.

POST /v1/m3/embed   texts to dense, sparse and ColBERT vectors
POST /v1/m3/score   a query and passages to their scores
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.replies import Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.work import Answer, Ask, Cut
from m3rt.types import Heads

STATUS: Mapping[Kind, int] = {
    Kind.MALFORMED: 400,
    Kind.INVALID: 422,
    Kind.EMPTY: 400,
    Kind.TOO_LONG: 422,
    Kind.TOO_MANY: 413,
    Kind.TOO_LARGE: 413,
    Kind.TOO_SLOW: 408,
    Kind.UNAUTHORISED: 401,
    Kind.NOT_FOUND: 404,
    Kind.NOT_ALLOWED: 405,
    Kind.UNSUPPORTED: 422,
    Kind.OVERLOADED: 429,
    Kind.EXPIRED: 504,
    Kind.NOT_READY: 503,
    Kind.FAILED: 500,
    Kind.TOKENIZER: 422,
}


def retry_headers(refusal: RefusedError) -> dict[str, str]:
    """Return what tells a client whether and when to try again.

    ``x-should-retry`` is what OpenAI's clients read.
    """
    if refusal.kind == Kind.OVERLOADED:
        seconds = max(1, round(refusal.retry_after or 1))
        return {"retry-after": str(seconds), "x-should-retry": "true"}
    if refusal.kind == Kind.UNAUTHORISED:
        return {"www-authenticate": "Bearer"}
    return {"x-should-retry": "false"} if refusal.kind == Kind.EXPIRED else {}


def shape(refusal: RefusedError) -> Reply:
    """Tell of what went wrong: ``{"error": {"type", "message", "param"}}``."""
    error = {"type": refusal.kind, "message": str(refusal), "param": refusal.param}
    return json_reply({"error": error}, STATUS[refusal.kind], retry_headers(refusal))


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Texts to embed."""

    inputs: str | list[str]
    outputs: Annotated[list[Literal["dense", "sparse", "colbert"]], msgspec.Meta(min_length=1)] = (
        msgspec.field(default_factory=lambda: ["dense", "sparse", "colbert"])
    )
    input_type: Literal["query", "passage"] = "passage"
    max_length: Annotated[int, msgspec.Meta(ge=1)] | None = None
    truncate: bool | Literal["right", "left", "none"] | None = None
    format: Literal["float", "base64"] = "float"
    dtype: Literal["float32", "float16"] = "float32"


async def embed(call: Call) -> Reply:
    """Embed texts: dense, sparse and ColBERT vectors from one pass."""
    body: EmbedRequest = call.body
    inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    size = 2 if body.dtype == "float16" else 4
    ask = Ask(
        inputs,
        Heads.parse(body.outputs),
        body.max_length,
        cut_of(body.truncate, call.service.settings.auto_truncate),
        bytes_per_number=size * 4 / 3 if body.format == "base64" else 12.0,
    )
    found = await call.service.embed(ask, call.sender)
    return await call.service.off(written, body, found, call.service.name)


def cut_of(truncate: bool | str | None, usual: bool) -> Cut:
    """Read ``truncate``: a side, or whether at all."""
    if isinstance(truncate, str):
        return Cut(truncate)
    return Cut.RIGHT if (usual if truncate is None else truncate) else Cut.NONE


def written(body: EmbedRequest, answer: Answer, model: str) -> Reply:
    """Write an answer as JSON."""
    embeddings = answer.embeddings
    data: list[dict[str, Any]] = []
    for row in range(len(embeddings)):
        item: dict[str, Any] = {
            "index": row,
            "n_tokens": int(embeddings.n_tokens[row]),
            "truncated": bool(embeddings.truncated[row]),
        }
        if embeddings.dense is not None:
            item["dense"] = array(embeddings.dense[row], body)
        if (sparse := embeddings.sparse) is not None:
            item["sparse"] = {"indices": sparse.ids[row], "values": sparse.weights[row]}
        if embeddings.colbert is not None:
            item["colbert"] = array(embeddings.colbert[row], body)
        data.append(item)
    content = {
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": answer.n_tokens, "total_tokens": answer.n_tokens},
    }
    return Reply(dumps(content))


def array(values: NDArray[np.float32], body: EmbedRequest) -> Any:
    """Return an array as JSON has it, or as base64 of its little-endian bytes."""
    typed = values.astype(np.dtype(body.dtype).newbyteorder("<"), copy=False)
    if body.format == "float":
        return typed
    data = base64.b64encode(typed.tobytes()).decode()
    return {"shape": list(values.shape), "dtype": body.dtype, "data": data}


ROUTES = (Route("POST", "/v1/m3/embed", embed, shape, EmbedRequest),)
