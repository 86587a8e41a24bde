"""Texts to token ids, as the checkpoint's own tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from m3rt import mcls
from m3rt.artifact import Artifact
from m3rt.errors import ArtifactError, InputError
from m3rt.types import Ints, Tokens, ragged

CHUNK = 1024  # texts tokenised at once: bounds what the library holds beside the ids


class Tokenizer:
    """A tokenizers.Tokenizer whose truncation is ours, so that threads can share it.

    The library keeps truncation and padding as state of the shared object; changing them while
    another thread encodes fails with "Already borrowed". Here they are off, and cutting is done
    on the ids. The result equals the library's: the first ``max_length - s`` ids of the text and
    the s closing special tokens. With ``cls_interval``, further CLS tokens are put into long texts
    (m3rt.mcls); every length counts them, and a cut ends before one, not after.
    """

    def __init__(self, backend: tokenizers.Tokenizer, cls_interval: int | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        specials = np.array(backend.encode("").ids, np.int32)
        if len(specials) < 2:
            raise ArtifactError(
                f"the tokenizer adds {len(specials)} special tokens to a text; expected one "
                "before (<s> or [CLS]) and one after it (</s> or [SEP])"
            )
        self._closing: Ints = specials[1:]
        if cls_interval is not None and len(specials) != 2:
            raise ArtifactError(
                f"the tokenizer closes a text with {len(self._closing)} special tokens; mcls "
                "pooling expects one: export with --pooling cls"
            )
        self._cls_interval = cls_interval

    @classmethod
    def of(cls, model: Artifact) -> Tokenizer:
        """Read a model directory's.

        Raises:
            ArtifactError: its tokenizer.json cannot be read as a tokenizer.
        """
        return cls.from_file(model.path / "tokenizer.json", model.manifest.cls_interval)

    @classmethod
    def from_file(cls, path: Path, cls_interval: int | None = None) -> Tokenizer:
        """Read tokenizer.json.

        Raises:
            ArtifactError: the file cannot be read as a tokenizer.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), cls_interval)
        except ArtifactError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"{path} is not a tokenizer.json: {error}") from error

    @property
    def min_length(self) -> int:
        """Fewest tokens a text can be cut to: its special tokens."""
        return 1 + len(self._closing)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids, special tokens included."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def piece(self, token_id: int) -> str:
        """Return the vocabulary entry of one id; unlike decode, no two ids share one."""
        piece: str | None = self._backend.id_to_token(token_id)
        if piece is None:
            raise InputError(f"no token has the id {token_id}; there are {self.vocab_size}")
        return piece

    def __call__(self, texts: Sequence[str], max_length: int) -> Tokens:
        """Return the ids of each text, special tokens included, at most max_length each.

        Raises:
            InputError: an item is not a str, or holds a lone surrogate.
        """
        check_texts(texts)
        rows: list[Ints] = []
        cut: list[bool] = []
        for start in range(0, len(texts), CHUNK):
            for ids in self._with_cls(self._encode(texts, start)):
                cut.append(len(ids) > max_length)
                rows.append(self._cut(ids, max_length) if cut[-1] else ids)
        return Tokens(ragged(rows, np.int32), np.array(cut, np.bool_))

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return how many tokens each text has before any cut, special tokens included."""
        check_texts(texts)
        starts = range(0, len(texts), CHUNK)
        lengths = [len(ids) for i in starts for ids in self._with_cls(self._encode(texts, i))]
        return np.array(lengths, np.int32)

    def bare(self, texts: Sequence[str], max_length: int) -> list[tuple[Ints, bool]]:
        """Return the ids of each text without special tokens, and whether there were more.

        Raises:
            InputError: a text holds a lone surrogate.
        """
        return [
            (ids[:max_length].copy(), len(ids) > max_length)  # a view would hold what is cut
            for start in range(0, len(texts), CHUNK)
            for ids in self._encode(texts, start, special=False)
        ]

    def around_pairs(self) -> tuple[Ints, Ints, Ints]:
        """Return the special tokens before, between and after the two texts of a pair.

        Raises:
            ArtifactError: the tokenizer does not join two texts.
        """
        found = self._backend.encode("a", "a")
        ids, owners = np.array(found.ids, np.int32), np.array(found.sequence_ids, np.float32)
        first, second = (np.flatnonzero(owners == side) for side in (0, 1))  # special ones: NaN
        if not len(first) or not len(second) or first[-1] > second[0]:
            raise ArtifactError(f"the tokenizer makes {found.tokens} of a pair of texts")
        return ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :]

    def _encode(self, texts: Sequence[str], start: int, special: bool = True) -> list[Ints]:
        chunk = texts[start : start + CHUNK]
        try:
            encodings = self._backend.encode_batch_fast(list(chunk), add_special_tokens=special)
        except (UnicodeEncodeError, TypeError):
            for i, text in enumerate(chunk, start):
                check_unicode(text, f"text {i}")
            raise
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _with_cls(self, rows: list[Ints]) -> list[Ints]:
        """Put further CLS tokens into long texts, if the model wants them."""
        if self._cls_interval is None:
            return rows
        return [mcls.insert(ids, self._cls_interval) for ids in rows]

    def _cut(self, ids: Ints, max_length: int) -> Ints:
        """Return the first tokens of a text that is longer, and the closing ones."""
        kept = max_length - len(self._closing)
        if self._cls_interval is not None and kept > 1 and kept % (self._cls_interval + 1) == 1:
            kept -= 1  # a CLS token with nothing after it
        return np.concatenate([ids[:kept], self._closing])


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is not a sequence of str.

    Raises:
        InputError: with the place and the type found.
    """
    if isinstance(texts, str | bytes):
        raise InputError(f"expected a list of str, found one {type(texts).__name__}: pass [text]")
    if not isinstance(texts, Sequence):
        raise InputError(f"expected a list of str, found {type(texts).__name__}: pass list(texts)")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {type(text).__name__}, expected str")


def check_unicode(text: str, name: str) -> None:
    """Refuse text that is not valid Unicode.

    Raises:
        InputError: with the place of the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}: it is not Unicode text; decode it with errors='replace'"
        ) from error
