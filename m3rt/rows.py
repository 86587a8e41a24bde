"""Rows of the files of a data set: JSON lines and tab-separated values, gzipped or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from m3rt.errors import InputError

IDS = ("_id", "id", "docid", "query_id", "qid")  # BEIR, FlagEmbedding, MIRACL and MLDR
COMPRESSED = ".gz"


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Documents or queries, in the order of their files."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: Sequence[int]) -> Texts:
        """Return those at the given places."""
        return Texts(tuple(self.ids[i] for i in places), tuple(self.texts[i] for i in places))

    def first(self, n: int | None) -> Texts:
        """Return the first ones; None means all."""
        return Texts(self.ids[:n], self.texts[:n])


@dataclass(frozen=True, slots=True)
class Row:
    """An object, or the fields of a line, with where it stands."""

    place: str
    fields: Any

    def error(self, message: str) -> InputError:
        """Return an error that names the place."""
        return InputError(f"{self.place}: {message}")

    def text(self, *names: str, default: str | None = None) -> str:
        """Return the first of the named fields that is there, which must be a string."""
        for name in names:
            if name in self.fields:
                found = self.fields[name]
                if not isinstance(found, str):
                    raise self.error(f"{name!r} is {type(found).__name__}, expected a string")
                return self._encodable(found)
        if default is None:
            raise self.error(
                f"the object has no {' and no '.join(map(repr, names))}, only "
                f"{', '.join(map(repr, self.fields)) or 'nothing'}"
            )
        return default

    def identity(self, *names: str) -> str:
        """Return an id, a string or an integer."""
        name = next((name for name in names if name in self.fields), names[0])
        found = self.fields.get(name)
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise self.error(f"the id {name!r} is {found!r}, expected a string or an integer")
        return self._encodable(str(found))

    def _encodable(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error("an escape stands for a lone surrogate, no character") from error
        return text


def texts(paths: Sequence[Path], *names: str) -> Texts:
    """Read documents or queries: JSON lines with an id and a text, or lines of id, tab, text.

    Args:
        paths: files that belong together.
        names: of the field that holds the text; the first that a row has counts. A title goes
            before it, with a space, as BEIR has it.

    Raises:
        InputError: a file is missing, damaged or of another kind, or an id comes twice.
    """
    ids, found = dict[str, str](), list[str]()
    for path in paths:
        for row in read(path):
            if isinstance(row.fields, list):
                if len(row.fields) != 2:
                    raise row.error(f"{len(row.fields)} fields, expected an id, a tab and a text")
                identity, text = row.fields
            else:
                identity = row.identity(*IDS)
                title = row.text("title", default="") if row.fields.get("title") else ""
                text = f"{title} {row.text(*names)}".strip() if title else row.text(*names)
            if identity in ids:
                raise row.error(f"the id {identity!r} is there already: {ids[identity]}")
            ids[identity] = row.place
            found.append(text)
    return Texts(tuple(ids), tuple(found))


def read(path: Path) -> Iterator[Row]:
    """Give the rows of a file, by its name: objects of .jsonl, fields of .tsv; gzipped if .gz.

    Raises:
        InputError: it cannot be read, is damaged, or a line is not UTF-8 or not JSON.
    """
    tabs = path.name.removesuffix(COMPRESSED).endswith(".tsv")
    for number, line in enumerate(lines(path), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue  # files end with one, or are put together with one
        if tabs:
            yield Row(place, line.split("\t"))
            continue
        try:
            row = Row(place, json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not JSON ({error})") from error
        if not isinstance(row.fields, dict):
            raise row.error(f"found a JSON {type(row.fields).__name__}, expected an object")
        yield row


def lines(path: Path) -> Iterator[str]:
    """Give the lines of a file, without their ends."""
    number = 0
    try:
        with opened(path) as stream:
            for number, data in enumerate(stream, 1):
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
                yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: byte {error.start} is no UTF-8; expected UTF-8 text"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is damaged after line {number} ({error}): download it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def opened(path: Path) -> BinaryIO:
    """Open a file, gzipped or not."""
    if path.suffix == COMPRESSED:
        return gzip.open(path)  # type: ignore[return-value]  # it reads as a binary file does
    return path.open("rb")


def head(path: Path, n: int = 1) -> list[Row]:
    """Return the first rows of a file."""
    return list(islice(read(path), n))


def unique(pairs: Iterable[tuple[str, Row]]) -> dict[str, Row]:
    """Key rows by their ids.

    Raises:
        InputError: an id comes twice.
    """
    found: dict[str, Row] = {}
    for identity, row in pairs:
        if identity in found:
            raise row.error(f"{identity!r} is there already: {found[identity].place}")
        found[identity] = row
    return found
