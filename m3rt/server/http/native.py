"""m3rt's own requests: every head of a text, in one answer.

POST /v1/m3/embed   texts to dense, sparse and ColBERT vectors; in JSON, Arrow or safetensors

Scores are in scoring, the binary answers in binary.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from m3rt import mcls
from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import binary
from m3rt.server.http.replies import JSON, Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Cut, Timings
from m3rt.types import Heads, Ints, Sparse

Outputs = Annotated[list[Literal["dense", "sparse", "colbert"]], msgspec.Meta(min_length=1)]
Truncate = bool | Literal["right", "left", "none"] | None
MaxLength = Annotated[int, msgspec.Meta(ge=1)] | None

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
    Kind.UNACCEPTABLE: 406,
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


def all_outputs() -> list[Literal["dense", "sparse", "colbert"]]:
    """Return the heads of a request that names none: all that the model has."""
    return ["dense", "sparse", "colbert"]


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Texts to embed.

    ``outputs`` are all that the model has by default. ``input_type`` changes nothing, as M3 has no
    prompts. ``truncate`` is the side to cut off a text that is too long, or whether to cut it at
    all; the server's setting by default. ``sparse_format`` is that of JSON: csr is
    ``{"indices": [id], "values": [weight]}``, pairs is ``[[id, weight]]``, dict is
    ``{"id": weight}``, as FlagEmbedding has it. ``tokens`` adds the tokens of each text, as the
    vocabulary has them. Binary answers, asked for by the header Accept, heed ``dtype``, and neither
    ``format`` nor ``sparse_format``.
    """

    inputs: str | list[str]
    outputs: Outputs = msgspec.field(default_factory=all_outputs)
    input_type: Literal["query", "passage"] = "passage"
    max_length: MaxLength = None
    truncate: Truncate = None
    format: Literal["float", "base64"] = "float"
    dtype: Literal["float32", "float16"] = "float32"
    sparse_format: Literal["csr", "pairs", "dict"] = "csr"
    tokens: bool = False


class Packed(msgspec.Struct):
    """An array in row order: base64 of its little-endian numbers."""

    shape: list[int]
    dtype: Literal["float32", "float16"]
    data: str


NUMBERS = {"type": "array", "items": {"type": "number"}}
IDS = {"type": "array", "items": {"type": "integer"}}
# written out, as no union in msgspec holds two kinds of objects
Entries = Annotated[
    Any,
    msgspec.Meta(
        description="Lexical weights: ids ascend, every weight is more than 0.",
        extra_json_schema={
            "anyOf": [
                {
                    "type": "object",
                    "title": "csr",
                    "properties": {"indices": IDS, "values": NUMBERS},
                    "required": ["indices", "values"],
                },
                {"type": "array", "title": "pairs", "items": NUMBERS},
                {"type": "object", "title": "dict", "additionalProperties": {"type": "number"}},
            ]
        },
    ),
]


class Embedded(msgspec.Struct):
    """The outputs of one text. A head that was not asked for, or is not there, is left out.

    ``colbert`` has a vector for each token but the first. ``token_weights`` is 0 for a token that
    is not scored; a token that comes twice has its greatest weight in both places.
    """

    index: int
    n_tokens: int
    truncated: bool
    dense: list[float] | Packed | msgspec.UnsetType = msgspec.UNSET
    sparse: Entries | msgspec.UnsetType = msgspec.UNSET
    colbert: list[list[float]] | Packed | msgspec.UnsetType = msgspec.UNSET
    tokens: list[str] | msgspec.UnsetType = msgspec.UNSET
    token_weights: list[float] | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    """Tokens that were encoded, special ones included."""

    prompt_tokens: int
    total_tokens: int


class Spent(msgspec.Struct):
    """Where the time went, in milliseconds."""

    tokenise: float
    queue: float
    engine: float
    total: float


class EmbedReply(msgspec.Struct):
    """The texts' outputs, in the order of the texts."""

    model: str
    data: list[Embedded]
    usage: Usage
    timings: Spent


async def embed(call: Call) -> Reply:
    """Embed texts: dense, sparse and ColBERT vectors from one pass."""
    body: EmbedRequest = call.body
    media = binary.chosen(call.headers.get("accept", ""), MEDIA)
    if media != JSON and body.tokens:
        raise RefusedError(Kind.INVALID, f"tokens are told in {JSON} only", param="tokens")
    inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not inputs:
        raise RefusedError(Kind.EMPTY, "there are no inputs, expected at least one", param="inputs")
    limit(call.service, len(inputs), "inputs")
    size = 2.0 if body.dtype == "float16" else 4.0
    if media == JSON:
        size = size * 4 / 3 if body.format == "base64" else 12.0
    ask = Ask(
        inputs,
        Heads.parse(body.outputs),
        body.max_length,
        cut_of(body.truncate, call.service.settings.auto_truncate),
        bytes_per_number=size,
    )
    found = await call.service.embed(ask, call.sender)
    if media == JSON:
        return await call.service.finish(found, written, body, found, call.service)
    write = binary.WRITERS[media]
    content = await call.service.finish(
        found, write, found, np.dtype(body.dtype), call.service.name
    )
    return Reply(content, media=media)


def limit(service: Service, count: int, param: str) -> None:
    """Refuse more texts than a request may have.

    Raises:
        RefusedError: there are more.
    """
    most = service.settings.max_client_batch_size
    if count > most:
        raise RefusedError(
            Kind.TOO_MANY, f"there are {count} texts, at most {most} are taken", param=param
        )


def cut_of(truncate: bool | str | None, usual: bool) -> Cut:
    """Read ``truncate``: a side, or whether at all."""
    if isinstance(truncate, str):
        return Cut(truncate)
    return Cut.RIGHT if (usual if truncate is None else truncate) else Cut.NONE


def written(body: EmbedRequest, answer: Answer, service: Service) -> Reply:
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
        if embeddings.sparse is not None:
            item["sparse"] = entries(embeddings.sparse, row, body.sparse_format)
        if embeddings.colbert is not None:
            item["colbert"] = array(embeddings.colbert[row], body)
        if body.tokens:
            item["tokens"], weights = pieces(answer, row, service.model)
            if weights is not None:
                item["token_weights"] = weights
        data.append(item)
    content = {
        "model": service.name,
        "data": data,
        "usage": used(answer),
        "timings": timed(answer.timings),
    }
    return Reply(dumps(content))


def used(answer: Answer) -> dict[str, int]:
    """Return the tokens that were encoded, under the names that all protocols share."""
    return {"prompt_tokens": answer.n_tokens, "total_tokens": answer.n_tokens}


def timed(timings: Timings) -> dict[str, float]:
    """Return where the time went, in milliseconds."""
    seconds = {
        "tokenise": timings.tokenise,
        "queue": timings.queue,
        "engine": timings.engine,
        "total": timings.total,
    }
    return {name: round(spent * 1e3, 3) for name, spent in seconds.items()}


def array(values: NDArray[np.float32], body: EmbedRequest) -> Any:
    """Return an array as JSON has it, or as base64 of its little-endian bytes."""
    typed = values.astype(np.dtype(body.dtype).newbyteorder("<"), copy=False)
    if body.format == "float":
        return typed
    data = base64.b64encode(typed.tobytes()).decode()
    return {"shape": list(values.shape), "dtype": body.dtype, "data": data}


def entries(sparse: Sparse, row: int, form: str) -> Any:
    """Return the lexical weights of one text in one of the three forms of sparse_format."""
    ids, weights = sparse.ids[row], sparse.weights[row]
    if form == "csr":
        return {"indices": ids, "values": weights}
    if form == "dict":
        # as numpy has them: orjson writes float32 with no more digits than it needs
        return dict(zip(map(str, ids.tolist()), weights, strict=True))
    return list(zip(ids.tolist(), weights, strict=True))


def pieces(answer: Answer, row: int, model: M3) -> tuple[list[str], NDArray[np.float32] | None]:
    """Return the tokens of a text as the vocabulary has them, and the lexical weight of each.

    The weight of a token is the one that its id has in the text, 0 if it has none; None without
    the sparse head. CLS tokens inside a long text, which mcls pooling puts there, are left out, as
    they have neither lexical weights nor ColBERT vectors.
    """
    ids: Ints = answer.tokens.ids[row]
    if (interval := model.manifest.cls_interval) is not None:
        ids = np.concatenate([ids[:1], np.delete(ids, mcls.places(len(ids), interval))])
    names = [model.tokenizer.piece(token) for token in ids.tolist()]
    if answer.embeddings.sparse is None:
        return names, None
    known = answer.embeddings.sparse[row]
    return names, np.array([known.get(token, 0.0) for token in ids.tolist()], np.float32)


MEDIA = (JSON, *binary.WRITERS)
ROUTES = (
    Route(
        "POST",
        "/v1/m3/embed",
        embed,
        shape,
        EmbedRequest,
        EmbedReply,
        media=MEDIA[1:],
        kinds=(Kind.UNACCEPTABLE,),
        example={"inputs": ["what is BGE-M3?"], "outputs": ["sparse"], "tokens": True},
    ),
)
