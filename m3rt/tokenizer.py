"""Texts to token ids, as the checkpoint's own tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from m3rt.errors import ArtifactError, InputError
from m3rt.types import Ints, Tokens, ragged

CHUNK = 1024  # texts tokenised at once: bounds what the library holds beside the ids


class Tokenizer:
    """A tokenizers.Tokenizer whose truncation is ours, so that threads can share it.

    The library keeps truncation and padding as state of the shared object; changing them while
    another thread encodes fails with "Already borrowed". Here they are off, and cutting is done
    on the ids. The result equals the library's: the first ``max_length - s`` ids of the text and
    the s closing special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
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

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read tokenizer.json.

        Raises:
            ArtifactError: the file cannot be read as a tokenizer.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
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
            for ids in self._encode(texts, start):
                cut.append(len(ids) > max_length)
                if cut[-1]:
                    ids = np.concatenate([ids[: max_length - len(self._closing)], self._closing])
                rows.append(ids)
        return Tokens(ragged(rows, np.int32), np.array(cut, np.bool_))

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return how many tokens each text has before any cut, special tokens included."""
        check_texts(texts)
        starts = range(0, len(texts), CHUNK)
        lengths = [len(ids) for start in starts for ids in self._encode(texts, start)]
        return np.array(lengths, np.int32)

    def _encode(self, texts: Sequence[str], start: int) -> list[Ints]:
        chunk = texts[start : start + CHUNK]
        try:
            encodings = self._backend.encode_batch_fast(list(chunk))
        except (UnicodeEncodeError, TypeError):
            for i, text in enumerate(chunk, start):
                check_unicode(text, i)
            raise
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


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


def check_unicode(text: str, i: int) -> None:
    """Refuse text that is not valid Unicode.

    Raises:
        InputError: with the place of the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text {i} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}: it is not Unicode text; decode it with errors='replace'"
        ) from error
