"""Queries with the documents to be ranked for them, from files: what ``m3rt rerank`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m3rt.errors import InputError
from m3rt.records import Record, check_characters, identity, record_of

PAIRS = 1024  # of one chunk, and
CHARACTERS = 1 << 20  # whichever comes first


@dataclass(frozen=True, slots=True)
class Candidates:
    """A query, and its documents."""

    id: str | None  # the record's own, else the number of its line; None for --query
    query: str
    documents: tuple[Record, ...]
    line: int  # counted from 1


def parse(line: str, number: int) -> Candidates:
    """Read a JSON object: ``query``, and ``documents`` or one ``document``; perhaps ``id``.

    A document is a string, which its place from 0 stands for as an id, or an object as
    m3rt.records has it.

    Raises:
        InputError: it is not JSON, no object, or a field is missing or of another type.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}); for lines of documents pass --query") from error
    if not isinstance(record, dict):
        raise InputError(f"found a JSON {type(record).__name__}, expected an object with 'query'")
    there = ", ".join(map(repr, record)) or "{}"
    if "query" not in record:
        raise InputError(f"the object has no 'query', only {there}")
    if ("documents" in record) == ("document" in record):
        raise InputError(f"expected 'documents', a list, or one 'document'; found {there}")
    query, documents = record["query"], record.get("documents", [record.get("document")])
    if not isinstance(query, str):
        raise InputError(f"'query' is {type(query).__name__}, expected a string")
    if not isinstance(documents, list):
        raise InputError(f"'documents' is {type(documents).__name__}, expected a list")
    found = []
    for i, document in enumerate(documents):
        try:
            found.append(record_of(as_object(document), number, i))
        except InputError as error:
            raise InputError(f"document {i}: {error}") from error
    name = identity(record, number)
    check_characters(name + query)
    return Candidates(name, query, tuple(found), number)


def as_object(document: object) -> object:
    """Return a document that is a string as the object it is short for."""
    return {"text": document} if isinstance(document, str) else document


def chunks(found: Iterable[Candidates]) -> Iterator[list[Candidates]]:
    """Group queries, so that a chunk has so many pairs or, save for the last, characters."""
    chunk: list[Candidates] = []
    pairs = size = 0
    for one in found:
        chunk.append(one)
        pairs += len(one.documents)
        size += sum(len(document.text) for document in one.documents)
        if pairs >= PAIRS or size >= CHARACTERS:
            yield chunk
            chunk, pairs, size = [], 0, 0
    if chunk:
        yield chunk
