"""Texts of declared lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint import train_tokenizer
from m3rt import mixes
from m3rt.errors import InputError
from m3rt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return Tokenizer.from_file(folder / "tokenizer.json")


@pytest.mark.parametrize("name", mixes.LENGTHS)
def test_built_in_mixes_have_the_declared_lengths(tokenizer: Tokenizer, name: str) -> None:
    found = mixes.read(name, tokenizer, 8192)
    lengths = sorted(tokenizer.lengths(found.texts).tolist())
    for length, declared in zip(lengths, sorted(mixes.LENGTHS[name]), strict=True):
        assert declared - 1 <= length <= declared


def test_what_is_declared() -> None:
    queries, passages = sorted(mixes.LENGTHS["queries"]), mixes.LENGTHS["passages"]
    assert queries[len(queries) // 2] == 12
    assert (min(passages) >= 100, max(passages) <= 500) == (True, True)
    short = [length for length in mixes.LENGTHS["mixed"] if length < 64]
    assert (len(short), len(mixes.LENGTHS["mixed"])) == (48, 64)


def test_a_mix_is_the_same_each_time_and_within_it_texts_differ(tokenizer: Tokenizer) -> None:
    first, second = (mixes.read("mixed", tokenizer, 8192) for _ in range(2))
    assert first == second
    assert len(set(first.texts)) > 60


def test_a_mix_fits_a_shorter_model(tokenizer: Tokenizer) -> None:
    found = mixes.read("long", tokenizer, 512)
    assert all(511 <= length <= 512 for length in tokenizer.lengths(found.texts))


def test_a_file_of_the_user(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    (tmp_path / "a.jsonl").write_text('{"title": "the", "text": "model"}\n')
    assert mixes.read(str(tmp_path / "a.txt"), tokenizer, 64).texts == ("one", "two words")
    assert mixes.read(str(tmp_path / "a.jsonl"), tokenizer, 64).texts == ("the model",)


def test_of_a_large_file_the_beginning_is_taken(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line\n" * 1000)
    assert len(mixes.read(str(tmp_path / "a.txt"), tokenizer, 64).texts) == mixes.TEXTS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none", None, "no mix 'none', and no such file; there are queries, passages"),
        ("empty.txt", b"", "holds no text"),
        ("bad.txt", b"\xff\n", "line 1: byte 0 is 0xff"),
    ],
)
def test_what_is_no_mix(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: bytes | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        mixes.read(name, tokenizer, 64)
