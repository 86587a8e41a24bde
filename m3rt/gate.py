"""The quality gate: an engine of reduced precision against float32, on texts it was not made with.

Both run the same sample on the same machine. Judged are the outputs, and what a search would make
of them: for each head, and for the mixtures that the M3 paper uses, how far the rankings agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich.progress import Progress

from m3rt import agreement, evaluation, harm, measures, parity, sample, score, tolerances
from m3rt.api import start_any
from m3rt.artifact import Artifact
from m3rt.certificate import Certificate, failures
from m3rt.datasets import Dataset
from m3rt.errors import InputError, ParityError, UnavailableError
from m3rt.parity import Reference
from m3rt.protocol import ALL, BOTH, DENSE, MIXTURES, SPARSE
from m3rt.reranker import Reranker
from m3rt.runtime import M3
from m3rt.sample import AnySample, PairSample, Sample
from m3rt.tolerances import Tolerances
from m3rt.types import Embeddings, Floats, Heads

FLOAT32 = ("cpu:fp32", "openvino:fp32")  # what is compared with: the first that can run
TOP = 10
NDCG = "nDCG@10"
HEADS = Heads.ALL.names
PERCENTILES = (1, 5)
# part of a query's best lexical score, or best probability of a reranker, below which a document is
# as good as not found: int8 moves weights around zero, and with them the order of documents that
# have nothing to do with the query
FAINT = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What an engine is held to."""

    tolerances: Mapping[str, float] = field(default_factory=dict)  # in place of the precision's
    sample: AnySample | None = None  # None: the one that is built in
    dataset: Dataset | None = None  # the user's own, to measure retrieval on
    recover: bool = True  # whether a build may raise the precision of layers to pass


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """What float32 gives on this machine."""

    engine: str
    sample: AnySample
    found: Embeddings | Floats  # of a reranker, the scores of the pairs
    dataset: Dataset | None
    ndcg: Mapping[str, float]  # by mode, on the data set


def needed(precision: str) -> bool:
    """Whether an engine computes in less than float32."""
    return precision != "fp32"


def baseline(
    artifact: Artifact, texts: AnySample, dataset: Dataset | None, bars: Progress
) -> Baseline:
    """Run the sample, and the data set if there is one, in float32.

    Raises:
        UnavailableError: no engine of this machine computes in float32, or ir-measures is missing.
    """
    model = start_any(artifact, exact())
    found = parity.encode(model, texts.ids, f"run the model: {model.engine.name}", bars)
    measured = {} if dataset is None else ndcg(model, dataset, bars)
    return Baseline(model.engine.name, texts, found, dataset, measured)


def verify(
    artifact: Artifact, engine: str, terms: Terms, bars: Progress
) -> tuple[dict[str, Any], Certificate | None]:
    """Compare an engine with the checkpoint, and repeat its certificate, if it is to have one.

    Args:
        artifact: the model directory.
        engine: name, with a precision if you like.
        terms: tolerances are changes to those of the build, or of the precision.
        bars: gets the bars.

    Returns:
        The figures of m3rt.parity, and the certificate; None for float32.

    Raises:
        ParityError: a figure is out of tolerance; says which head, and which layers if int8 was
            built here.
    """
    choice = parity.usable(engine, artifact)
    build = artifact.manifest.builds.get(str(choice))
    limits = tolerances.of(choice.precision, terms.tolerances)
    if build and build.certificate:
        limits = replace(build.certificate.tolerances, **terms.tolerances)
    reduced = needed(choice.precision)
    if reduced:
        if terms.dataset is not None:
            check(artifact, terms.dataset)
        texts = terms.sample or sample.built_in(artifact)
        expected = baseline(artifact, texts, terms.dataset, bars)
    model = start_any(artifact, str(choice))
    reference = Reference.read(artifact.path / parity.REFERENCE)
    figures, failed = parity.judge(model, reference, limits, bars)
    certificate = None
    if reduced:
        certificate = measured(certify(model, expected, limits, bars), model, expected, bars)
        failed = (*failed, *certificate.failures)
    if failed:
        worst = build.recipe.get("worst", {}) if build else {}
        heads = harm.heads_of(failure.head for failure in failed)
        layers = harm.told({head: worst[head] for head in heads if head in worst})
        reasons = "; ".join([*map(str, failed), *([layers] if layers else [])])
        raise ParityError(
            f"the {choice} engine differs from the checkpoint: {reasons}", figures, certificate
        )
    return figures, certificate


def exact() -> str:
    """Return the engine that is compared with.

    Raises:
        UnavailableError: there is none here.
    """
    reasons = []
    for name in FLOAT32:
        try:
            return str(parity.usable(name))
        except UnavailableError as error:
            reasons.append(str(error))
    raise UnavailableError(f"the quality gate compares with float32: {'; '.join(reasons)}")


def certify(
    model: M3 | Reranker, expected: Baseline, limits: Tolerances, bars: Progress
) -> Certificate:
    """Run the sample and compare."""
    name, texts = model.engine.name, expected.sample
    found = parity.encode(model, texts.ids, f"quality gate: {name}", bars)
    figures = compare(expected.found, found, texts, limits)
    return Certificate(
        engine=name,
        against=expected.engine,
        ok=not failures(figures, limits),
        texts=texts.described(),
        tolerances=limits,
        figures=figures,
    )


def measured(
    certificate: Certificate, model: M3 | Reranker, expected: Baseline, bars: Progress
) -> Certificate:
    """Add retrieval on the data set to a certificate."""
    if expected.dataset is None:
        return certificate
    figures = {
        mode: {
            "ndcg10_float32": expected.ndcg[mode],
            "ndcg10": value,
            "ndcg10_loss": loss(expected.ndcg[mode], value),
        }
        for mode, value in ndcg(model, expected.dataset, bars).items()
    }
    ok = certificate.ok and not failures(figures, certificate.tolerances)
    return replace(certificate, ok=ok, dataset=expected.dataset.name, retrieval=figures)


def loss(before: float, after: float) -> float:
    """Return which part is lost; negative if more was found than before."""
    return (before - after) / before if before else -after


def ndcg(model: M3 | Reranker, dataset: Dataset, bars: Progress) -> dict[str, float]:
    """Return the mean nDCG@10 of each mode that the model has heads for."""
    assert isinstance(model, M3)  # see check
    total = len(dataset.queries) + len(dataset.documents)
    task = bars.add_task(f"{dataset.name}: {model.engine.name}", total=total)
    found = evaluation.evaluate(
        model, dataset, wanted=(NDCG,), progress=lambda n: bars.advance(task, n)
    )
    return {one.mode: one.means[NDCG] for one in found.modes}


def check(artifact: Artifact, dataset: Dataset) -> None:
    """Refuse a data set that nDCG cannot be measured on, before the time is spent.

    Raises:
        InputError: it has answers in place of judgments, or the model is a reranker.
        UnavailableError: ir-measures is not installed.
    """
    if artifact.manifest.is_reranker:
        raise InputError(
            f"{artifact.path} is a reranker, and retrieves nothing on {dataset.name}: leave out "
            "--dataset. The gate compares its scores and rankings; for those of your own pairs "
            "pass --gate-texts, as m3rt rerank reads them"
        )
    if not dataset.qrels:
        raise InputError(
            f"{dataset.name} has answers in place of judgments, and no nDCG: expected judgments"
        )
    measures.parse(dataset, (NDCG,))


def compare(
    expected: Embeddings | Floats,
    found: Embeddings | Floats,
    texts: AnySample,
    limits: Tolerances,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each head and mixture that both have, or of a reranker's scores."""
    if isinstance(texts, PairSample):
        assert not isinstance(expected, Embeddings)
        assert not isinstance(found, Embeddings)
        return {"score": of_pairs(expected, found, texts, limits)}
    assert isinstance(expected, Embeddings)
    assert isinstance(found, Embeddings)
    figures: dict[str, dict[str, Any]] = parity.differences(expected, found, limits)
    if "dense" in figures:
        figures["dense"] |= percentiles(expected.dense, found.dense)
    if "colbert" in figures:
        rows = (np.concatenate(one.colbert or []) for one in (expected, found))
        figures["colbert"] |= percentiles(*rows)
    left, right = scores(expected, texts), scores(found, texts)
    for mixture in left:
        pairs = list(rankings(left[mixture], right[mixture], texts))
        figures[mixture] = figures.get(mixture, {}) | alike(pairs)
    return figures


def of_pairs(
    expected: Floats, found: Floats, texts: PairSample, limits: Tolerances
) -> dict[str, float]:
    """Return the figures of a reranker's scores (n,) and of the rankings they give."""
    figures = parity.score_figures(expected, found, limits.score_error)
    figures["error_p95"] = float(np.percentile(np.abs(expected - found), 95))
    bounds = [(a, b) for a, b in itertools.pairwise(texts.starts) if b - a > 1]
    return figures | alike([(relevant(expected[a:b]), relevant(found[a:b])) for a, b in bounds])


def relevant(scores: Floats) -> Floats:
    """Return by how much the scores (m,) of a query's documents exceed what is as good as nothing.

    That is a hundredth of the best one's probability, which is the sigmoid of its score: a
    reranker's scores of unrelated documents are all alike, and their order holds no meaning.
    """
    raw = scores.astype(np.float64)
    least = np.log(FAINT) - np.logaddexp(0, -raw.max())  # the logarithm of that probability
    floor = least - np.log1p(-np.exp(least))
    above: Floats = np.maximum(raw - floor, 0).astype(np.float32)
    return above


def percentiles(expected: Floats | None, found: Floats | None) -> dict[str, float]:
    """Return low percentiles of the cosines over rows."""
    assert expected is not None
    assert found is not None
    values = np.percentile(parity.cosine_of(expected, found), PERCENTILES)
    names = [f"cosine_p{percent}" for percent in PERCENTILES]
    return dict(zip(names, values.tolist(), strict=True))


def scores(found: Embeddings, texts: Sample) -> dict[str, Floats]:
    """Score every query against every document (q, d), by head and mixture."""
    queries, documents = found.take(texts.queries), found.take(texts.documents)
    by_head: dict[str, Floats] = {}
    if queries.dense is not None and documents.dense is not None:
        by_head["dense"] = score.dense(queries.dense, documents.dense)
    if queries.sparse is not None and documents.sparse is not None:
        lexical = score.lexical(queries.sparse, documents.sparse)
        faint = lexical < FAINT * lexical.max(axis=1, keepdims=True)
        by_head["sparse"] = np.where(faint, np.float32(0), lexical)
    if queries.colbert is not None and documents.colbert is not None:
        by_head["colbert"] = score.maxsim(queries.colbert, documents.colbert)
    weights = MIXTURES["paper"]
    mixtures = {
        name: mixed.mean(by_head)
        for name, mixed, heads in ((BOTH, weights.both, (DENSE, SPARSE)), (ALL, weights.all, HEADS))
        if by_head.keys() >= set(heads)
    }
    return by_head | mixtures


def alike(pairs: Sequence[tuple[Floats, Floats]]) -> dict[str, float]:
    """Return how far the rankings by each query's scores on both sides agree, as means."""
    overlaps = [agreement.overlap(a, b, TOP) for a, b in pairs]
    found_any = [overlap for overlap in overlaps if overlap is not None]
    return {
        "top10_overlap": float(np.mean(found_any)) if found_any else 1.0,
        "rank_correlation": float(np.mean([agreement.correlation(a, b) for a, b in pairs])),
    }


def rankings(expected: Floats, found: Floats, texts: Sample) -> Iterator[tuple[Floats, Floats]]:
    """Give each query's scores on both sides, without its own where it is a document, too."""
    for i, query in enumerate(texts.queries):
        others = texts.documents != query
        yield expected[i, others], found[i, others]
