"""tei.v1, the services of text-embeddings-inference: a text a message, streams for more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

import m3rt
from m3rt import score
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import inputs, tei_tokens
from m3rt.server.http import tei as http_tei
from m3rt.server.http.tei_forms import refuse_prompt
from m3rt.server.rpc import messages
from m3rt.server.rpc.calls import Call, Methods
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Cut, Timings
from m3rt.types import Floats, Heads

SERVING = ("tei.v1.Info", "tei.v1.Embed", "tei.v1.Rerank", "tei.v1.Tokenize")
NEVER = ("tei.v1.Predict",)  # what classifiers do

PARALLEL = 64  # messages of a stream that are in work, so that they can run together
LARGE = 8  # those whose answers have a vector for each token

Status = grpc.StatusCode
CODES: Mapping[Kind, Any] = {
    Kind.MALFORMED: Status.INVALID_ARGUMENT,
    Kind.INVALID: Status.INVALID_ARGUMENT,
    Kind.EMPTY: Status.INVALID_ARGUMENT,
    Kind.TOO_LONG: Status.INVALID_ARGUMENT,
    Kind.TOO_MANY: Status.INVALID_ARGUMENT,
    Kind.TOO_LARGE: Status.INVALID_ARGUMENT,
    Kind.TOO_SLOW: Status.DEADLINE_EXCEEDED,
    Kind.UNAUTHORISED: Status.UNAUTHENTICATED,
    Kind.NOT_FOUND: Status.NOT_FOUND,
    Kind.NOT_ALLOWED: Status.UNIMPLEMENTED,
    Kind.UNACCEPTABLE: Status.INVALID_ARGUMENT,
    Kind.UNSUPPORTED: Status.FAILED_PRECONDITION,
    Kind.OVERLOADED: Status.RESOURCE_EXHAUSTED,
    Kind.EXPIRED: Status.DEADLINE_EXCEEDED,
    Kind.NOT_READY: Status.UNAVAILABLE,
    Kind.FAILED: Status.FAILED_PRECONDITION,
    Kind.TOKENIZER: Status.FAILED_PRECONDITION,
}


def handlers(service: Service) -> tuple[Any, ...]:
    """Return the handlers of the methods, service by service."""
    methods = Methods(service, CODES)

    def both(name: str, request: str, work: Any, parallel: int = PARALLEL) -> dict[str, Any]:
        return {
            name: methods.unary(request, work),
            f"{name}Stream": methods.stream(request, work, parallel),
        }

    services = {
        "Info": {"Info": methods.unary("tei.v1.InfoRequest", info)},
        "Embed": both("Embed", "tei.v1.EmbedRequest", embed)
        | both("EmbedSparse", "tei.v1.EmbedSparseRequest", embed_sparse)
        | both("EmbedAll", "tei.v1.EmbedAllRequest", embed_all, LARGE),
        "Predict": both("Predict", "tei.v1.PredictRequest", predict)
        | both("PredictPair", "tei.v1.PredictPairRequest", predict),
        "Rerank": {
            "Rerank": methods.unary("tei.v1.RerankRequest", rerank),
            "RerankStream": methods.gathered(
                "tei.v1.RerankStreamRequest", pair, ranked, PARALLEL, lambda one: one.size
            ),
        },
        "Tokenize": both("Tokenize", "tei.v1.EncodeRequest", tokenize)
        | both("Decode", "tei.v1.DecodeRequest", decode),
    }
    return tuple(
        grpc.method_handlers_generic_handler(f"tei.v1.{name}", found)
        for name, found in services.items()
    )


async def info(call: Call) -> bytes:
    """Tell what is served, and how."""
    model, settings = call.service.model, call.service.settings
    precision = model.engine.name.partition(":")[2]
    return _written(
        "InfoResponse",
        version=m3rt.__version__,
        model_id=model.manifest.source.checkpoint,
        model_sha=model.manifest.source.revision,
        model_dtype=http_tei.DTYPES.get(precision, precision or "float32"),
        model_type=0,  # MODEL_TYPE_EMBEDDING
        max_concurrent_requests=settings.max_client_batch_size,
        max_input_length=model.max_length,
        max_batch_tokens=model.engine.limits.max_tokens,
        max_client_batch_size=settings.max_client_batch_size,
        tokenization_workers=os.cpu_count() or 1,
    )


async def embed(call: Call) -> bytes:
    """Embed a text: its dense vector."""
    request, width = call.request, call.service.model.manifest.hidden
    dimensions = request.dimensions if request.HasField("dimensions") else width
    if not 0 < dimensions <= width:
        message = f"`dimensions` is {dimensions}, expected 1 to {width}"
        raise RefusedError(Kind.INVALID, message, param="dimensions")
    unit = request.normalize or not request.HasField("normalize")
    answer = await _embedded(call, Heads.DENSE)

    def write() -> bytes:
        dense = http_tei.shortened(answer, dimensions, unit)
        rest = _written("EmbedResponse", metadata=_metadata(answer.timings, [answer]))
        return messages.floats(1, dense[0]) + rest

    return await call.service.finish(answer, write)


async def embed_sparse(call: Call) -> bytes:
    """Embed a text: its lexical weights, by token id."""
    answer = await _embedded(call, Heads.SPARSE)

    def write() -> bytes:
        sparse = answer.embeddings.sparse
        assert sparse is not None
        form = messages.kind("tei.v1.SparseValue")
        return _written(
            "EmbedSparseResponse",
            sparse_embeddings=[form(index=i, value=value) for i, value in sparse[0].items()],
            metadata=_metadata(answer.timings, [answer]),
        )

    return await call.service.finish(answer, write)


async def embed_all(call: Call) -> bytes:
    """Embed a text: its ColBERT vectors, one for each token but the first."""
    answer = await _embedded(call, Heads.COLBERT)

    def write() -> bytes:
        assert answer.embeddings.colbert is not None
        rest = _written("EmbedAllResponse", metadata=_metadata(answer.timings, [answer]))
        return messages.rows(1, answer.embeddings.colbert[0]) + rest

    return await call.service.finish(answer, write)


async def _embedded(call: Call, head: Heads) -> Answer:
    """Embed the text of a message with one head."""
    _check(call.request)
    if head not in call.service.model.heads:
        message = f"Backend error: the model has no {head.names[0]} head"
        raise RefusedError(Kind.UNSUPPORTED, message)
    ask = Ask([call.request.inputs], head, cut=_cut(call.request))
    return await call.service.embed(ask, call.sender)


def _check(request: Any) -> None:
    """Refuse a prompt, which the model has none of, and no text."""
    refuse_prompt(request.prompt_name if request.HasField("prompt_name") else None)
    if not request.inputs:
        raise inputs.empty("inputs")


def _cut(request: Any) -> Cut:
    """Read what to do with a long text: one that is not to be cut is refused, as in TEI."""
    if request.truncation_direction not in (0, 1):
        message = f"there is no truncation_direction {request.truncation_direction}"
        raise RefusedError(Kind.INVALID, message, param="truncation_direction")
    if not request.truncate:
        return Cut.NONE
    return Cut.LEFT if request.truncation_direction else Cut.RIGHT


async def predict(call: Call) -> bytes:
    """Refuse: the model has no classes."""
    raise RefusedError(Kind.UNSUPPORTED, "Backend error: Model is not a classifier model")


async def rerank(call: Call) -> bytes:
    """Put texts in the order of a query: the weighted mean of M3's scores, best first."""
    service, request = call.service, call.request
    texts, most = list(request.texts), service.settings.max_client_batch_size
    if not texts:
        raise inputs.empty("texts")
    if len(texts) > most:
        raise inputs.too_many(len(texts), most, "texts")
    if not request.query and "" in texts:
        raise inputs.empty("inputs")
    answer = await _compared(call, texts)

    def write() -> bytes:
        scores = _scores(service, answer)
        ranks = _ranks(scores, texts if request.return_text else [None] * len(texts))
        return _written("RerankResponse", ranks=ranks, metadata=_metadata(answer.timings, [answer]))

    return await service.off(write)


@dataclass(frozen=True, slots=True)
class Pair:
    """The score of a query and a text, and what it took."""

    score: float
    text: str | None  # None: it is not to be returned
    n_tokens: int
    characters: int
    timings: Timings

    @property
    def size(self) -> int:
        """Bytes that are held, about."""
        return 256 + 4 * len(self.text or "")


async def pair(call: Call) -> Pair:
    """Score the query and the text of a message."""
    request = call.request
    if not request.query and not request.text:
        raise inputs.empty("inputs")
    answer = await _compared(call, [request.text])
    (score,) = await call.service.off(_scores, call.service, answer)
    text = request.text if request.return_text else None
    return Pair(float(score), text, answer.n_tokens, answer.characters, answer.timings)


def ranked(pairs: list[Pair], seconds: float) -> bytes:
    """Put the texts of a stream in order, best first.

    Raises:
        RefusedError: the stream had no messages.
    """
    if not pairs:
        raise RefusedError(Kind.EMPTY, "the stream has no messages")
    ranks = _ranks(np.array([one.score for one in pairs]), [one.text for one in pairs])
    parts = ([getattr(one.timings, part) for one in pairs] for part in ("tokenise", "queue"))
    tokenise, queue = (sum(part) / len(pairs) for part in parts)
    engine = sum(one.timings.engine for one in pairs) / len(pairs)
    metadata = _metadata(Timings(tokenise, queue, engine, seconds), pairs)
    return _written("RerankResponse", ranks=ranks, metadata=metadata)


async def _compared(call: Call, texts: list[str]) -> Answer:
    """Embed the query of a message, and texts, with the heads that count."""
    weights = score.Weights(*call.service.settings.weights)
    heads = http_tei.weighted(call.service, weights)
    ask = Ask([call.request.query, *texts], heads, cut=_cut(call.request))
    return await call.service.embed(ask, call.sender)


def _scores(service: Service, answer: Answer) -> Floats:
    """Return the scores of the first text with each of the others."""
    found, weights = answer.embeddings, score.Weights(*service.settings.weights)
    others = found.take(range(1, len(found)))
    scores: Floats = score.matrix(found.take([0]), others, weights).combined[0]
    return scores


def _ranks(scores: Floats, texts: Sequence[str | None]) -> list[Any]:
    form = messages.kind("tei.v1.Rank")
    return [
        form(index=row, text=texts[row], score=scores[row])
        for row in np.argsort(-scores, kind="stable").tolist()
    ]


async def tokenize(call: Call) -> bytes:
    """Tell the tokens of a text, uncut: start and stop are bytes of UTF-8, as in TEI."""
    service, request = call.service, call.request
    _check(request)
    limit = tei_tokens.CHARACTERS * service.model.max_length
    if len(request.inputs) > limit:
        message = f"`inputs` must have less than {limit} characters. Given: {len(request.inputs)}"
        raise RefusedError(Kind.TOO_LONG, message, param="inputs")

    def write() -> bytes:
        text, form = request.inputs, messages.kind("tei.v1.SimpleToken")
        (found,) = service.model.tokenizer.located([text], request.add_special_tokens)
        tokens = [form(**token) for token in tei_tokens.placed(text, found)]
        return _written("EncodeResponse", tokens=tokens)

    return await service.off(write)


async def decode(call: Call) -> bytes:
    """Tell the text of token ids."""
    service, request = call.service, call.request

    def write() -> bytes:
        ids = inputs.ids(service, list(request.ids), "ids")
        text = service.model.tokenizer.decode(ids, request.skip_special_tokens)
        return _written("DecodeResponse", text=text)

    return await service.off(write)


def _metadata(timings: Timings, parts: Sequence[Answer | Pair]) -> Any:
    """Return what an answer took, in nanoseconds."""
    return messages.kind("tei.v1.Metadata")(
        compute_chars=sum(part.characters for part in parts),
        compute_tokens=sum(part.n_tokens for part in parts),
        total_time_ns=round(timings.total * 1e9),
        tokenization_time_ns=round(timings.tokenise * 1e9),
        queue_time_ns=round(timings.queue * 1e9),
        inference_time_ns=round(timings.engine * 1e9),
    )


def _written(form: str, /, **fields: Any) -> bytes:
    written: bytes = messages.kind(f"tei.v1.{form}")(**fields).SerializeToString()
    return written
