"""Texts to embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal

import numpy as np

from m3rt import steps
from m3rt.artifact import Manifest
from m3rt.errors import InputError
from m3rt.heads import finish, merge
from m3rt.tokenizer import CHARACTERS, Tokenizer, check_texts, together
from m3rt.types import (
    Batch,
    Embeddings,
    Engine,
    Heads,
    Ragged,
    Raw,
    Sparse,
    Tokens,
    offsets,
)
from m3rt.windows import alone, exceeds, noted, windows

Progress = Callable[[int], None]  # told how many texts each step finished


class M3:
    """A tokenizer and an engine. Safe to share between threads."""

    def __init__(
        self, manifest: Manifest, tokenizer: Tokenizer, engine: Engine, why: str = ""
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.engine = engine
        self.why = why  # it is this engine

    @property
    def heads(self) -> Heads:
        """The heads this model has."""
        return self.manifest.head_flags

    @property
    def recomputed(self) -> int:
        """The texts so far that the fallback computed again; see m3rt.load."""
        return steps.recomputed(self.engine)

    @property
    def max_length(self) -> int:
        """Most tokens of one text, special tokens included."""
        return min(self.manifest.max_length, self.engine.limits.max_length)

    def encode(
        self,
        texts: Sequence[str],
        heads: Heads = Heads.ALL,
        *,
        max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Embeddings:
        """Embed texts.

        Args:
            texts: n texts; an empty list gives an Embeddings of length 0.
            heads: what to compute; ALL is every head the model has.
            max_length: tokens kept of a text, special tokens included; the model's own by default.
            on_long: ``truncate`` keeps the first tokens and says so in ``Embeddings.truncated``,
                ``error`` refuses the request.
            batch_tokens: aim for the tokens of one step, instead of the engine's own.
            progress: called after each step with the number of texts it finished.

        Returns:
            The heads asked for, in the order of the texts, with ``n_tokens`` and ``truncated``.

        Raises:
            InputError: not text, too long with ``on_long="error"``, or a head the model lacks.
            EngineError: the engine failed, or gave NaN or Inf.
        """
        windows = self.windows(texts, max_length=max_length, on_long=on_long)
        report = None if progress is None else lambda batch: progress(len(batch.rows))
        return self._embed(windows, heads, batch_tokens, report)

    def encode_tokens(
        self,
        tokens: Tokens,
        heads: Heads = Heads.ALL,
        *,
        batch_tokens: int | None = None,
        progress: Callable[[Batch], None] | None = None,
    ) -> Embeddings:
        """Embed token ids, as tokenize gives them; see encode."""
        return self._embed(alone(tokens), heads, batch_tokens, progress)

    def windows(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
    ) -> Generator[Tokens]:
        """Tokenise texts as run wants them: for a fast engine, some are run while others are made.

        That is so where the engine's ``Limits.ahead`` is less than the texts have; with
        ``on_long="error"`` all are tokenised first, as one that is too long refuses them all. A
        text that is not Unicode may be found after others have run.

        Returns:
            A generator, which is to be run to its end, or closed, as run does: it may own a thread.

        Raises:
            InputError: as tokenize does.
        """
        kept = self._kept(max_length, on_long)
        check_texts(texts)
        ahead = self.engine.limits.ahead
        if not ahead or on_long == "error" or not exceeds(texts, ahead):
            return alone(self.tokenize(texts, max_length=max_length, on_long=on_long))
        return windows(self.tokenizer.chunks(texts, kept, min(CHARACTERS, ahead)), ahead)

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        on_long: Literal["truncate", "error"] = "truncate",
    ) -> Tokens:
        """Return the token ids that encode would run.

        Raises:
            InputError: not text, too long with ``on_long="error"``, or a bad max_length.
        """
        kept = self._kept(max_length, on_long)
        tokens = self.tokenizer(texts, kept)
        if on_long == "error" and tokens.truncated.any():
            rows = np.flatnonzero(tokens.truncated).tolist()
            length = self.tokenizer.lengths([texts[rows[0]]])[0]
            raise InputError(
                f"{len(rows)} text(s) are longer than {kept} tokens: number "
                f"{', '.join(map(str, rows[:5]))}; the first has {length}. Split them, or pass "
                "on_long='truncate'"
            )
        return tokens

    def run(
        self,
        tokens: Tokens | Iterable[Tokens],
        heads: Heads = Heads.ALL,
        batch_tokens: int | None = None,
    ) -> Generator[tuple[Batch, Raw]]:
        """Run tokens, and give what the engine returns, batch by batch; longest texts first.

        This is the step below encode, for those who finish the outputs in another way. The tokens
        are those of tokenize, or the windows of windows, each of which has its longest texts first.
        Closed early, it ends all that it started.
        """
        yield from steps.run(self.engine, tokens, self._available(heads), batch_tokens)

    def require(self, heads: Heads) -> None:
        """Refuse heads that the model lacks; ALL stands for all three here.

        Raises:
            InputError: names what is lacking, and what there is.
        """
        if lacking := heads & ~self.heads:
            raise InputError(
                f"this model has no {' and no '.join(lacking.names)} head, only "
                f"{', '.join(self.heads.names)}"
            )

    def _embed(
        self,
        windows: Generator[Tokens],
        heads: Heads,
        batch_tokens: int | None,
        progress: Callable[[Batch], None] | None,
    ) -> Embeddings:
        heads = self._available(heads)
        seen: list[Tokens] = []
        parts = []
        with (
            contextlib.closing(windows),
            contextlib.closing(self.run(noted(windows, seen), heads, batch_tokens)) as found,
        ):
            for batch, raw in found:
                done = finish(batch, raw, self.manifest.unscored_ids, self.manifest.cls_interval)
                parts.append((batch, done))
                if progress:
                    progress(batch)
        return merge(together(seen), parts, self._nothing(heads))

    def _kept(self, max_length: int | None, on_long: str) -> int:
        """Return the tokens to keep of a text."""
        kept = self.max_length if max_length is None else max_length
        least = self.tokenizer.min_length
        if not least <= kept <= self.max_length:
            raise InputError(
                f"max_length is {kept}, expected {least} to {self.max_length} for this model"
            )
        if on_long not in ("truncate", "error"):
            raise InputError(f"on_long is {on_long!r}, expected 'truncate' or 'error'")
        return kept

    def _available(self, heads: Heads) -> Heads:
        if not heads:
            raise InputError("no head was asked for; there are dense, sparse and colbert")
        if heads == Heads.ALL:
            return self.heads
        self.require(heads)
        return heads

    def _nothing(self, heads: Heads) -> Embeddings:
        no_rows = offsets([])
        return Embeddings(
            dense=np.empty((0, self.manifest.hidden), np.float32) if Heads.DENSE in heads else None,
            sparse=Sparse(
                Ragged(np.empty(0, np.int32), no_rows), Ragged(np.empty(0, np.float32), no_rows)
            )
            if Heads.SPARSE in heads
            else None,
            colbert=[] if Heads.COLBERT in heads else None,
            n_tokens=np.empty(0, np.int64),
            truncated=np.empty(0, np.bool_),
        )
