"""Texts from files: what ``m3rt encode`` reads."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from m3rt.errors import EngineError, InputError

T = TypeVar("T")

LOG = logging.getLogger("m3rt")
STDIN = Path("-")
TEXTS = 1024  # of one chunk, and
CHARACTERS = 1 << 18  # whichever comes first: bounds the ColBERT vectors held at once


@dataclass(frozen=True, slots=True)
class Record:
    """One text of a file."""

    id: str  # the record's own, else the number of its line
    text: str
    line: int  # counted from 1


@contextlib.contextmanager
def source(path: Path) -> Iterator[BinaryIO]:
    """Open a file of texts; ``-`` is stdin.

    Raises:
        InputError: it cannot be opened.
    """
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file


def read(stream: BinaryIO, name: str, jsonl: bool) -> Iterator[Record]:
    """Read one text a line, or one JSON object a line; for errors see lines."""
    return lines(stream, name, parse if jsonl else plain)


def lines(stream: BinaryIO, name: str, parse: Callable[[str, int], T]) -> Iterator[T]:
    """Read what stands in each line.

    Args:
        stream: UTF-8.
        name: of the file, for errors.
        parse: makes the value of a line, without its end, and its number, from 1.

    Raises:
        InputError: a line is not UTF-8, or parse refuses it; names the file and the line.
    """
    for number, data in enumerate(stream, 1):
        place = f"{name}, line {number}"
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            line = line.removesuffix("\n").removesuffix("\r")
            yield parse(line, number)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{place}: byte {error.start} is 0x{data[error.start]:02x}, "
                "expected UTF-8; convert the file, for example with iconv -t utf-8"
            ) from error
        except InputError as error:
            raise InputError(f"{place}: {error}") from error


def plain(line: str, number: int) -> Record:
    """Take a line as a text."""
    return Record(str(number), line, number)


def parse(line: str, number: int) -> Record:
    """Read a JSON record: ``text``, perhaps ``title``, and ``id`` or ``_id``, as BEIR has it.

    Raises:
        InputError: it is not JSON, no object, or a field is missing or of another type.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}); for plain text pass --input-format text") from error
    return record_of(record, number, number)


def record_of(record: Any, line: int, number: int) -> Record:
    """Make a record of a JSON value; see parse.

    Args:
        record: what JSON gave.
        line: where it stands.
        number: what it is called if it has no id.
    """
    if not isinstance(record, dict):
        raise InputError(f"found a JSON {type(record).__name__}, expected an object with 'text'")
    if "text" not in record:
        raise InputError(f"the object has no 'text', only {', '.join(map(repr, record)) or '{}'}")
    text, title = record["text"], record.get("title") or ""
    for field, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise InputError(f"{field!r} is {type(value).__name__}, expected a string")
    found = Record(identity(record, number), f"{title} {text}" if title else text, line)
    check_characters(found.id + found.text)
    return found


def identity(record: Mapping[str, Any], number: int) -> str:
    """Return the id of an object, or its number.

    Raises:
        InputError: the id is of another type.
    """
    found = record.get("id", record.get("_id", number))
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise InputError(f"the id is {type(found).__name__}, expected a string or an integer")
    return str(found)


def check_characters(text: str) -> None:
    """Refuse what JSON can write and Unicode does not have."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("an escape stands for a lone surrogate, which is no character") from error


def chunks(
    records: Iterable[Record], texts: int = TEXTS, characters: int = CHARACTERS
) -> Iterator[list[Record]]:
    """Group records, so that a chunk has so many texts or, save for the last, characters."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.text)
        if len(chunk) >= texts or size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def name_of(path: Path) -> str:
    """Return what errors call a file."""
    return "stdin" if path == STDIN else str(path)


@contextlib.contextmanager
def placed(chunk: list[Record], what: str = "texts", warn: bool = True) -> Iterator[None]:
    """Add to errors and warnings, which count the texts of the chunk, where the chunk stands.

    Args:
        chunk: what is run.
        what: the name of its elements.
        warn: let warnings pass.
    """
    start = f"counting {what} from 0 at line {chunk[0].line}" if chunk else ""

    def place(record: logging.LogRecord) -> bool:
        record.msg = f"{start}: {record.msg}"
        return warn

    LOG.addFilter(place)
    try:
        yield
    except (InputError, EngineError) as error:
        raise type(error)(f"{start}: {error}") from error
    finally:
        LOG.removeFilter(place)


def count(path: Path) -> int | None:
    """Count the lines of a file; None for stdin and what else can be read but once."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)
