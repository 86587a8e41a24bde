"""The values that pass from stage to stage.

Letters in shapes: n texts, t tokens in all, t_i tokens of text i, h the hidden size (1024 for
BGE-M3), d the ColBERT width (1024 for BGE-M3). All arrays are numpy; float32 unless said.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

S = TypeVar("S", bound=np.generic)
Ints = NDArray[np.int32]
Offsets = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Heads(enum.Flag):
    """The outputs to compute. ALL means every head the model has.

    SCORE is the one head of a reranker, which no embedder has; it is not part of ALL.
    """

    DENSE = enum.auto()
    SPARSE = enum.auto()
    COLBERT = enum.auto()
    SCORE = enum.auto()
    ALL = DENSE | SPARSE | COLBERT

    @property
    def names(self) -> tuple[str, ...]:
        """Names in a fixed order, as the command line and the manifest write them."""
        return tuple(head.name.lower() for head in self if head.name)

    @classmethod
    def parse(cls, names: Iterable[str]) -> Heads:
        """Return the heads of these names; ``all`` stands for an embedder's three.

        Raises:
            ValueError: there is no head of that name.
        """
        heads = cls(0)
        for name in names:
            try:
                heads |= cls[name.strip().upper()]
            except KeyError:
                raise ValueError(
                    f"no head {name!r}; there are dense, sparse, colbert and all, and score, "
                    "which is a reranker's"
                ) from None
        return heads


NO_HEADS = Heads(0)


class Pooling(enum.StrEnum):
    """What the dense vector is made of."""

    CLS = "cls"  # the first token's vector
    MEAN = "mean"  # the mean of all tokens' vectors, special tokens included
    MCLS = "mcls"  # the mean of the CLS tokens' vectors, of which a long text has more: m3rt.mcls


@dataclass(frozen=True, slots=True, eq=False)
class Ragged(Generic[S]):
    """Rows of unequal length, end to end: row i is ``values[starts[i]:starts[i + 1]]``."""

    values: NDArray[S]  # (t, ...)
    starts: Offsets  # (n + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> NDArray[S]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        i %= len(self)
        return self.values[self.starts[i] : self.starts[i + 1]]

    def __iter__(self) -> Iterator[NDArray[S]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> Offsets:
        """Length of each row, (n,)."""
        return np.diff(self.starts)

    def take(self, rows: Sequence[int] | Offsets) -> Ragged[S]:
        """Return the given rows, in the given order, as a copy."""
        old = self.starts[:-1][rows]
        lengths = self.starts[1:][rows] - old  # not self.lengths: that is of all rows
        starts = offsets(lengths)
        # index of every value wanted: its row's old start plus its place in the row
        shift = np.repeat(old - starts[:-1], lengths)
        return Ragged(self.values[shift + np.arange(starts[-1])], starts)


def ragged(rows: Sequence[NDArray[S]], dtype: type[S]) -> Ragged[S]:
    """Put rows end to end."""
    values = np.concatenate(rows) if rows else np.empty(0, dtype)
    return Ragged(values.astype(dtype, copy=False), offsets([len(row) for row in rows]))


def offsets(lengths: Sequence[int] | Offsets) -> Offsets:
    """Return where each row starts, and where the last one ends: (n,) becomes (n + 1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids of n texts, special tokens included."""

    ids: Ragged[np.int32]
    truncated: Bools  # (n,) the text was longer than what is kept


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts that run together, packed end to end. An engine that pads, pads them to width."""

    tokens: Ragged[np.int32]
    rows: Offsets  # (n,) where each text stands in the request
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """What an engine returns: unit vectors, token weights or scores, without padding.

    A head that was not asked for is None. The engine never writes these arrays again.
    """

    dense: Floats | None = None  # (n, h)
    weights: Floats | None = None  # (t,) not negative
    colbert: list[Floats] | None = None  # (t_i, d) each; views of the engine's output
    scores: Floats | None = None  # (n,) of pairs, not bounded: a reranker's
    finite: Heads = NO_HEADS  # those that the engine itself found free of NaN and Inf


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine can run at once.

    A text longer than ``max_tokens`` runs alone, as long as it fits ``max_length``.
    """

    max_tokens: int  # aim per batch, padding included if the engine pads
    max_length: int  # of one text
    pads: bool  # the engine computes on rectangles: a batch costs n * width
    widths: tuple[int, ...] = ()  # ascending; the widths an engine was built for, () for any
    rows: tuple[int, ...] = ()  # the most texts of a batch at each of widths, () for any number
    slack: float = math.inf  # places of a rectangle, for each that its texts would take alone
    parallel: int = 1  # batches that run at once; with more than one, each has fewer cores
    ahead: int = 0  # tokens to have ready before the engine starts; 0 is all of the request's


class Engine(Protocol):
    """Runs batches. Many threads may call run at once; an engine that cannot, locks."""

    @property
    def name(self) -> str:
        """Engine and precision: ``cpu:int8``."""
        ...

    @property
    def limits(self) -> Limits:
        """What the engine can run at once."""
        ...

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for; the others stay None.

        Raises:
            EngineError: the library below failed.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Lexical weights of n texts.

    Within a text the ids ascend, none comes twice, and every weight is greater than zero.
    """

    ids: Ragged[np.int32]
    weights: Ragged[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[int, float]:
        """Return token id to weight of text i."""
        return dict(zip(self.ids[i].tolist(), self.weights[i].tolist(), strict=True))

    def take(self, rows: Sequence[int] | Offsets) -> Sparse:
        """Return the given texts, in the given order, as a copy."""
        return Sparse(self.ids.take(rows), self.weights.take(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The outputs for n texts, in the order of the texts. A head not asked for is None."""

    dense: Floats | None  # (n, h) unit vectors
    sparse: Sparse | None
    colbert: (
        list[Floats] | None
    )  # (t_i - c_i, d) unit vectors: one per token but the c_i CLS tokens
    n_tokens: Offsets  # (n,) tokens that were encoded, special tokens included
    truncated: Bools  # (n,) the text had more tokens than n_tokens

    def __len__(self) -> int:
        return len(self.n_tokens)

    def take(self, rows: Sequence[int] | Offsets) -> Embeddings:
        """Return the given texts, in the given order; one may come twice."""
        return Embeddings(
            dense=None if self.dense is None else self.dense[rows],
            sparse=None if self.sparse is None else self.sparse.take(rows),
            colbert=None if self.colbert is None else [self.colbert[row] for row in rows],
            n_tokens=self.n_tokens[rows],
            truncated=self.truncated[rows],
        )
