"""The requests of Hugging Face's text-embeddings-inference (TEI).

POST /embed          texts to dense vectors; also / and /invocations
POST /embed_sparse   texts to lexical weights
POST /embed_all      texts to ColBERT vectors
POST /similarity     how like a sentence others are; also /, by the form of the request
POST /predict        refused: the model has no classes
POST /tokenize       and /decode: see m3rt.server.http.tei_tokens
GET  /info           what is served, and how
GET  /health         also /ping

TEI's /rerank is here too, without its path, which several protocols share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

import m3rt
from m3rt import score
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import inputs, tei_tokens
from m3rt.server.http.inputs import Given
from m3rt.server.http.replies import Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.http.tei_forms import Truncation, headers, refuse_prompt, shape
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Input
from m3rt.types import NO_HEADS, Floats, Heads

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}
PAIR = 40.0  # bytes of an index and a value as JSON, for each value

TEXT = "text/plain"


class DenseRequest(Truncation, kw_only=True):
    """Texts to embed. The vectors are unit vectors by themselves, so ``normalize`` adds nothing."""

    inputs: Given
    normalize: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0)] | None = None


class TextsRequest(Truncation, kw_only=True):
    """Texts to embed."""

    inputs: Given


class Sentences(msgspec.Struct):
    """A sentence, and those to compare with it."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(msgspec.Struct):
    """Sentences to compare."""

    inputs: Sentences
    parameters: Truncation | None = None


class RootRequest(Truncation, kw_only=True):
    """Texts to embed, or sentences to compare."""

    inputs: Given | Sentences
    normalize: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0)] | None = None
    parameters: Truncation | None = None


class RerankRequest(Truncation, kw_only=True):
    """Texts to put in the order of a query. Scores are M3's own, which nothing is done to."""

    query: str
    texts: list[str]
    raw_scores: bool | None = None
    return_text: bool | None = None


class PredictRequest(msgspec.Struct):
    """Texts to classify."""

    inputs: str | list[str | list[str]]


class SparseValue(msgspec.Struct):
    """The weight of a token of the vocabulary."""

    index: int
    value: float


class Rank(msgspec.Struct, omit_defaults=True):
    """The score of a text."""

    index: int
    score: float
    text: str | None = None


class Info(msgspec.Struct):
    """What is served, and how."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, dict[str, str]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


async def embed(call: Call) -> Reply:
    """Embed texts: dense vectors, as TEI gives them."""
    body: DenseRequest | RootRequest = call.body
    assert not isinstance(body.inputs, Sentences)
    width = call.service.model.manifest.hidden
    if body.dimensions is not None and not 0 < body.dimensions <= width:
        raise RefusedError(
            Kind.INVALID,
            f"`dimensions` is {body.dimensions}, expected 1 to {width}",
            param="dimensions",
        )
    rows, answer = await embedded(call, body, body.inputs, Heads.DENSE, 12.0)

    def write() -> Reply:
        dense = shortened(answer, body.dimensions, body.normalize is not False)
        return written(call, answer, rows, dense)

    return await call.service.finish(answer, write)


async def embed_sparse(call: Call) -> Reply:
    """Embed texts: M3's lexical weights, by token id."""
    body: TextsRequest = call.body
    rows, answer = await embedded(call, body, body.inputs, Heads.SPARSE, PAIR)

    def write() -> Reply:
        sparse = answer.embeddings.sparse
        assert sparse is not None
        # The numbers stay numpy's float32, which are written with the digits they need.
        pairs = (
            zip(sparse.ids[row].tolist(), list(sparse.weights[row]), strict=True)
            for row in range(len(sparse))
        )
        found = [[{"index": i, "value": value} for i, value in row] for row in pairs]
        return written(call, answer, rows, found)

    return await call.service.finish(answer, write)


async def embed_all(call: Call) -> Reply:
    """Embed texts: M3's ColBERT vectors, one for each token but the first."""
    body: TextsRequest = call.body
    rows, answer = await embedded(call, body, body.inputs, Heads.COLBERT, 12.0)
    return await call.service.finish(answer, written, call, answer, rows, answer.embeddings.colbert)


async def embedded(
    call: Call, body: Truncation, given: Given, head: Heads, size: float
) -> tuple[Sequence[Input], Answer]:
    """Embed what a request holds, with one head.

    Args:
        call: the request.
        body: what to do with long texts.
        given: texts or ids.
        head: the one that is wanted.
        size: bytes of a number of the answer.

    Raises:
        RefusedError: it cannot be answered.
    """
    service = call.service
    refuse_prompt(body.prompt_name)
    if head not in service.model.heads:
        raise RefusedError(
            Kind.UNSUPPORTED, f"Backend error: the model has no {head.names[0]} head"
        )
    rows = await inputs.read(service, given, "inputs")
    cut = body.cut(service.settings.auto_truncate)
    ask = Ask(rows, head, cut=cut, bytes_per_number=size)
    return rows, await service.embed(ask, call.sender)


def shortened(answer: Answer, dimensions: int | None, normalize: bool) -> Floats:
    """Return vectors, or their first numbers, which are made unit vectors again if wanted."""
    dense = answer.embeddings.dense
    assert dense is not None
    if dimensions is None or dimensions == dense.shape[1]:
        return dense
    kept = dense[:, :dimensions].astype(np.float64)
    if normalize:
        norms = np.sqrt(np.einsum("nd,nd->n", kept, kept))
        kept /= np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    return kept.astype(np.float32)


def written(call: Call, answer: Answer, rows: Sequence[Input], content: Any) -> Reply:
    """Write an answer, with TEI's headers."""
    body = dumps(content)
    return Reply(body, headers=headers(call.service, answer, rows, call.started))


async def similarity(call: Call) -> Reply:
    """Tell how like a sentence others are: cosines of dense vectors."""
    body: SimilarityRequest | RootRequest = call.body
    sentences = body.inputs
    assert isinstance(sentences, Sentences)
    if not sentences.sentences:
        raise inputs.empty("inputs.sentences")
    texts: Given = [sentences.source_sentence, *sentences.sentences]
    rows, answer = await embedded(call, body.parameters or Truncation(), texts, Heads.DENSE, 12.0)

    def write() -> Reply:
        dense = answer.embeddings.dense
        assert dense is not None
        return written(call, answer, rows, score.dense(dense[:1], dense[1:])[0])

    return await call.service.off(write)


async def root(call: Call) -> Reply:
    """Embed texts, or compare sentences, by the form of ``inputs``: what TEI's clients post to."""
    body: RootRequest = call.body
    return await (similarity if isinstance(body.inputs, Sentences) else embed)(call)


async def rerank(call: Call, body: RerankRequest) -> Reply:
    """Put texts in the order of a query: the weighted mean of M3's scores, best first."""
    service = call.service
    refuse_prompt(body.prompt_name)
    most = service.settings.max_client_batch_size
    if len(body.texts) > most:
        raise inputs.too_many(len(body.texts), most, "texts")
    if not body.texts:
        raise inputs.empty("texts")
    if not body.query and "" in body.texts:
        raise inputs.empty("inputs")
    weights = score.Weights(*service.settings.weights)
    ask = Ask(
        [body.query, *body.texts],
        weighted(service, weights),
        cut=body.cut(service.settings.auto_truncate),
    )
    answer = await service.embed(ask, call.sender)

    def write() -> Reply:
        found = answer.embeddings
        texts = found.take(range(1, len(found)))
        scores = score.matrix(found.take([0]), texts, weights).combined[0]
        ranks: list[dict[str, Any]] = [
            {"index": row, "score": scores[row]}
            | ({"text": body.texts[row]} if body.return_text else {})
            for row in np.argsort(-scores, kind="stable").tolist()
        ]
        return written(call, answer, ask.inputs, ranks)

    return await service.off(write)


def weighted(service: Service, weights: score.Weights) -> Heads:
    """Return the heads that the model has and that count.

    Raises:
        RefusedError: there is none.
    """
    heads = NO_HEADS
    for head in service.model.heads & Heads.ALL:
        if getattr(weights, head.names[0]) > 0:
            heads |= head
    if not heads:
        raise RefusedError(
            Kind.UNSUPPORTED, "Backend error: the model has none of the heads with a weight"
        )
    return heads


async def predict(call: Call) -> Reply:
    """Refuse: the model has no classes."""
    raise RefusedError(Kind.UNSUPPORTED, "Backend error: Model is not a classifier model")


async def info(call: Call) -> Reply:
    """Tell what is served, and how, with TEI's names."""
    model, settings = call.service.model, call.service.settings
    source = model.manifest.source
    precision = model.engine.name.partition(":")[2]
    found = Info(
        model_id=source.checkpoint,
        model_sha=source.revision,
        model_dtype=DTYPES.get(precision, precision or "float32"),
        served_model_name=call.service.name,
        model_type={"embedding": {"pooling": model.manifest.pooling}},
        max_concurrent_requests=settings.max_client_batch_size,  # TEI's counts texts
        max_input_length=model.max_length,
        max_batch_tokens=model.engine.limits.max_tokens,
        max_batch_requests=None,
        max_client_batch_size=settings.max_client_batch_size,
        auto_truncate=settings.auto_truncate,
        tokenization_workers=os.cpu_count() or 1,
        version=m3rt.__version__,
        sha=None,
        docker_label=None,
    )
    return json_reply(msgspec.to_builtins(found))


async def health(call: Call) -> Reply:
    """Tell whether requests are answered."""
    if not call.service.ready:
        raise RefusedError(Kind.NOT_READY, "unhealthy")
    return Reply(b"", 200, TEXT)


ROUTES = (
    Route("POST", "/embed", embed, shape, DenseRequest, list[list[float]]),
    Route("POST", "/embed_sparse", embed_sparse, shape, TextsRequest, list[list[SparseValue]]),
    Route("POST", "/embed_all", embed_all, shape, TextsRequest, list[list[list[float]]]),
    Route("POST", "/similarity", similarity, shape, SimilarityRequest, list[float]),
    Route("POST", "/", root, shape, RootRequest, list[list[float] | float]),
    Route("POST", "/invocations", root, shape, RootRequest, list[list[float] | float]),
    Route("POST", "/predict", predict, shape, PredictRequest),
    Route("GET", "/info", info, shape, reply=Info, observed=False),
    Route("GET", "/health", health, shape, media=(TEXT,), open=True, observed=False),
    Route("GET", "/ping", health, shape, media=(TEXT,), open=True, observed=False),
    *tei_tokens.ROUTES,
)
