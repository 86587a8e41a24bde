"""What ``m3rt eval`` found: engines on data sets, and how the engines differ.

Its JSON holds the values under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from m3rt import comparison, significance
from m3rt.datasets import Dataset
from m3rt.errors import ArtifactError, EngineError, InputError, M3Error, UnavailableError
from m3rt.evaluation import Evaluation
from m3rt.runtime import M3
from m3rt.significance import Difference

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Speed:
    """What a benchmark says of an engine."""

    engine: str
    mix: str
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Every engine on every data set."""

    created: str  # ISO 8601, UTC
    model: str  # the directory
    evaluations: tuple[Evaluation, ...]
    differences: tuple[Difference, ...]  # of each engine from the first
    speeds: tuple[Speed, ...]  # of m3rt bench, where its result was given
    failures: Mapping[str, str]  # engine to reason
    schema: int = field(default=SCHEMA)

    @property
    def engines(self) -> tuple[str, ...]:
        """Names, in the order in which they ran."""
        return tuple(dict.fromkeys(one.engine for one in self.evaluations))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names, in the order in which they were searched."""
        return tuple(dict.fromkeys(one.dataset for one in self.evaluations))

    def average(self, engine: str, mode: str, measure: str) -> float | None:
        """Return the mean of a measure over all data sets; None if one lacks it."""
        ran = [one for one in self.evaluations if one.engine == engine]
        values = [
            result.means.get(measure) for one in ran for result in one.modes if result.mode == mode
        ]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(self.datasets) else None


def run(
    model: Path,
    engines: Sequence[str],
    datasets: Sequence[Dataset],
    load: Callable[[str], M3],
    evaluate: Callable[[M3, Dataset], Evaluation],
    speeds: Sequence[Speed] = (),
) -> tuple[Quality, dict[str, M3Error]]:
    """Evaluate engines, one after another, on data sets.

    Args:
        model: its directory, for the result.
        engines: specs, as m3rt.load takes them; the first is what the others are compared with.
        datasets: what to search.
        load: opens the model with an engine.
        evaluate: measures it on a data set.
        speeds: what m3rt bench says.

    Returns:
        The result, and the error of each engine that could not run; the others' results stay.

    Raises:
        InputError: what was asked for does not fit the model.
    """
    created = datetime.now(UTC)
    found: dict[str, list[Evaluation]] = {}
    failures: dict[str, M3Error] = {}
    for spec in dict.fromkeys(engines):
        try:
            opened = load(spec)
            found[spec] = [evaluate(opened, dataset) for dataset in datasets]
        except (ArtifactError, EngineError, UnavailableError) as error:
            failures[spec] = error
    first, *others = found.values() if found else ([],)
    differences = [
        difference
        for other in others
        for before, now in zip(first, other, strict=True)
        for difference in significance.compare(before, now)
    ]
    quality = Quality(
        created=created.isoformat(timespec="seconds"),
        model=str(model),
        evaluations=tuple(one for many in found.values() for one in many),
        differences=tuple(differences),
        speeds=tuple(speeds),
        failures={spec: str(error) for spec, error in failures.items()},
    )
    return quality, failures


def speeds(path: Path, checkpoint: str) -> tuple[Speed, ...]:
    """Read the speeds of engines, on the first mix, from a result of m3rt bench.

    Raises:
        InputError: it is no such file, or of another model.
    """
    found = comparison.read(path)
    if (other := found["model"]["checkpoint"]) != checkpoint:
        raise InputError(
            f"{path} measures {other}, expected {checkpoint}: run m3rt bench with this model"
        )
    return tuple(
        Speed(run["engine"], mix["mix"], mix["tokens_per_second"]["median"])
        for run in found["engines"]
        for mix in run["mixes"][:1]
    )


def document(quality: Quality) -> dict[str, Any]:
    """Return a result as JSON has it."""
    bare = [replace(one, rankings={}) for one in quality.evaluations]
    found: dict[str, Any] = json.loads(
        json.dumps(asdict(replace(quality, evaluations=tuple(bare))))
    )
    for one in found["evaluations"]:
        del one["rankings"]  # a file of its own: --runs
    return found
