"""Texts from files, embeddings to files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.checkpoint import train_tokenizer
from m3rt import formats, records
from m3rt.errors import EngineError, InputError, UnavailableError
from m3rt.formats import Format
from m3rt.records import Record
from m3rt.runtime import M3
from m3rt.types import Embeddings, Heads
from tests import fake

TEXTS = ["a tiny model", "", "what is a small model", "the the the model"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    fake.write(folder)
    return fake.load(folder)


def read(data: bytes, jsonl: bool = False) -> list[Record]:
    return list(records.read(io.BytesIO(data), "some.txt", jsonl))


def save(model: M3, path: Path, heads: Heads = Heads.ALL, chunks: int = 2) -> Embeddings:
    """Write TEXTS in so many chunks; return what encode gives for all of them at once."""
    form = Format(path.suffix[1:])
    step = len(TEXTS) // chunks if chunks else 1
    with (
        formats.sink(path, form) as file,
        formats.writer(form, file, model.encode([], heads), fake.WIDTH) as write,
    ):
        for i in range(0, step * chunks, step):
            write([f"t{j}" for j in range(i, i + step)], model.encode(TEXTS[i : i + step], heads))
    return model.encode(TEXTS, heads)


def test_text_keeps_all_but_the_line_end() -> None:
    found = read(" a \n\r\nb\u2028c\x0b\r\nd".encode())
    assert [record.text for record in found] == [" a ", "", "b\u2028c\x0b", "d"]
    assert [record.id for record in found] == ["1", "2", "3", "4"]


def test_byte_order_mark_is_not_text() -> None:
    assert read(b"\xef\xbb\xbfa\n")[0].text == "a"
    assert read(b'\xef\xbb\xbf{"text": "a"}\n', jsonl=True)[0].text == "a"


def test_no_input_no_records() -> None:
    assert read(b"") == []
    assert read(b"", jsonl=True) == []


def test_jsonl_reads_ids_and_titles_as_beir_has_them() -> None:
    lines = [
        {"text": "a"},
        {"id": 7, "text": "a"},
        {"_id": "d1", "title": "T", "text": "a"},
        {"_id": "d2", "title": "", "text": "a\nb"},
        {"_id": "d3", "title": None, "text": "a", "metadata": {}},
    ]
    found = read("\n".join(map(json.dumps, lines)).encode(), jsonl=True)
    assert [(record.id, record.text) for record in found] == [
        ("1", "a"),
        ("7", "a"),
        ("d1", "T a"),
        ("d2", "a\nb"),
        ("d3", "a"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"text", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "JSON list, expected an object"),
        (b'{"body": "a"}', "no 'text', only 'body'"),
        (b'{"text": 1}', "'text' is int"),
        (b'{"text": "a", "title": 1}', "'title' is int"),
        (b'{"text": "a", "id": 1.5}', "the id is float"),
        (b'{"text": "a", "id": true}', "the id is bool"),
        (rb'{"text": "\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "0xff, expected UTF-8"),
    ],
)
def test_bad_records_are_named_by_file_and_line(line: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        read(b'{"text": "good"}\n' + line + b"\n", jsonl=True)
    assert str(caught.value).startswith("some.txt, line 2: ")


def test_text_that_is_not_utf8() -> None:
    with pytest.raises(InputError, match=r"some.txt, line 2: byte 1 is 0xe9, expected UTF-8"):
        read(b"good\nh\xe9\n")


def test_chunks_end_at_either_limit() -> None:
    found = [Record(str(i), "x" * size, i) for i, size in enumerate([1, 1, 1, 9, 1, 1])]
    sizes = [len(chunk) for chunk in records.chunks(found, texts=3, characters=8)]
    assert sizes == [3, 1, 2]
    assert list(records.chunks([])) == []


def test_chunks_do_not_read_ahead() -> None:
    def endless() -> Iterator[Record]:
        while True:
            yield Record("", "", 1)

    assert len(next(records.chunks(endless(), texts=3))) == 3


def test_errors_say_where_the_chunk_stands() -> None:
    expected = pytest.raises(EngineError, match="from 0 at line 1025: texts: 3")
    with expected, records.placed([Record("", "", 1025)]):
        raise EngineError("texts: 3")


def test_source_that_is_not_there(tmp_path: Path) -> None:
    expected = pytest.raises(InputError, match=r"cannot read .*none\.txt: No such file")
    with expected, records.source(tmp_path / "none.txt"):
        pass


def check_equal(found: Embeddings, i: int, dense: object, ids: object, weights: object) -> None:
    assert found.dense is not None
    assert found.sparse is not None
    np.testing.assert_array_equal(np.array(dense, np.float32), found.dense[i])
    np.testing.assert_array_equal(np.array(ids, np.int32), found.sparse.ids[i])
    np.testing.assert_array_equal(np.array(weights, np.float32), found.sparse.weights[i])


def test_jsonl_gives_the_same_floats_back(model: M3, tmp_path: Path) -> None:
    found = save(model, tmp_path / "out.jsonl")
    assert found.colbert is not None
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["t0", "t1", "t2", "t3"]
    for i, line in enumerate(lines):
        check_equal(found, i, line["dense"], *(line["sparse"][k] for k in ("indices", "values")))
        np.testing.assert_array_equal(np.array(line["colbert"], np.float32), found.colbert[i])
        assert line["n_tokens"] == found.n_tokens[i]
        assert line["truncated"] is False


@pytest.mark.parametrize("value", [0.1, 1e-45, 3.4e38, 1 / 3, 0.0, 1e-5, 123456.79])
def test_floats_have_no_digits_of_float64(value: float) -> None:
    single = np.float32(value)
    text = formats.floats(np.array([single]))
    assert np.float32(json.loads(text)[0]) == single
    assert len(text) <= len("[-1.23456789e-38]")


def test_npz_gives_the_same_arrays_back(model: M3, tmp_path: Path) -> None:
    found = save(model, tmp_path / "out.npz")
    assert found.colbert is not None
    with np.load(tmp_path / "out.npz") as out:
        starts = out["sparse_starts"]
        for i in range(len(TEXTS)):
            row = slice(starts[i], starts[i + 1])
            check_equal(
                found, i, out["dense"][i], out["sparse_ids"][row], out["sparse_weights"][row]
            )
            colbert = out["colbert"][out["colbert_starts"][i] : out["colbert_starts"][i + 1]]
            np.testing.assert_array_equal(colbert, found.colbert[i])
        assert out["ids"].tolist() == ["t0", "t1", "t2", "t3"]
        np.testing.assert_array_equal(out["n_tokens"], found.n_tokens)
        np.testing.assert_array_equal(out["truncated"], found.truncated)


def test_parquet_gives_the_same_lists_back(model: M3, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    found = save(model, tmp_path / "out.parquet")
    assert found.colbert is not None
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["t0", "t1", "t2", "t3"]
    for i, row in enumerate(rows):
        check_equal(found, i, row["dense"], row["sparse_ids"], row["sparse_weights"])
        np.testing.assert_array_equal(np.array(row["colbert"], np.float32), found.colbert[i])
        assert row["n_tokens"] == found.n_tokens[i]
    assert parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == 2


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("chunks", [0, 1])
def test_only_the_heads_asked_for(model: M3, tmp_path: Path, form: Format, chunks: int) -> None:
    path = tmp_path / f"out.{form}"
    save(model, path, Heads.DENSE, chunks)
    if form is Format.NPZ:
        with np.load(path) as out:
            assert set(out) == {"ids", "n_tokens", "truncated", "dense"}
            assert out["dense"].shape == (chunks * len(TEXTS), fake.WIDTH)
    elif form is Format.PARQUET:
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert table.column_names == ["id", "n_tokens", "truncated", "dense"]
        assert len(table) == chunks * len(TEXTS)
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == chunks * len(TEXTS)
        assert all(set(line) == {"id", "n_tokens", "truncated", "dense"} for line in lines)


@pytest.mark.parametrize("form", Format)
def test_nothing_at_all_is_a_file_with_every_column(
    model: M3, tmp_path: Path, form: Format
) -> None:
    path = tmp_path / f"out.{form}"
    save(model, path, chunks=0)
    if form is Format.NPZ:
        with np.load(path) as out:
            assert out["colbert"].shape == (0, fake.WIDTH)
            assert out["sparse_starts"].tolist() == [0]
    elif form is Format.PARQUET:
        assert "colbert" in pytest.importorskip("pyarrow.parquet").read_table(path).column_names
    else:
        assert path.read_bytes() == b""


def test_parquet_without_pyarrow(
    model: M3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnavailableError, match=r"pip install 'm3rt\[parquet\]'"):
        save(model, tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    with contextlib.suppress(KeyboardInterrupt), formats.sink(path, Format.JSONL) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, target = tmp_path / "link.jsonl", tmp_path / "target.jsonl"
    link.symlink_to(target)
    with formats.sink(link, Format.JSONL) as file:
        file.write(b"all")
    assert link.is_symlink()
    assert target.read_bytes() == b"all"


def test_a_device_is_written_not_replaced() -> None:
    with formats.sink(Path(os.devnull), Format.JSONL) as file:
        file.write(b"all")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("name", [".", "none/out.jsonl"])
def test_output_that_cannot_be(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(InputError, match="cannot write"),
        formats.sink(tmp_path / name, Format.JSONL),
    ):
        pass
