"""Cohere's requests, for its clients; dense vectors only.

POST /v2/embed   texts to vectors, as numbers, base64 or sign bits
POST /v1/embed   the same in the first version's form

Its rerank requests are in rerank.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import native, vllm
from m3rt.server.http.replies import Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.work import Answer, Ask, Cut
from m3rt.types import Floats, Heads

STATUS: Mapping[Kind, int] = {
    Kind.MALFORMED: 400,
    Kind.INVALID: 400,
    Kind.EMPTY: 400,
    Kind.TOO_LONG: 400,
    Kind.TOO_MANY: 400,
    Kind.TOO_LARGE: 413,
    Kind.TOO_SLOW: 408,
    Kind.UNAUTHORISED: 401,
    Kind.NOT_FOUND: 404,
    Kind.NOT_ALLOWED: 405,
    Kind.UNACCEPTABLE: 406,
    Kind.UNSUPPORTED: 400,
    Kind.OVERLOADED: 429,
    Kind.EXPIRED: 504,
    Kind.NOT_READY: 503,
    Kind.FAILED: 500,
    Kind.TOKENIZER: 400,
}
CUTS = {"NONE": Cut.NONE, "START": Cut.LEFT, "END": Cut.RIGHT}
EXACT = ("float", "base64", "binary", "ubinary")


def shape(refusal: RefusedError) -> Reply:
    """Tell of what went wrong: ``{"message": ...}``."""
    content = {"message": str(refusal)}
    return json_reply(content, STATUS[refusal.kind], native.retry_headers(refusal))


class Part(msgspec.Struct):
    """A part of an input; only texts are taken."""

    type: str
    text: str | None = None


class Parts(msgspec.Struct):
    """An input, of one part."""

    content: list[Part]


class EmbedRequest(msgspec.Struct):
    """Texts to embed: ``texts``, or ``inputs`` of one text part each.

    ``input_type`` changes nothing, as M3 has no prompts. ``output_dimension`` can only be the
    model's own. int8 and uint8 are refused, as their ranges would have to be calibrated; binary
    and ubinary are the signs of the numbers, eight to a byte. ``truncate`` is the side that is cut
    off. A ``priority`` above 0 is bulk. ``model`` and other fields are not read.
    """

    texts: list[str] | None = None
    inputs: list[Parts] | None = None
    images: list[str] | None = None
    model: str | None = None
    input_type: (
        Literal["search_document", "search_query", "classification", "clustering", "image"] | None
    ) = None
    embedding_types: (
        list[Literal["float", "base64", "binary", "ubinary", "int8", "uint8"]] | None
    ) = None
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    output_dimension: int | None = None
    priority: int = 0


class Embeddings(msgspec.Struct):
    """The vectors in each type that was asked for."""

    floats: list[list[float]] | msgspec.UnsetType = msgspec.field(
        default=msgspec.UNSET, name="float"
    )
    base64: list[str] | msgspec.UnsetType = msgspec.UNSET
    binary: list[list[int]] | msgspec.UnsetType = msgspec.UNSET
    ubinary: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class Meta(msgspec.Struct):
    """The form of the answer, and the tokens that were encoded."""

    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]


class EmbedReply(msgspec.Struct):
    """Vectors in the order of the texts."""

    id: str
    embeddings: Embeddings
    texts: list[str]
    meta: Meta
    response_type: Literal["embeddings_by_type"]


class FloatsReply(msgspec.Struct):
    """The first version's answer where no type was asked for."""

    id: str
    embeddings: list[list[float]]
    texts: list[str]
    meta: Meta
    response_type: Literal["embeddings_floats"]


async def embed(call: Call) -> Reply:
    """Embed texts as Cohere's /v2/embed does: dense vectors."""
    return await embedded(call, "2")


async def embed_v1(call: Call) -> Reply:
    """Embed texts as Cohere's /v1/embed does: dense vectors."""
    return await embedded(call, "1")


async def embedded(call: Call, version: str) -> Reply:
    """Embed texts, and answer in the form of a version of the API."""
    body: EmbedRequest = call.body
    check(body, call.service.model.manifest.hidden)
    texts = texts_of(body)
    native.limit(call.service, len(texts), "texts")
    ask = Ask(texts, Heads.DENSE, body.max_tokens, CUTS[body.truncate], bytes_per_number=12.0)
    answer = await call.service.embed(ask, vllm.prioritised(call.sender, body.priority))
    request_id = call.sender.request_id
    return await call.service.finish(answer, written, body, answer, texts, request_id, version)


def check(body: EmbedRequest, width: int) -> None:
    """Refuse what this model cannot do.

    Raises:
        RefusedError: says what it is.
    """
    if body.images is not None or body.input_type == "image":
        raise RefusedError(Kind.UNSUPPORTED, "this model takes no images", param="images")
    if body.output_dimension not in (None, width):
        raise RefusedError(
            Kind.INVALID,
            f"output_dimension is {body.output_dimension}, and the model has {width}, not fewer",
            param="output_dimension",
        )
    if not body.embedding_types and body.embedding_types is not None:
        raise RefusedError(Kind.INVALID, "embedding_types is empty", param="embedding_types")
    if foreign := [name for name in body.embedding_types or () if name not in EXACT]:
        raise RefusedError(
            Kind.INVALID,
            f"embedding_types has {foreign[0]}, whose ranges would have to be calibrated; there "
            f"are {', '.join(EXACT)}",
            param="embedding_types",
        )


def texts_of(body: EmbedRequest) -> list[str]:
    """Return the texts of a request.

    Raises:
        RefusedError: there are none, or an input is no single text.
    """
    if (body.texts is None) == (body.inputs is None):
        raise RefusedError(Kind.INVALID, "expected one of texts and inputs", param="texts")
    texts = body.texts or []
    for place, item in enumerate(body.inputs or ()):
        found = [
            part.text for part in item.content if part.type == "text" and part.text is not None
        ]
        if len(found) != 1 or len(item.content) != 1:
            raise RefusedError(
                Kind.UNSUPPORTED, f"input {place} is not one text part", param="inputs"
            )
        texts.append(found[0])
    if not texts:
        raise RefusedError(Kind.EMPTY, "there are no texts, expected at least one", param="texts")
    return texts


def written(
    body: EmbedRequest,
    answer: Answer,
    texts: list[str],
    request_id: str,
    version: str,
) -> Reply:
    """Write vectors as Cohere does."""
    dense = answer.embeddings.dense
    assert dense is not None
    floats = version == "1" and body.embedding_types is None
    names = dict.fromkeys(body.embedding_types or ["float"])
    content = {
        "id": request_id,
        "embeddings": dense if floats else {name: typed(dense, name) for name in names},
        "texts": texts,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": answer.n_tokens},
            "tokens": {"input_tokens": answer.n_tokens},
        },
        "response_type": "embeddings_floats" if floats else "embeddings_by_type",
    }
    return Reply(dumps(content))


def typed(dense: Floats, name: str) -> Any:
    """Return vectors (n, h) in one of Cohere's types.

    ubinary is (n, h / 8): bit 7 of a byte is 1 where the first of its eight numbers is more than
    0; binary is that less 128.
    """
    if name == "float":
        return dense
    if name == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in dense]
    bits = np.packbits(dense > 0, axis=1)
    return bits if name == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


EXAMPLE = {
    "model": "bge-m3",
    "texts": ["what is BGE-M3?"],
    "input_type": "search_query",
    "embedding_types": ["ubinary"],
}
ROUTES = (
    Route("POST", "/v2/embed", embed, shape, EmbedRequest, EmbedReply, example=EXAMPLE),
    Route(
        "POST",
        "/v1/embed",
        embed_v1,
        shape,
        EmbedRequest,
        (FloatsReply, EmbedReply),
        example=EXAMPLE,
    ),
)
