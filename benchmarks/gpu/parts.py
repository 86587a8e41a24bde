"""What is measured, the most important first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu.texts import Scale

ALL, DENSE = ("dense", "sparse", "colbert"), ("dense",)
STEP = 16384  # tokens of a batch of texts of one length, for those whose user chooses
NAMES = ("machine", "model", "parity", "mixed", "latency", "lengths", "paths", "budgets")


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure, of every contender of its part."""

    part: str
    texts: str  # the set
    heads: tuple[str, ...] = ALL  # of those that have all three; others give what they have
    length: int | None = None  # of texts of one length
    alone: bool = False  # latency of one text, in place of the rate of all
    budget: int | None = None  # tokens of a step
    rounds: int = 2

    @property
    def key(self) -> str:
        """Its name in the result."""
        what = "latency" if self.alone else "rate"
        budget = "" if self.budget is None else f", steps of {self.budget}"
        return f"{what}: {self.texts}, {'all' if self.heads == ALL else 'dense'}{budget}"


def measures(scale: Scale) -> Iterator[Measure]:
    """Give all figures but those of parity, in their order."""
    few = max(2, scale.rounds // 2)
    yield Measure("mixed", "mixed", rounds=few + 1)
    for length in scale.latency:
        yield Measure("latency", f"length {length}", length=length, alone=True, rounds=scale.rounds)
    yield Measure("mixed", "documents", rounds=few)
    yield Measure("mixed", "queries", rounds=few)
    yield Measure("mixed", "mixed", DENSE, rounds=few)
    for length in reversed(scale.paths):
        yield Measure("paths", f"length {length}", length=length, rounds=few)
    for budget in scale.budgets:
        for texts in ("mixed", "queries"):
            yield Measure("budgets", texts, budget=budget, rounds=few)
    for heads in (ALL, DENSE):
        for length in scale.lengths:
            yield Measure("lengths", f"length {length}", heads, length, rounds=few)
