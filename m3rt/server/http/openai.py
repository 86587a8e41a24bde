"""OpenAI's requests, and Jina's additions to them that change nothing here.

POST /v1/embeddings   texts to dense vectors
GET  /v1/models       the one model

The paths without /v1 are TEI's and Infinity's.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import inputs
from m3rt.server.http.inputs import Given
from m3rt.server.http.native import retry_headers
from m3rt.server.http.replies import Reply, dumps, json_reply, server_timing
from m3rt.server.http.routes import Call, Route
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Cut
from m3rt.types import Heads

INVALID = "invalid_request_error"
# status, type, code
ERRORS: Mapping[Kind, tuple[int, str, str | None]] = {
    Kind.MALFORMED: (400, INVALID, None),
    Kind.INVALID: (400, INVALID, None),
    Kind.EMPTY: (400, INVALID, None),
    Kind.TOO_LONG: (400, INVALID, "context_length_exceeded"),
    Kind.TOO_MANY: (400, INVALID, "array_above_max_length"),
    Kind.TOO_LARGE: (413, INVALID, None),
    Kind.TOO_SLOW: (408, INVALID, None),
    Kind.UNAUTHORISED: (401, INVALID, "invalid_api_key"),
    Kind.NOT_FOUND: (404, INVALID, "model_not_found"),
    Kind.NOT_ALLOWED: (405, INVALID, None),
    Kind.UNACCEPTABLE: (406, INVALID, None),
    Kind.UNSUPPORTED: (400, INVALID, None),
    Kind.OVERLOADED: (429, "rate_limit_error", "rate_limit_exceeded"),
    Kind.EXPIRED: (504, "server_error", "timeout"),
    Kind.NOT_READY: (503, "server_error", "service_unavailable"),
    Kind.FAILED: (500, "server_error", None),
    Kind.TOKENIZER: (400, INVALID, None),
}
STARTED = int(time.time())  # when the model was made is not known


def shape(refusal: RefusedError) -> Reply:
    """Tell of what went wrong: ``{"error": {"message", "type", "param", "code"}}``."""
    status, kind, code = ERRORS[refusal.kind]
    param = refusal.param or ("input" if refusal.kind in (Kind.TOO_LONG, Kind.TOKENIZER) else None)
    error = {"message": str(refusal), "type": kind, "param": param, "code": code}
    return json_reply({"error": error}, status, retry_headers(refusal))


class EmbeddingsRequest(msgspec.Struct):
    """Texts to embed. Fields that are not here are ignored."""

    input: Given
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None  # vLLM's; -1: all
    # Jina's. Its task and input_type change nothing, normalized neither: vectors are unit vectors.
    embedding_type: str | None = None
    truncate: bool | None = None
    late_chunking: bool | None = None
    return_multivector: bool | None = None


class Embedding(msgspec.Struct):
    """One vector: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class Usage(msgspec.Struct):
    """Tokens encoded, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(msgspec.Struct):
    """Vectors in the order of the texts."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: Literal["list"] = "list"


class ModelReply(msgspec.Struct):
    """A model."""

    id: str
    created: int
    owned_by: str
    max_model_len: int
    object: Literal["model"] = "model"


class ModelsReply(msgspec.Struct):
    """The models that are served."""

    data: list[ModelReply]
    object: Literal["list"] = "list"


async def embeddings(call: Call) -> Reply:
    """Embed texts: dense vectors, as OpenAI's API gives them."""
    body: EmbeddingsRequest = call.body
    service = call.service
    if body.model is not None:
        known(service, body.model)
    encoded = encoding(body)
    refuse_extras(body, service.model.manifest.hidden)
    settings = service.settings
    if not settings.allow_token_ids and inputs.has_ids(body.input, settings.max_client_batch_size):
        raise RefusedError(
            Kind.INVALID,
            "`input` holds token ids, expected text: ids of another tokenizer, as tiktoken's, "
            "would give vectors without meaning. With LangChain's OpenAIEmbeddings pass "
            "check_embedding_ctx_length=False; a server started with --allow-token-ids takes ids "
            "of its own tokenizer",
            param="input",
        )
    found = await service.embed(
        Ask(
            await inputs.read(service, body.input, "input"),
            Heads.DENSE,
            kept(body.truncate_prompt_tokens, service.model.max_length),
            cut(body, settings.auto_truncate),
            bytes_per_number=16 / 3 if encoded else 12.0,
        ),
        call.sender,
    )
    return await service.finish(found, written, found, service.name, encoded, call.started)


def encoding(body: EmbeddingsRequest) -> bool:
    """Tell whether vectors are asked for as base64.

    Raises:
        RefusedError: Jina's field asks for what is not made here.
    """
    if body.embedding_type not in (None, "float", "base64"):
        raise RefusedError(
            Kind.INVALID,
            "`embedding_type` is another than float and base64, which are what there is",
            param="embedding_type",
        )
    return (body.encoding_format or body.embedding_type) == "base64"


def refuse_extras(body: EmbeddingsRequest, width: int) -> None:
    """Refuse what would give other vectors than the model's own.

    Raises:
        RefusedError: names the field.
    """
    if body.dimensions is not None and body.dimensions != width:
        raise RefusedError(
            Kind.INVALID,
            f"`dimensions` must be {width}, or left out: this model was not trained for vectors "
            "that can be cut",
            param="dimensions",
        )
    for name in ("late_chunking", "return_multivector"):
        if getattr(body, name):
            raise RefusedError(
                Kind.INVALID,
                f"`{name}` is not possible here; POST /v1/m3/embed gives ColBERT vectors",
                param=name,
            )


def cut(body: EmbeddingsRequest, usual: bool) -> Cut:
    """Return what to do with texts that are too long: vLLM's field, Jina's, the server's own."""
    if body.truncate_prompt_tokens is not None:
        return Cut.RIGHT
    return Cut.RIGHT if (usual if body.truncate is None else body.truncate) else Cut.NONE


def kept(asked: int | None, most: int) -> int | None:
    """Return the tokens to keep of a text, for vLLM's ``truncate_prompt_tokens``."""
    return None if asked is None or asked < 0 else min(asked, most)


def known(service: Service, name: str) -> None:
    """Refuse a model that is not here.

    Raises:
        RefusedError: it is neither the served name nor that of the checkpoint.
    """
    if name not in (service.name, service.model.manifest.source.checkpoint):
        raise RefusedError(
            Kind.NOT_FOUND,
            f"the model {name[:200]!r} does not exist; there is {service.name!r}",
            param="model",
        )


def written(answer: Answer, model: str, encoded: bool, started: float) -> Reply:
    """Write vectors as JSON."""
    dense = answer.embeddings.dense
    assert dense is not None
    data: list[dict[str, Any]] = [
        {
            "object": "embedding",
            "index": row,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if encoded
            else vector,
        }
        for row, vector in enumerate(dense)
    ]
    usage = {"prompt_tokens": answer.n_tokens, "total_tokens": answer.n_tokens}
    body = dumps({"object": "list", "data": data, "model": model, "usage": usage})
    total = time.perf_counter() - started
    headers = {
        "openai-processing-ms": str(round(total * 1e3)),
        "server-timing": server_timing(answer.timings, total),
    }
    return Reply(body, headers=headers)


async def models(call: Call) -> Reply:
    """List the models: there is one."""
    return json_reply({"object": "list", "data": [described(call.service)]})


async def one_model(call: Call) -> Reply:
    """Tell of a model."""
    known(call.service, "/".join(call.params.values()))  # a hub id holds a slash
    return json_reply(described(call.service))


def described(service: Service) -> dict[str, Any]:
    """Return what is told of the model."""
    return {
        "id": service.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "m3rt",
        "max_model_len": service.model.max_length,  # where vLLM tells it
    }


ROUTES = tuple(
    route
    for prefix in ("/v1", "")
    for route in (
        Route(
            "POST", f"{prefix}/embeddings", embeddings, shape, EmbeddingsRequest, EmbeddingsReply
        ),
        Route("GET", f"{prefix}/models", models, shape, reply=ModelsReply, observed=False),
        Route(
            "GET", f"{prefix}/models/{{model}}", one_model, shape, reply=ModelReply, observed=False
        ),
        Route(
            "GET",
            f"{prefix}/models/{{owner}}/{{model}}",
            one_model,
            shape,
            reply=ModelReply,
            observed=False,
        ),
    )
)
