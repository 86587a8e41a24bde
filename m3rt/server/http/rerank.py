"""Rerankers' and vLLM's scoring requests, answered with M3's own scores.

POST /rerank      documents in the order of their scores: TEI's form if it has texts, else vLLM's
POST /v1/rerank   Jina's and vLLM's form
POST /v2/rerank   Cohere's
POST /score       a score for each pair of texts, as vLLM has it; /v1/score likewise

A score is the weighted mean of the dense, the lexical and the ColBERT score. Cosines are at most
1, lexical scores have no bound: a score above 1 is rare, and possible, as is one below 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from m3rt.score import Weights
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import cohere, tei, tei_forms, vllm
from m3rt.server.http.exchange import decode
from m3rt.server.http.native import Usage, used
from m3rt.server.http.replies import Reply, dumps
from m3rt.server.http.routes import Call, Route
from m3rt.server.http.scoring import Scored, Triple, counted, scored, usual
from m3rt.server.work import Cut


class Item(msgspec.Struct):
    """A text in an object."""

    text: str


class RerankRequest(msgspec.Struct):
    """A query and the documents to order.

    ``weights`` are those of dense, lexical and ColBERT scores; the server's own by default.
    ``top_n`` is how many results are wanted, 0 for all. ``max_tokens_per_doc`` and
    ``truncate_prompt_tokens`` are tokens kept of a text, the query included. A ``priority`` above
    0 is bulk. ``model`` and other fields are not read.
    """

    query: str | Item
    documents: Annotated[list[str | Item], msgspec.Meta(min_length=1)]
    model: str | None = None
    top_n: Annotated[int, msgspec.Meta(ge=0)] | None = None
    return_documents: bool = True
    weights: Triple | None = None
    max_tokens_per_doc: Annotated[int, msgspec.Meta(ge=1)] | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: int = 0


class Ranked(msgspec.Struct):
    """A document, by its place in the request."""

    index: int
    relevance_score: float
    document: Item | msgspec.UnsetType = msgspec.UNSET


class RerankReply(msgspec.Struct):
    """The best documents first; of equal ones, the first of the request."""

    id: str
    model: str
    usage: Usage
    results: list[Ranked]


class ScoreRequest(msgspec.Struct):
    """Two sides of pairs: as many texts on both, or one on the first for all of the second.

    They are called text_1 and text_2, queries and documents, queries and items, or data_1 and
    data_2. Other fields are those of rerank.
    """

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    model: str | None = None
    weights: Triple | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: int = 0


class PairScore(msgspec.Struct):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class ScoreReply(msgspec.Struct):
    """Scores in the order of the pairs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: Usage


SIDES = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)


class Which(msgspec.Struct):
    """What tells TEI's form from the others'."""

    texts: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


async def rerank_either(call: Call) -> Reply:
    """Order texts by their scores: TEI's request if it has texts, else vLLM's with documents."""
    which = await decode(call.service, call.body, Which)
    if which.texts is not msgspec.UNSET:
        call.shape = tei_forms.shape
        return await tei.rerank(call, await decode(call.service, call.body, tei.RerankRequest))
    call.body = await decode(call.service, call.body, RerankRequest)
    return await rerank(call)


async def rerank(call: Call) -> Reply:
    """Order documents by their scores, the best first."""
    body: RerankRequest = call.body
    weights = weights_of(call, body.weights)
    query, *texts = (
        item if isinstance(item, str) else item.text for item in (body.query, *body.documents)
    )
    tokens = body.truncate_prompt_tokens
    found = await scored(
        call,
        [query],
        texts,
        counted(call.service.model, weights),
        weights,
        body.max_tokens_per_doc or vllm.kept(tokens),
        cut_of(call, body.max_tokens_per_doc or tokens, body.truncation_side),
        sender=vllm.prioritised(call.sender, body.priority),
    )
    return await call.service.off(ranked, call, body, texts, found)


def ranked(call: Call, body: RerankRequest, texts: Sequence[str], found: Scored) -> Reply:
    """Write documents in the order of their scores."""
    scores = found.scores.combined[0]
    results: list[dict[str, Any]] = []
    for index in np.argsort(-scores, kind="stable")[: body.top_n or None].tolist():
        item: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            item["document"] = {"text": texts[index]}
        results.append(item)
    content = {
        "id": f"rerank-{call.sender.request_id}",
        "model": call.service.name,
        "usage": used(found.answer),
        "results": results,
    }
    return Reply(dumps(content))


async def score(call: Call) -> Reply:
    """Score pairs of texts as vLLM's /score does."""
    body: ScoreRequest = call.body
    left, right = sides(body)
    if len(left) not in (1, len(right)):
        raise RefusedError(
            Kind.INVALID, f"{len(left)} and {len(right)} texts are no pairs: expected 1:N or N:N"
        )
    weights = weights_of(call, body.weights)
    found = await scored(
        call,
        left,
        right,
        counted(call.service.model, weights),
        weights,
        vllm.kept(body.truncate_prompt_tokens),
        cut_of(call, body.truncate_prompt_tokens, body.truncation_side),
        sender=vllm.prioritised(call.sender, body.priority),
        paired=len(left) == len(right),
    )
    return await call.service.off(listed, call, found)


def sides(body: ScoreRequest) -> tuple[list[str], list[str]]:
    """Return both sides of the pairs.

    Raises:
        RefusedError: there are not both of one kind.
    """
    for names in SIDES:
        first, second = (getattr(body, name) for name in names)
        if first is not None and second is not None:
            return listed_texts(first), listed_texts(second)
    names_text = ", ".join(" and ".join(names) for names in SIDES)
    raise RefusedError(Kind.MALFORMED, f"expected two of: {names_text}")


def listed_texts(texts: str | list[str]) -> list[str]:
    """Return one text, or several, as a list."""
    return [texts] if isinstance(texts, str) else texts


def listed(call: Call, found: Scored) -> Reply:
    """Write the scores of pairs."""
    scores = enumerate(found.scores.combined.reshape(-1))
    content = {
        "id": f"score-{call.sender.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": call.service.name,
        "data": [{"index": i, "object": "score", "score": value} for i, value in scores],
        "usage": used(found.answer),
    }
    return Reply(dumps(content))


def weights_of(call: Call, weights: Triple | None) -> Weights:
    """Return the weights of a request, or the server's own."""
    return usual(call.service) if weights is None else Weights(*weights)


def cut_of(call: Call, tokens: int | None, side: str | None) -> Cut:
    """Return how to cut a text that is too long."""
    return vllm.cut_of(tokens, side, call.service)


EXAMPLE = {"query": "what is BGE-M3?", "documents": ["an embedding model", "a river"], "top_n": 1}
PAIR = {"text_1": "what is BGE-M3?", "text_2": ["an embedding model", "a river"]}
ROUTES = (
    Route(
        "POST",
        "/rerank",
        rerank_either,
        vllm.shape,
        bytes,
        (RerankReply, list[tei.Rank]),
        form=(RerankRequest, tei.RerankRequest),
        shapes=(tei_forms.shape,),
        example=EXAMPLE,
    ),
    Route("POST", "/v1/rerank", rerank, vllm.shape, RerankRequest, RerankReply, example=EXAMPLE),
    Route("POST", "/v2/rerank", rerank, cohere.shape, RerankRequest, RerankReply, example=EXAMPLE),
    Route("POST", "/score", score, vllm.shape, ScoreRequest, ScoreReply, example=PAIR),
    Route("POST", "/v1/score", score, vllm.shape, ScoreRequest, ScoreReply, example=PAIR),
)
