"""Texts or token ids, as OpenAI's and TEI's requests hold them: one, or a list of either."""

from __future__ import annotations

from collections.abc import Sequence

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.service import Service
from m3rt.server.work import Input

# A list of one kind, or of texts and lists of ids: JSON is decoded into this, and read checks it.
Given = str | list[str | int | list[int]]


async def read(service: Service, given: Given, name: str) -> Sequence[Input]:
    """Return the texts, or ids, one for each embedding.

    Args:
        service: whose limits and vocabulary count.
        given: a text, ids of one, or a list of them.
        name: of the field.

    Raises:
        RefusedError: none, an empty one, too many, of mixed kinds, or ids that no token has.
    """
    if isinstance(given, str):
        given = [given]
    if not given:
        raise empty(name)
    if isinstance(given[0], int):  # ids of one text; there may be millions
        return await service.off(checked, service, [given], name)
    most = service.settings.max_client_batch_size
    if len(given) > most:
        raise too_many(len(given), most, name)
    if set(map(type, given)) != {str}:
        return await service.off(checked, service, given, name)
    texts = [text for text in given if isinstance(text, str)]
    if "" in texts:
        raise empty(name)
    return texts


def has_ids(given: Given, most: int) -> bool:
    """Tell whether anything is no text, of so many; read refuses more."""
    return not isinstance(given, str) and bool(set(map(type, given[:most])) - {str})


def checked(service: Service, given: Sequence[object], name: str) -> list[Input]:
    """Return texts and ids of which none is empty and none is out of the vocabulary.

    Raises:
        RefusedError: one is, or is neither text nor ids.
    """
    if "" in given:
        raise empty(name)
    return [item if isinstance(item, str) else ids(service, item, name) for item in given]


def ids(service: Service, given: object, name: str) -> list[int]:
    """Return the token ids of one text.

    Raises:
        RefusedError: there are none, they are none, or no token has one of them.
    """
    if not isinstance(given, list) or set(map(type, given)) - {int}:
        raise RefusedError(
            Kind.MALFORMED, f"`{name}` mixes kinds, expected texts, or lists of ids", param=name
        )
    if not given:
        raise empty(name)
    vocab = service.model.manifest.vocab
    if min(given) < 0 or max(given) >= vocab:
        bad = next(token for token in given if not 0 <= token < vocab)
        shown = bad if abs(bad) < 2**64 else "a huge number"
        raise RefusedError(
            Kind.INVALID,
            f"`{name}` holds the token id {shown}, expected 0 to {vocab - 1}",
            param=name,
        )
    return given


def empty(name: str) -> RefusedError:
    """Return what refuses no input, or an empty one; in TEI's words."""
    return RefusedError(Kind.EMPTY, f"`{name}` cannot be empty", param=name)


def too_many(count: int, most: int, name: str) -> RefusedError:
    """Return what refuses more inputs than a request may hold; in TEI's words."""
    return RefusedError(
        Kind.TOO_MANY, f"batch size {count} > maximum allowed batch size {most}", param=name
    )
