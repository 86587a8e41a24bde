"""Texts and token ids of a request, to what the engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3rt.errors import InputError
from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.work import Ask, Cut
from m3rt.tokenizer import Tokenizer
from m3rt.types import Tokens, ragged


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A request's tokens."""

    tokens: Tokens
    keys: list[bytes]  # of each text, equal where the tokens are
    characters: int


def prepared(model: M3, ask: Ask) -> Prepared:
    """Tokenise a request.

    Raises:
        RefusedError: a text is too long, or not Unicode, or an id is none of the vocabulary's.
    """
    kept = length_of(model, ask.max_length)
    texts = [text for text in ask.inputs if isinstance(text, str)]
    rows = [ids for ids in ask.inputs if not isinstance(ids, str)]
    try:
        of_texts = tokenised(model.tokenizer, texts, kept, ask.cut)
        of_rows = model.tokenizer.wrapped(rows, kept, ask.cut == Cut.LEFT) if rows else None
    except InputError as error:
        raise RefusedError(Kind.TOKENIZER, str(error)) from error
    tokens = of_texts if of_rows is None else joined(ask, of_texts, of_rows)
    if ask.cut == Cut.NONE and tokens.truncated.any():
        raise too_long(model, ask, np.flatnonzero(tokens.truncated).tolist(), kept)
    keys = [ids.tobytes() for ids in tokens.ids]
    return Prepared(tokens, keys, sum(map(len, texts)))


def length_of(model: M3, asked: int | None) -> int:
    """Return the tokens to keep of a text.

    Raises:
        RefusedError: it is less than the special tokens, or more than the model has places for.
    """
    if asked is None:
        return model.max_length
    least = model.tokenizer.min_length
    if not least <= asked <= model.max_length:
        raise RefusedError(
            Kind.INVALID,
            f"max_length is {asked}, expected {least} to {model.max_length} for this model",
            param="max_length",
        )
    return asked


def tokenised(tokenizer: Tokenizer, texts: Sequence[str], kept: int, cut: Cut) -> Tokens:
    """Tokenise texts, and cut those that are too long at one end."""
    return tokenizer.last(texts, kept) if cut == Cut.LEFT else tokenizer(texts, kept)


def joined(ask: Ask, of_texts: Tokens, of_rows: Tokens) -> Tokens:
    """Put the tokens of texts and those that came as ids into the order of the request."""
    sources = [(of_texts, iter(range(len(of_texts.ids)))), (of_rows, iter(range(len(of_rows.ids))))]
    rows, truncated = [], []
    for entry in ask.inputs:
        tokens, places = sources[not isinstance(entry, str)]
        place = next(places)
        rows.append(tokens.ids[place])
        truncated.append(tokens.truncated[place])
    return Tokens(ragged(rows, np.int32), np.array(truncated, np.bool_))


def too_long(model: M3, ask: Ask, rows: Sequence[int], kept: int) -> RefusedError:
    """Return the refusal of texts that are not to be cut."""
    first = ask.inputs[rows[0]]
    length = int(model.tokenizer.lengths([first])[0]) if isinstance(first, str) else len(first)
    return RefusedError(
        Kind.TOO_LONG,
        f"{len(rows)} text(s) are longer than {kept} tokens: number "
        f"{', '.join(map(str, rows[:5]))}; the first has {length}. Split them, or have them "
        "truncated",
    )
