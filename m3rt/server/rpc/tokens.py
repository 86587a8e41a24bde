"""Texts to tokens and back, as tei.v1 gives them; for another thread than the event loop's."""

from __future__ import annotations

import numpy as np

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.rpc import messages
from m3rt.server.service import Service

CHARACTERS = 250  # of a text, for each token that the model takes: TEI's limit


def tokenized(service: Service, text: str, special: bool) -> bytes:
    """Write the tokens of a text, uncut, with their places in bytes of UTF-8.

    Raises:
        RefusedError: the text is longer than any that the model takes.
    """
    limit = CHARACTERS * service.model.max_length
    if len(text) > limit:
        message = f"`inputs` must have less than {limit} characters. Given: {len(text)}"
        raise RefusedError(Kind.TOO_LONG, message)
    (found,) = service.model.tokenizer.located([text], special)
    places = byte_places(text)
    form = messages.kind("tei.v1.SimpleToken")
    tokens = [
        form(id=token, text=entry, special=True)
        if added
        else form(id=token, text=text[start:stop], start=places[start], stop=places[stop])
        for token, entry, added, (start, stop) in zip(
            found.ids, found.entries, found.added, found.spans, strict=True
        )
    ]
    written: bytes = messages.kind("tei.v1.EncodeResponse")(tokens=tokens).SerializeToString()
    return written


def byte_places(text: str) -> list[int]:
    """Return how many bytes of UTF-8 stand before each character, and before the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    places: list[int] = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return places


def decoded(service: Service, ids: list[int], skip_special: bool) -> bytes:
    """Write the text of token ids.

    Raises:
        RefusedError: no ids, or one that no token has.
    """
    most = service.model.tokenizer.vocab_size
    if not ids:
        raise RefusedError(Kind.EMPTY, "`ids` cannot be empty")
    if (largest := max(ids)) >= most:
        raise RefusedError(Kind.INVALID, f"no token has the id {largest}; there are {most}")
    text = service.model.tokenizer.decode(ids, skip_special)
    written: bytes = messages.kind("tei.v1.DecodeResponse")(text=text).SerializeToString()
    return written
