"""Scores of a query and passages: their three heads, and the weighted mean of them.

POST /v1/m3/score   queries and passages to their scores; explained, if asked for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from m3rt import score
from m3rt.runtime import M3
from m3rt.score import Scores, Weights
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.native import (
    MaxLength,
    Outputs,
    Spent,
    Truncate,
    Usage,
    all_outputs,
    cut_of,
    limit,
    pieces,
    shape,
    timed,
    used,
)
from m3rt.server.http.replies import Reply, dumps
from m3rt.server.http.routes import Call, Route
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Cut, Input, Sender
from m3rt.types import Floats, Heads

MOST_CELLS = 2**20  # similarities of an explanation: some 10 MB of JSON

Share = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Triple = tuple[Share, Share, Share]


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A query, or several, and the passages to score against each.

    ``weights`` are those of dense, sparse and ColBERT scores in ``combined``; the server's own by
    default. ``outputs`` are the heads that are computed and count.
    """

    passages: list[str]
    query: str | None = None
    queries: list[str] | None = None
    outputs: Outputs = msgspec.field(default_factory=all_outputs)
    weights: Triple | None = None
    max_length: MaxLength = None
    truncate: Truncate = None
    explain: bool = False


class Matrices(msgspec.Struct):
    """A row for each query, a column for each passage. A head that did not count is null."""

    dense: list[list[float]] | None
    sparse: list[list[float]] | None
    colbert: list[list[float]] | None
    combined: list[list[float]]


class QueryExplained(msgspec.Struct):
    """The tokens of the query as the vocabulary has them, ``<s>`` first, ``</s>`` last.

    ``weights`` are their lexical weights: 0 for a token that is not scored; a token that comes
    twice has its greatest weight in both places. Null where sparse did not count.
    """

    tokens: list[str]
    weights: list[float] | None
    truncated: bool


class PassageExplained(QueryExplained):
    """A passage likewise, and how its tokens match the query's.

    ``alignment`` has a row for each token of the query but the first, and a column for each token
    of the passage but the first: products of ColBERT vectors. The mean of the rows' greatest
    values is the ColBERT score. Null where colbert did not count.
    """

    alignment: list[list[float]] | None


class Explained(msgspec.Struct):
    """Why the scores of the one query are what they are."""

    query: QueryExplained
    passages: list[PassageExplained]


class ScoreReply(msgspec.Struct):
    """``combined`` is the mean of the heads' scores by the weights; explain is null if not asked.

    ``weights`` are those that were used.
    """

    model: str
    scores: Matrices
    weights: list[float]
    explain: Explained | None
    usage: Usage
    timings: Spent


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of n queries and m passages, (n, m) or (n,), and what they were computed from."""

    scores: Scores
    answer: Answer  # the queries, then the passages


def usual(service: Service) -> Weights:
    """Return the weights of a request that gives none."""
    return Weights(*service.settings.weights)


def counted(model: M3, weights: Weights) -> Heads:
    """Return the heads that the model has and that have a weight: no others need be computed.

    Raises:
        RefusedError: there is none.
    """
    heads = Heads(0)
    for head in model.heads:
        if head in Heads.ALL and head.name and getattr(weights, head.name.lower()) > 0:
            heads |= head
    if not heads:
        raise RefusedError(
            Kind.INVALID, f"the heads of this model have no weight in {weights}", param="weights"
        )
    return heads


async def scored(
    call: Call,
    queries: Sequence[Input],
    passages: Sequence[Input],
    heads: Heads,
    weights: Weights,
    max_length: int | None = None,
    cut: Cut = Cut.RIGHT,
    *,
    sender: Sender | None = None,
    paired: bool = False,
) -> Scored:
    """Embed queries and passages in one request, and score each query against each passage.

    Args:
        call: whose service embeds.
        queries: n texts.
        passages: m texts.
        heads: that count.
        weights: of the heads in the combined score.
        max_length: tokens kept of a text.
        cut: of a text that is longer.
        sender: the call's own, where it is None.
        paired: score query i against passage i instead, (n,).

    Raises:
        RefusedError: no query or no passage, or the texts cannot be embedded.
        InputError: the weights of these heads do not sum to more than 0.
    """
    for texts, name in ((queries, "query"), (passages, "passage")):
        if not texts:
            raise RefusedError(Kind.EMPTY, f"there is no {name}, expected at least one")
    limit(call.service, len(queries) + len(passages), "passages")
    ask = Ask([*queries, *passages], heads, max_length, cut)
    answer = await call.service.embed(ask, sender or call.sender)

    def compute() -> Scored:
        n, embeddings = len(queries), answer.embeddings
        rest = range(n, len(embeddings))
        scorer = score.pairs if paired else score.matrix
        scores = scorer(embeddings.take(range(n)), embeddings.take(rest), weights)
        return Scored(scores, answer)

    return await call.service.off(compute)


async def post_score(call: Call) -> Reply:
    """Score passages against queries: dense, sparse, ColBERT and their weighted mean."""
    body: ScoreRequest = call.body
    if (body.query is None) == (body.queries is None):
        raise RefusedError(
            Kind.INVALID, "expected one of query, a text, and queries, texts", param="query"
        )
    queries = [body.query] if body.query is not None else body.queries or []
    if body.explain and len(queries) != 1:
        raise RefusedError(
            Kind.INVALID, f"one query is explained at a time, found {len(queries)}", param="explain"
        )
    weights = usual(call.service) if body.weights is None else Weights(*body.weights)
    cut = cut_of(body.truncate, call.service.settings.auto_truncate)
    heads = Heads.parse(body.outputs)
    found = await scored(call, queries, body.passages, heads, weights, body.max_length, cut)
    return await call.service.off(written, call.service, body, found, weights)


def written(service: Service, body: ScoreRequest, found: Scored, weights: Weights) -> Reply:
    """Write scores as JSON."""
    content = {
        "model": service.name,
        "scores": {
            "dense": found.scores.dense,
            "sparse": found.scores.sparse,
            "colbert": found.scores.colbert,
            "combined": found.scores.combined,
        },
        "weights": [weights.dense, weights.sparse, weights.colbert],
        "explain": explained(found, service.model) if body.explain else None,
        "usage": used(found.answer),
        "timings": timed(found.answer.timings),
    }
    return Reply(dumps(content))


def explained(found: Scored, model: M3) -> dict[str, Any]:
    """Tell of the tokens of one query and its passages: lexical weights, and how they match.

    Raises:
        RefusedError: the similarities of tokens are more than can be written.
    """
    lengths = found.answer.tokens.ids.lengths
    cells = int(lengths[0] * lengths[1:].sum())
    if cells > MOST_CELLS:
        raise RefusedError(
            Kind.TOO_LARGE,
            f"{cells} similarities of tokens are over the {MOST_CELLS} that are explained: give "
            "fewer passages, or a lower max_length",
            param="explain",
        )
    colbert = found.answer.embeddings.colbert
    texts: list[dict[str, Any]] = []
    for row, truncated in enumerate(found.answer.embeddings.truncated.tolist()):
        tokens, weights = pieces(found.answer, row, model)
        texts.append({"tokens": tokens, "weights": weights, "truncated": truncated})
        if row:
            texts[row]["alignment"] = None if colbert is None else aligned(colbert[0], colbert[row])
    return {"query": texts[0], "passages": texts[1:]}


def aligned(query: Floats, passage: Floats) -> Floats:
    """Return the products of each of the query's vectors with each of the passage's."""
    return np.asarray(query @ passage.T, np.float32)


EXAMPLE = {
    "query": "what is BGE-M3?",
    "passages": ["BGE-M3 is an embedding model", "a river in France"],
}
ROUTES = (
    Route("POST", "/v1/m3/score", post_score, shape, ScoreRequest, ScoreReply, example=EXAMPLE),
)
