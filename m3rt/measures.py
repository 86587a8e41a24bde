"""Measures of rankings, by ir-measures, which runs trec_eval's own code (pytrec_eval)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from m3rt import answers
from m3rt.datasets import Dataset
from m3rt.errors import InputError, missing
from m3rt.ranking import Ranking

# As papers name them, and as ir-measures does. Recall of answers, as MKQA has it, is the share of
# queries with a right document among the first k (RocketQA's definition): trec_eval's success.
NAMES: Mapping[str, str] = {"nDCG@10": "nDCG@10", "Recall@100": "R@100", "MRR": "RR"}
ANSWER_NAMES: Mapping[str, str] = {"Recall@20": "Success@20", "Recall@100": "Success@100"}
ANSWER_DEPTH = 100


def names(dataset: Dataset) -> tuple[str, ...]:
    """Return the measures that are usual for a data set; the first is the one that counts."""
    return tuple(ANSWER_NAMES if dataset.answers else NAMES)


def parse(dataset: Dataset, wanted: Sequence[str]) -> list[Any]:
    """Return ir-measures' measures of these names.

    Args:
        dataset: decides what a recall is.
        wanted: names of NAMES, or of ir-measures, such as P@5 and nDCG@20.

    Raises:
        InputError: there is no such measure, or it would need more than a ranking and judgments.
        UnavailableError: ir-measures is not installed, or for answers, regex.
    """
    library = imported()
    known = ANSWER_NAMES if dataset.answers else NAMES
    if dataset.answers:
        answers.words()  # is there, or says how to get it
    found = []
    for name in wanted:
        try:
            measure = library.parse_measure(known.get(name, name))
            measure.validate_params()
        except (NameError, ValueError, KeyError, TypeError, AssertionError, SyntaxError) as error:
            raise InputError(
                f"no measure {name!r} ({error}); there are {', '.join(known)}, and those of "
                "ir-measures, such as P@5"
            ) from error
        if not library.DefaultPipeline.supports(measure):
            raise InputError(f"{name} cannot be measured here: ir-measures lacks a package for it")
        found.append(measure)
    return found


def measure(
    dataset: Dataset, rankings: Mapping[str, Ranking], wanted: Sequence[str]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return each measure's value of every query, in the order of the queries, by mode.

    A query for which nothing was found has the least value.

    Raises:
        InputError: there is no such measure.
        UnavailableError: ir-measures is not installed.
    """
    measures = parse(dataset, wanted)
    qrels = dict(dataset.qrels) if dataset.qrels else by_answers(dataset, rankings)
    evaluator = imported().evaluator(measures, qrels)
    found = {}
    for mode, ranking in rankings.items():
        values = {
            (metric.measure, metric.query_id): float(metric.value)
            for metric in evaluator.iter_calc(run(dataset, ranking))
        }
        found[mode] = {
            name: tuple(values[one, query] for query in dataset.queries.ids)
            for name, one in zip(wanted, measures, strict=True)
        }
    return found


def run(dataset: Dataset, ranking: Ranking) -> dict[str, dict[str, float]]:
    """Return a ranking as ir-measures takes it.

    Scores are places counted from the end: trec_eval sorts by score and then by id, and must not
    part what stands together here.
    """
    ids, k = dataset.documents.ids, ranking.documents.shape[1]
    found = {}
    for query, row in zip(dataset.queries.ids, ranking.documents.tolist(), strict=True):
        found[query] = {
            ids[document]: float(k - i) for i, document in enumerate(row) if document >= 0
        }
    return found


def by_answers(dataset: Dataset, rankings: Mapping[str, Ranking]) -> dict[str, dict[str, int]]:
    """Judge the first documents of each query, in any ranking, by the answers that they hold."""
    documents = dataset.documents
    qrels = {}
    for i, query in enumerate(dataset.queries.ids):
        first = [ranking.documents[i, :ANSWER_DEPTH].tolist() for ranking in rankings.values()]
        some = sorted({document for row in first for document in row if document >= 0})
        right = answers.right(dataset.answers[query], [documents.texts[j] for j in some])
        qrels[query] = {documents.ids[some[j]]: 1 for j in right}
    return qrels


@cache
def imported() -> Any:
    """Import ir-measures.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import ir_measures
        import pytrec_eval  # noqa: F401
    except ImportError as error:
        raise missing("ir-measures", "eval", "measuring retrieval") from error
    return ir_measures
