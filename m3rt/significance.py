"""Whether two engines differ in retrieval, or only by chance, query by query.

The test is the paired randomisation test (Fisher's; Smucker et al., CIKM 2007, recommend it for
retrieval): were the engines alike, each query's difference could as well have the other sign. It
and Student's paired t-test are scipy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from m3rt.errors import InputError, missing
from m3rt.evaluation import Evaluation

RESAMPLES = 9_999  # so p is a multiple of 0.0001; exact where there are fewer ways to draw signs
BATCH = 2**22  # signs drawn at once
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of one engine against that of another, the baseline."""

    dataset: str
    mode: str
    measure: str
    baseline: str  # an engine
    engine: str
    before: float  # the baseline's mean
    now: float
    difference: float
    percent: float | None  # of the baseline's mean; None where that is 0
    low: float | None  # of the difference: where it lies with 95 % confidence, by Student's t
    high: float | None
    p: float | None  # two-sided, of the paired randomisation test
    p_t: float | None  # two-sided, of the paired t-test
    better: int  # queries
    worse: int
    same: int


def compare(baseline: Evaluation, other: Evaluation) -> list[Difference]:
    """Compare two engines on one data set, in each mode and measure that both have.

    Raises:
        InputError: they did not answer the same queries.
        UnavailableError: scipy is not installed.
    """
    if baseline.dataset != other.dataset or baseline.query_ids != other.query_ids:
        raise InputError(
            f"{baseline.dataset} with {len(baseline.query_ids)} queries and {other.dataset} with "
            f"{len(other.query_ids)} are not compared: expected the same queries"
        )
    results = {result.mode: result for result in other.modes}
    found = []
    for result in baseline.modes:
        for measure in baseline.measures:
            if result.mode in results and measure in other.measures:
                before = np.array(result.per_query[measure])
                now = np.array(results[result.mode].per_query[measure])
                figures = paired(before, now)
                found.append(
                    Difference(
                        dataset=baseline.dataset,
                        mode=result.mode,
                        measure=measure,
                        baseline=baseline.engine,
                        engine=other.engine,
                        **figures,
                    )
                )
    return found


def paired(before: Any, now: Any) -> dict[str, Any]:
    """Test two series of values, (n,) each, of the same queries.

    Returns:
        The fields of Difference that are figures.
    """
    stats = imported()
    change = now - before
    mean = float(before.mean())
    figures: dict[str, Any] = {
        "before": mean,
        "now": float(now.mean()),
        "difference": float(change.mean()),
        "percent": 100 * float(change.mean()) / mean if mean else None,
        "better": int((change > 0).sum()),
        "worse": int((change < 0).sum()),
        "same": int((change == 0).sum()),
    }
    if not change.any():  # nothing to test; the libraries would divide by zero
        return figures | {"low": 0.0, "high": 0.0, "p": 1.0, "p_t": 1.0}
    if len(change) == 1:  # one query says nothing about others
        return figures | {"low": None, "high": None, "p": None, "p_t": None}
    moved = change[change != 0]  # the sign of 0 changes no sum
    figures["p"] = 1.0
    if len(moved) > 1:
        randomised = stats.permutation_test(
            (moved,),
            lambda values, axis: values.sum(axis=axis),
            permutation_type="samples",  # of one sample: it flips signs
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH // len(moved)),
            rng=np.random.default_rng(0),  # the same answer every time
        )
        figures["p"] = float(randomised.pvalue)
    if np.ptp(change) < 1e-12:  # every query changes alike: no spread to estimate
        return figures | {"low": float(change[0]), "high": float(change[0]), "p_t": 0.0}
    student = stats.ttest_rel(now, before)
    interval = student.confidence_interval(CONFIDENCE)
    return figures | {
        "low": float(interval.low),
        "high": float(interval.high),
        "p_t": float(student.pvalue),
    }


def imported() -> Any:
    """Import scipy.stats.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise missing("scipy", "eval", "comparing engines") from error
    return stats
