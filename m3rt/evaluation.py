"""Retrieval quality of a model on a data set, in every mode that it has heads for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import fmean

from m3rt import __version__, measures, protocol, search
from m3rt.datasets import Dataset
from m3rt.protocol import Protocol
from m3rt.ranking import Ranking
from m3rt.runtime import M3, Progress
from m3rt.search import Effort

PACKAGES = ("ir-measures", "pytrec-eval-terrier", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True)
class ModeResult:
    """One mode: measures by name, of each query and on average."""

    mode: str
    means: Mapping[str, float]
    per_query: Mapping[str, tuple[float, ...]]  # in the order of Evaluation.query_ids


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An engine on a data set. Its values stand in the JSON under the same names."""

    dataset: str
    layout: str
    language: str | None
    checkpoint: str
    engine: str
    protocol: Protocol  # with the modes and lengths that were run
    measures: tuple[str, ...]  # the first is the one that counts
    modes: tuple[ModeResult, ...]
    query_ids: tuple[str, ...]
    queries: Effort
    documents: Effort
    encode_seconds: float
    search_seconds: float
    versions: Mapping[str, str]
    rankings: Mapping[str, Ranking] = field(repr=False, compare=False, default_factory=dict)

    def __getitem__(self, mode: str) -> ModeResult:
        """Return the result of a mode."""
        return next(one for one in self.modes if one.mode == mode)


def evaluate(
    model: M3,
    dataset: Dataset,
    how: Protocol | None = None,
    *,
    wanted: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure retrieval.

    Args:
        model: on the engine to measure.
        dataset: what to search.
        how: modes, weights, depth and lengths; default: the paper's, or MLDR's own for its layout.
        wanted: measures, see measures.py; default: nDCG@10, Recall@100 and MRR, or for answers
            Recall@20 and Recall@100.
        progress: called with the number of texts just encoded; queries and documents count.

    Raises:
        InputError: a mode needs a head that the model lacks, or there is no such measure.
        UnavailableError: ir-measures is not installed.
        EngineError: the engine failed, or gave NaN or Inf.
    """
    used = (how or protocol.of(dataset.layout)).fitted(model)
    names = tuple(wanted or measures.names(dataset))
    measures.parse(dataset, names)  # before the time is spent
    found = search.run(
        model,
        dataset.documents,
        dataset.queries,
        used,
        exclude_same_id=dataset.exclude_same_id,
        progress=progress,
    )
    values = measures.measure(dataset, found.rankings, names)
    return Evaluation(
        dataset=dataset.name,
        layout=dataset.layout,
        language=dataset.language,
        checkpoint=model.manifest.source.checkpoint,
        engine=model.engine.name,
        protocol=used,
        measures=names,
        modes=tuple(
            ModeResult(mode, {name: fmean(of) for name, of in measured.items()}, measured)
            for mode, measured in values.items()
        ),
        query_ids=dataset.queries.ids,
        queries=found.queries,
        documents=found.documents,
        encode_seconds=found.encode_seconds,
        search_seconds=found.search_seconds,
        versions={"m3rt": __version__} | {name: version(name) for name in PACKAGES},
        rankings=found.rankings,
    )
