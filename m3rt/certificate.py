"""What the quality gate found of an engine, as the manifest keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from m3rt.tolerances import Tolerances

Figures = Mapping[str, Mapping[str, Any]]  # by head or mixture of heads, by name

# head or None for any, figure, tolerance or the limit itself, whether the limit is the most
CHECKS: tuple[tuple[str | None, str, str | float, bool], ...] = (
    ("dense", "cosine_min", "dense_cosine", False),
    ("colbert", "cosine_min", "colbert_cosine", False),
    ("colbert", "maxsim_error_max", "maxsim_error", True),
    ("sparse", "weight_error_max", "weight_error", True),
    ("sparse", "keys_differ", 0, True),
    ("score", "error_max", "score_error", True),
    ("score", "correlation", "score_correlation", False),
    (None, "top10_overlap", "top10_overlap", False),
    (None, "rank_correlation", "rank_correlation", False),
    (None, "ndcg10_loss", "ndcg_loss", True),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One figure that is out of tolerance."""

    head: str  # or heads, as in dense+sparse
    figure: str
    value: float
    limit: float
    most: bool  # whether the limit is the most it may be

    def __str__(self) -> str:
        bound = "at most" if self.most else "at least"
        return f"{self.head} {self.figure} is {self.value}, expected {bound} {self.limit}"


@dataclass(frozen=True, slots=True)
class Texts:
    """What an engine was judged on."""

    name: str
    sha256: str  # of the token ids
    queries: int
    documents: int  # of a reranker's, those of all queries together
    tokens: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """How an engine of reduced precision compares with float32, on texts it was not made with."""

    engine: str  # cpu:int8
    against: str  # cpu:fp32, on the same machine
    ok: bool
    texts: Texts
    tolerances: Tolerances
    figures: Figures
    dataset: str | None = None  # the name of the user's own retrieval set
    retrieval: Figures = field(default_factory=dict)  # on that, by head or mixture of heads

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What is out of tolerance."""
        limits = self.tolerances
        return (*failures(self.figures, limits), *failures(self.retrieval, limits))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Certificate:
        """Read one from the manifest; what a later version may have added is passed over.

        Raises:
            KeyError, TypeError: it is damaged.
        """
        rest = known(cls, data)
        return cls(
            texts=Texts(**known(Texts, rest.pop("texts"))),
            tolerances=Tolerances(**known(Tolerances, rest.pop("tolerances"))),
            **rest,
        )


def known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are fields of a dataclass."""
    return {
        field.name: data[field.name] for field in dataclasses.fields(kind) if field.name in data
    }


def check_of(head: str, figure: str) -> tuple[str | float, bool] | None:
    """Return the tolerance of a figure, and whether it is the most; None: it is only reported."""
    found = (check for check in CHECKS if check[0] in (None, head) and check[1] == figure)
    return next(((tolerance, most) for _, _, tolerance, most in found), None)


def limit_of(limits: Tolerances, tolerance: str | float) -> float:
    """Return the value of a tolerance, which may be a number itself."""
    return float(getattr(limits, tolerance)) if isinstance(tolerance, str) else tolerance


def failures(figures: Figures, limits: Tolerances) -> tuple[Failure, ...]:
    """Return which figures, by head and name, are out of tolerance."""
    return tuple(failing(figures, limits))


def failing(figures: Figures, limits: Tolerances) -> Iterator[Failure]:
    """Give the figures that are out of tolerance."""
    for head, of_head in figures.items():
        for figure, value in of_head.items():
            if (check := check_of(head, figure)) is None:
                continue
            tolerance, most = check
            limit = limit_of(limits, tolerance)
            # written so that NaN fails
            if not (value <= limit if most else value >= limit):
                yield Failure(head, figure, value, limit, most)
