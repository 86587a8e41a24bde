"""Texts to token ids, as the checkpoint's own tokenizer gives them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from m3rt import mcls
from m3rt.artifact import Artifact
from m3rt.errors import ArtifactError, InputError
from m3rt.types import Ints, Ragged, Tokens, offsets, ragged

# Tokenised at once, of either at most: bounds what the library holds beside the ids.
CHUNK = 1024  # texts
CHARACTERS = 2**20


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tokens of one text, and where they stand in it."""

    ids: list[int]
    entries: list[str]  # of the vocabulary
    added: list[int]  # 1 for a special token put around the text, which has no place in it
    spans: list[tuple[int, int]]  # the first character of each, and the one after its last


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

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Return the text of these ids, special tokens included unless they are to be skipped."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
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
        return together(list(self.chunks(texts, max_length)))

    def chunks(
        self, texts: Sequence[str], max_length: int, characters: int = CHARACTERS
    ) -> Iterator[Tokens]:
        """Tokenise some texts at a time, and give what a call gives for them, in order.

        Args:
            texts: of which check_texts has found nothing to refuse.
            max_length: tokens kept of a text.
            characters: of a chunk, with two for each text's special tokens; one text may be longer.

        Raises:
            InputError: an item holds a lone surrogate; names its place among all texts.
        """
        for chunk in pieces(map(len, texts), characters):
            ids = self._ids(texts, chunk)
            truncated = ids.lengths > max_length
            if truncated.any() or self._cls_interval is not None:
                whole = self._with_cls(list(ids))
                truncated = np.array([len(row) > max_length for row in whole], np.bool_)
                pairs = zip(whole, truncated.tolist(), strict=True)
                rows = [self._cut(row, max_length) if cut else row for row, cut in pairs]
                ids = ragged(rows, np.int32)
            yield Tokens(ids, truncated)

    def lengths(self, texts: Sequence[str]) -> Ints:
        """Return how many tokens each text has before any cut, special tokens included."""
        check_texts(texts)
        chunks = pieces(map(len, texts))
        rows = (ids for chunk in chunks for ids in self._with_cls(list(self._ids(texts, chunk))))
        return np.array([len(ids) for ids in rows], np.int32)

    def bare(self, texts: Sequence[str], max_length: int) -> list[tuple[Ints, bool]]:
        """Return the ids of each text without special tokens, and whether there were more.

        Raises:
            InputError: a text holds a lone surrogate.
        """
        return [
            (ids[:max_length].copy(), len(ids) > max_length)  # a view would hold what is cut
            for chunk in pieces(map(len, texts))
            for ids in self._ids(texts, chunk, special=False)
        ]

    def located(self, texts: Sequence[str], special: bool = True) -> Iterator[Pieces]:
        """Return the tokens of each text and their places, uncut; without the CLS tokens of mcls.

        Args:
            texts: any number; some are tokenised at a time.
            special: put the special tokens around each.

        Raises:
            InputError: an item is not a str, or holds a lone surrogate.
        """
        check_texts(texts)
        for chunk in pieces(map(len, texts)):
            try:
                found = self._backend.encode_batch(list(texts[chunk]), add_special_tokens=special)
            except (UnicodeEncodeError, TypeError):
                for i, text in enumerate(texts[chunk], chunk.start):
                    check_unicode(text, f"text {i}")
                raise
            for encoding in found:
                added = encoding.special_tokens_mask
                yield Pieces(encoding.ids, encoding.tokens, added, encoding.offsets)

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

    def _ids(self, texts: Sequence[str], chunk: slice, special: bool = True) -> Ragged[np.int32]:
        some = list(texts[chunk])
        try:
            encodings = self._backend.encode_batch_fast(some, add_special_tokens=special)
        except (UnicodeEncodeError, TypeError):
            for i, text in enumerate(some, chunk.start):
                check_unicode(text, f"text {i}")
            raise
        # One array of all: an array for each text takes twice as long, in the one thread that may
        # run Python.
        rows = [encoding.ids for encoding in encodings]
        values = np.array(list(itertools.chain.from_iterable(rows)), np.int32)
        return Ragged(values, offsets(list(map(len, rows))))

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


def pieces(lengths: Iterable[int], characters: int = CHARACTERS) -> Iterator[slice]:
    """Cut texts into runs of at most CHUNK, and of so many characters, but of one text at least.

    Args:
        lengths: characters of each text; two are added for its special tokens.
        characters: of a run.
    """
    first, end, size = 0, 0, 0
    for end, length in enumerate(lengths, 1):
        size += length + 2
        if end - first > 1 and (size > characters or end - first > CHUNK):
            yield slice(first, end - 1)
            first, size = end - 1, length + 2
    if first < end:
        yield slice(first, end)


def together(parts: Sequence[Tokens]) -> Tokens:
    """Put the tokens of several runs of texts end to end."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Tokens(ragged([], np.int32), np.empty(0, np.bool_))
    lengths = np.concatenate([part.ids.lengths for part in parts])
    values = np.concatenate([part.ids.values for part in parts])
    return Tokens(
        Ragged(values, offsets(lengths)), np.concatenate([part.truncated for part in parts])
    )


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
