"""Embeddings to files: what ``m3rt encode`` writes."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from m3rt.errors import InputError, missing
from m3rt.heads import join
from m3rt.types import Embeddings, Floats, Offsets, Ragged, offsets, ragged

STDOUT = Path("-")
Write = Callable[[Sequence[str], Embeddings], None]  # ids and embeddings of one chunk


class Format(enum.StrEnum):
    """How embeddings are written."""

    JSONL = "jsonl"
    NPZ = "npz"
    PARQUET = "parquet"


def to_terminal(output: Path) -> bool:
    """Whether what is written would show on a terminal."""
    return output == STDOUT and sys.stdout.isatty()


@contextlib.contextmanager
def sink(output: Path, form: Format) -> Iterator[BinaryIO]:
    """Give a file to fill, which gets its name, or goes to stdout, only if the block ends well.

    JSONL to stdout, and anything to a device or a pipe, goes there at once.

    Raises:
        InputError: it cannot be written.
    """
    if output == STDOUT:
        if form is Format.JSONL:
            yield sys.stdout.buffer
        else:
            with tempfile.TemporaryFile() as file:  # stdout need not be seekable
                yield file
                file.seek(0)
                shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    output = output.resolve()  # a link stays, its target is replaced
    special = output.exists() and not output.is_file()
    part = output if special else output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        opened = part.open("wb")
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
    try:
        with opened as file:
            yield file
        if not special:
            part.replace(output)
    finally:
        if not special:
            part.unlink(missing_ok=True)


def writer(
    form: Format,
    file: BinaryIO,
    nothing: Embeddings,
    colbert_dim: int,
    piece: Callable[[int], str] | None = None,
) -> AbstractContextManager[Write]:
    """Give the function that writes chunks in this format.

    Args:
        form: the format.
        file: where to; seekable, except for JSONL.
        nothing: the embeddings of no texts: which heads there are, and their widths.
        colbert_dim: width of a ColBERT vector.
        piece: gives the vocabulary entry of a sparse id; JSONL writes it if this is given.

    Raises:
        UnavailableError: Parquet was asked for, and pyarrow is not installed.
    """
    if form is Format.JSONL:
        return jsonl(file, piece)
    if form is Format.NPZ:
        return npz(file, nothing, colbert_dim)
    return parquet(file, nothing, colbert_dim)


@contextlib.contextmanager
def jsonl(file: BinaryIO, piece: Callable[[int], str] | None) -> Iterator[Write]:
    """Write one JSON object a line."""

    def write(ids: Sequence[str], embeddings: Embeddings) -> None:
        for i, name in enumerate(ids):
            file.write(json_line(name, embeddings, i, piece).encode())
        file.flush()

    yield write


def json_line(name: str, found: Embeddings, i: int, piece: Callable[[int], str] | None) -> str:
    """Return the embeddings of text i as a line of JSON."""
    fields = {
        "id": dumps(name),
        "n_tokens": str(found.n_tokens[i]),
        "truncated": dumps(bool(found.truncated[i])),
    }
    if found.dense is not None:
        fields["dense"] = floats(found.dense[i])
    if found.sparse is not None:
        ids = found.sparse.ids[i].tolist()
        sparse = {"indices": dumps(ids), "values": floats(found.sparse.weights[i])}
        if piece:
            sparse["tokens"] = dumps([piece(token) for token in ids])
        fields["sparse"] = braced(sparse)
    if found.colbert is not None:
        fields["colbert"] = f"[{','.join(map(floats, found.colbert[i]))}]"
    return braced(fields) + "\n"


def dumps(value: Any) -> str:
    """Return JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def braced(fields: dict[str, str]) -> str:
    """Return a JSON object of fields that are JSON already."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def floats(values: Floats) -> str:
    """Return a JSON array with the fewest digits that give the same float32 back."""
    return f"[{','.join(map(str, values))}]"


@contextlib.contextmanager
def npz(file: BinaryIO, nothing: Embeddings, colbert_dim: int) -> Iterator[Write]:
    """Collect all chunks, then write numpy arrays; ragged ones end to end, with their starts."""
    names: list[str] = []
    parts = [nothing]
    colbert = [Ragged(np.empty((0, colbert_dim), np.float32), offsets([]))]

    def write(ids: Sequence[str], embeddings: Embeddings) -> None:
        names.extend(ids)
        if embeddings.colbert is not None:
            # a copy: the rows are views, which would hold all that the engine returned
            colbert.append(ragged(embeddings.colbert, np.float32))
        parts.append(dataclasses.replace(embeddings, colbert=None))

    yield write
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array(names, np.str_),
        "n_tokens": np.concatenate([part.n_tokens for part in parts]),
        "truncated": np.concatenate([part.truncated for part in parts]),
    }
    if nothing.dense is not None:
        arrays["dense"] = np.concatenate([p.dense for p in parts if p.dense is not None])
    if nothing.sparse is not None:
        ids = join([part.sparse.ids for part in parts if part.sparse is not None])
        weights = join([part.sparse.weights for part in parts if part.sparse is not None])
        arrays |= {
            "sparse_ids": ids.values,
            "sparse_weights": weights.values,
            "sparse_starts": ids.starts,
        }
    if nothing.colbert is not None:
        rows = join(colbert)
        arrays |= {"colbert": rows.values, "colbert_starts": rows.starts}
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its allow_pickle is a keyword, too


@contextlib.contextmanager
def parquet(file: BinaryIO, nothing: Embeddings, colbert_dim: int) -> Iterator[Write]:
    """Write a row group a chunk."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise missing("pyarrow", "parquet", "writing Parquet") from error

    def table(ids: Sequence[str], found: Embeddings) -> Any:
        columns = {
            "id": pa.array(ids, pa.string()),
            "n_tokens": pa.array(found.n_tokens),
            "truncated": pa.array(found.truncated),
        }
        if found.dense is not None:
            columns["dense"] = vectors(found.dense)
        if found.sparse is not None:
            columns["sparse_ids"] = lists(
                found.sparse.ids.starts, pa.array(found.sparse.ids.values)
            )
            columns["sparse_weights"] = lists(
                found.sparse.weights.starts, pa.array(found.sparse.weights.values)
            )
        if found.colbert is not None:
            rows = [np.empty((0, colbert_dim), np.float32), *found.colbert]
            columns["colbert"] = lists(
                offsets([len(r) for r in rows[1:]]), vectors(np.concatenate(rows))
            )
        return pa.table(columns)

    def vectors(values: Floats) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    def lists(starts: Offsets, values: Any) -> Any:
        return pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), values)

    schema = table([], nothing).schema
    # floats hardly ever repeat: a dictionary of them costs and gives nothing
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as out:

        def write(ids: Sequence[str], embeddings: Embeddings) -> None:
            out.write_table(table(ids, embeddings))

        yield write
