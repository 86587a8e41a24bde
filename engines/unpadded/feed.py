"""From a batch to the inputs of the unpadded graphs, as ``export.unpadded`` writes them, and back.

Letters in shapes: n texts, t tokens, s places of the longest text, or of each; r rows that the
last layer computes after its attention, a of them get a lexical weight, b a ColBERT vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.halves import widen
from m3rt.types import Batch, Heads, Ints, Offsets, Raw, offsets

OF_TOKENS = Heads.SPARSE | Heads.COLBERT
OF_TEXTS = Heads.DENSE | Heads.SCORE


@dataclass(frozen=True, slots=True)
class Positions:
    """How a model counts the positions of a text's tokens; a build's recipe says it."""

    from_pad: bool  # from the padding id, which takes none itself (RoBERTa); else from 0 (BERT)
    pad_id: int
    last: int  # position that there is

    @classmethod
    def read(cls, recipe: Mapping[str, Any]) -> Positions:
        """Read it from a build's recipe, as ``export.unpadded`` gives it.

        Raises:
            KeyError, TypeError, ValueError: it is not there, or not whole.
        """
        found = recipe["positions"]
        return cls(bool(found["from_pad"]), int(found["pad_id"]), int(found["last"]))

    def of(self, ids: Ints, starts: Offsets) -> Ints:
        """Count the positions of texts that stand end to end.

        Args:
            ids: (t,).
            starts: (n + 1,) where each text begins, and where the last one ends.

        Returns:
            (t,), each text counted from its own first token.
        """
        texts = np.repeat(starts[:-1], np.diff(starts))
        if not self.from_pad:
            count = np.minimum(np.arange(len(ids)) - texts, self.last)
        else:
            real = ids != self.pad_id
            before = offsets(real)  # tokens that take a position, before each place
            count = (before[1:] - before[texts]) * real + self.pad_id
        found: Ints = count.astype(np.int32)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """The inputs of one run, and how many rows its outputs have.

    The rows of a batch's own texts and tokens come first in every output, in their order.
    """

    arrays: Mapping[str, NDArray[Any]]  # by input; contiguous, of the graph's types
    texts: int  # rows of dense or score, added texts among them
    width: int  # s
    sparse: int  # a; 1 where it is not wanted, 0 where the model has none
    colbert: int  # b; likewise


def varlen(
    batch: Batch,
    heads: Heads,
    model_heads: Heads,
    positions: Positions,
    tokens: int | None = None,
    texts: int | None = None,
) -> Feed:
    """Feed the graph whose attention takes texts of any length, end to end.

    Args:
        batch: what to run.
        heads: those wanted.
        model_heads: those that the model has.
        positions: how it counts them.
        tokens: add padding ids up to this many tokens, as one more text of their own; every shape
            but that of ``rows`` then depends on tokens, texts and heads alone, and that does too.
        texts: add texts of no tokens up to this many.

    Raises:
        ValueError: the batch has more tokens or texts than that, or no text is left for the
            padding ids.
    """
    lengths, ids = batch.tokens.lengths, batch.tokens.values
    count, n = len(ids), len(lengths)
    t = count if tokens is None else tokens
    texts = n if texts is None else texts
    if t < count or texts < n + (t > count):
        raise ValueError(f"{count} tokens in {n} texts do not fit into {t} tokens in {texts} texts")
    if texts > n:
        lengths = np.append(lengths, np.zeros(texts - n, np.int64))
        lengths[n] = t - count
        ids = np.append(ids, np.full(t - count, positions.pad_id, np.int32))
    starts = offsets(lengths)
    width = int(lengths.max()) if tokens is None else tokens
    # a text of no tokens has no first one: it is given row 0, and nobody reads what it gives
    first = np.where(lengths > 0, starts[:-1], 0)
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": ids,
        "positions": positions.of(ids, starts),
        "cu_seqlens": starts,
        "token_offset": token_offset(lengths, width),
    }
    return complete(arrays, np.arange(t), first, first, width, heads, model_heads)


def rectangles(
    batch: Batch,
    heads: Heads,
    model_heads: Heads,
    positions: Positions,
    width: int,
    texts: int | None = None,
) -> Feed:
    """Feed the graph whose attention takes rectangles.

    Args:
        batch: what to run.
        heads: those wanted.
        model_heads: those that the model has.
        positions: how it counts them.
        width: places of each text.
        texts: add texts of one token up to this many: the batch's first token.

    Raises:
        ValueError: a text is longer than the width, or there are more texts than that.
    """
    lengths = batch.tokens.lengths
    n = len(lengths)
    texts = n if texts is None else texts
    if int(lengths.max()) > width or texts < n:
        raise ValueError(
            f"{n} texts of up to {lengths.max()} tokens do not fit into {texts} texts of {width}"
        )
    lengths = np.append(lengths, np.ones(texts - n, np.int64))
    real = np.arange(width) < lengths[:, None]
    ids = np.full(real.shape, positions.pad_id, np.int32)
    ids[:n][real[:n]] = batch.tokens.values
    ids[n:, 0] = batch.tokens.values[0]
    # where each text's first token is, among all places and among those of the batch's tokens
    place = np.arange(texts) * width
    first = np.append(batch.tokens.starts[:-1], np.zeros(texts - n, np.int64))
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": ids.ravel(),
        "positions": positions.of(ids.ravel(), np.arange(texts + 1) * width),
        "lengths": lengths,
        "grid": np.array([texts, width, -1], np.int64),
    }
    return complete(arrays, np.flatnonzero(real[:n]), place, first, width, heads, model_heads)


def complete(
    arrays: dict[str, NDArray[Any]],
    tokens: Offsets,
    place: Offsets,
    first: Offsets,
    width: int,
    heads: Heads,
    model_heads: Heads,
) -> Feed:
    """Add which rows go on after the last attention, and which of them each head reads.

    Args:
        arrays: the inputs so far.
        tokens: places of the tokens that heads of tokens read.
        place: (n,) place of each text's first token.
        first: (n,) the same, counted among tokens.
        width: s.
        heads: those wanted.
        model_heads: those that the model has.
    """
    every = bool(heads & model_heads & OF_TOKENS)
    arrays["rows"] = tokens if every else place
    if model_heads & OF_TEXTS:
        arrays["first"] = first if every else np.arange(len(place))
    counts = {"sparse": 0, "colbert": 0}
    for head in OF_TOKENS & model_heads:
        (name,) = head.names
        # one row for a head that is not wanted: CUDA has no kernels of no rows
        arrays[f"{name}_rows"] = np.arange(len(tokens) if head in heads else 1)
        counts[name] = len(arrays[f"{name}_rows"])
    typed = {
        name: np.ascontiguousarray(array, np.int64 if name == "grid" else np.int32)
        for name, array in arrays.items()
    }
    return Feed(typed, len(place), width, counts["sparse"], counts["colbert"])


def token_offset(lengths: Offsets, width: int) -> Ints:
    """Return where tokens stand in a grid of texts, row by row, then where its padding does.

    Args:
        lengths: (n,) tokens of each text.
        width: s, places of each.

    Returns:
        (n, s), as ONNX Runtime's packed attention takes it.
    """
    real = (np.arange(width) < lengths[:, None]).ravel()
    found = np.concatenate([np.flatnonzero(real), np.flatnonzero(~real)])
    return found.astype(np.int32).reshape(len(lengths), width)


def own(outputs: Mapping[str, NDArray[Any]], batch: Batch) -> Raw:
    """Return a batch's own rows of outputs, which come before those of padding, as copies.

    ColBERT vectors are float16, as the engine's graph gives them, or float32, as one made to
    compare it with does.
    """
    starts, texts = batch.tokens.starts, len(batch.rows)
    counts = {"dense": texts, "score": texts}
    found = {name: array[: counts.get(name, int(starts[-1]))] for name, array in outputs.items()}
    colbert, rows, finite = found.pop("colbert", None), None, Heads(0)
    if colbert is not None:
        values = np.empty(colbert.shape, np.float32)
        if colbert.dtype != np.float16:
            values[:] = colbert
        elif widen(colbert, values):
            finite = Heads.COLBERT
        rows = np.split(values, starts[1:-1])
    kept = {name: array.copy() for name, array in found.items()}
    return Raw(kept.get("dense"), kept.get("sparse"), rows, kept.get("score"), finite)
