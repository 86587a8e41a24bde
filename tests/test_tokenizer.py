"""Texts to ids. That the ids are FlagEmbedding's is in test_properties and test_fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from m3rt import ArtifactError, InputError
from m3rt.export.samples import sentences
from m3rt.tokenizer import CHUNK, Tokenizer

TEXTS = [*sentences(), "", " \n", "<mask> <s>", "train " * 400]


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    return checkpoint / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.from_file(file)


def rows(tokenizer: Tokenizer, texts: list[str], max_length: int) -> list[list[int]]:
    ids = tokenizer(texts, max_length).ids
    return [ids[i].tolist() for i in range(len(ids))]


def test_special_tokens_stand_around_a_text(tokenizer: Tokenizer) -> None:
    assert rows(tokenizer, [""], 8192) == [[0, 2]]
    first, *inner, last = rows(tokenizer, ["the train"], 8192)[0]
    assert (first, last) == (0, 2)
    assert "".join(map(tokenizer.piece, inner)) == "▁the▁train"


@pytest.mark.parametrize("max_length", [2, 3, 7, 400])
def test_a_cut_keeps_the_first_tokens_and_the_closing_one(
    tokenizer: Tokenizer, max_length: int
) -> None:
    whole, cut = rows(tokenizer, TEXTS, 10_000), rows(tokenizer, TEXTS, max_length)
    for before, after in zip(whole, cut, strict=True):
        assert after == (before if len(before) <= max_length else [*before[: max_length - 1], 2])
    truncated = tokenizer(TEXTS, max_length).truncated
    assert truncated.tolist() == [len(ids) > max_length for ids in whole]
    assert truncated.any()


def test_lengths_are_before_any_cut(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.lengths(TEXTS)
    assert lengths.tolist() == [len(ids) for ids in rows(tokenizer, TEXTS, 10_000)]
    assert lengths.max() > 400


def test_no_texts(tokenizer: Tokenizer) -> None:
    tokens = tokenizer([], 8192)
    assert (len(tokens.ids), len(tokens.truncated)) == (0, 0)
    assert tokens.ids.values.dtype == tokenizer.lengths([]).dtype == np.int32


def test_more_texts_than_a_chunk_stay_in_order(tokenizer: Tokenizer) -> None:
    texts = [str(i) for i in range(2 * CHUNK + 3)]
    assert rows(tokenizer, texts, 8192) == [rows(tokenizer, [text], 8192)[0] for text in texts]
    assert tokenizer.lengths(texts).tolist() == list(map(len, rows(tokenizer, texts, 8192)))


@pytest.mark.parametrize("texts", ["a text", b"a text"])
def test_a_bare_text_is_refused(tokenizer: Tokenizer, texts: Any) -> None:
    for call in calls(tokenizer):
        with pytest.raises(InputError, match=rf"one {type(texts).__name__}: pass \[text\]"):
            call(texts)


@pytest.mark.parametrize("bad", [None, b"bytes", 3, ["a", "pair"], float("nan")])
def test_what_is_no_str_is_refused_with_its_place(tokenizer: Tokenizer, bad: Any) -> None:
    for call in calls(tokenizer):
        with pytest.raises(InputError, match=f"text 2 is {type(bad).__name__}, expected str"):
            call(["a", "b", bad])


@pytest.mark.parametrize("place", [0, CHUNK - 1, CHUNK + 5])
def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer, place: int) -> None:
    texts = ["a"] * (CHUNK + 6)
    texts[place] = "😀 ok \ud83d"
    for call in calls(tokenizer):
        with pytest.raises(InputError, match=rf"text {place} .*U\+D83D, at character 5"):
            call(texts)


def test_threads_with_other_max_lengths_share_one_tokenizer(tokenizer: Tokenizer) -> None:
    lengths = [2, 5, 16, 8192] * 16
    expected = {length: rows(tokenizer, TEXTS, length) for length in set(lengths)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda length: rows(tokenizer, TEXTS, length), lengths))
    assert found == [expected[length] for length in lengths]


def test_truncation_and_padding_in_the_file_are_ignored(file: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    changed = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert rows(changed, TEXTS, 8192) == rows(Tokenizer.from_file(file), TEXTS, 8192)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: "",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: "not JSON",
        lambda whole: "{}",
        lambda whole: json.dumps(json.loads(whole) | {"model": {"type": "Unigram"}}),
    ],
    ids=["empty", "cut", "text", "no tokenizer", "no vocabulary"],
)
def test_a_damaged_file_is_named(file: Path, tmp_path: Path, damage: Callable[[str], str]) -> None:
    damaged = tmp_path / "tokenizer.json"
    damaged.write_text(damage(file.read_text("utf-8")), "utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not a tokenizer\.json: "):
        Tokenizer.from_file(damaged)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.json is not a tokenizer\.json: "):
        Tokenizer.from_file(tmp_path / "absent.json")


def test_a_tokenizer_without_special_tokens_is_refused(file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "tokenizer.json"
    bare.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"post_processor": None}))
    with pytest.raises(ArtifactError, match=r"^the tokenizer adds 0 special tokens .*<s>.*</s>"):
        Tokenizer.from_file(bare)


def test_every_id_has_a_piece_of_its_own(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert pieces[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(set(pieces)) == len(pieces)


def test_decode_keeps_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0, 3, 2]).replace(" ", "") == "<s><unk></s>"


def test_a_piece_that_is_not_there(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=f"no token has the id {tokenizer.vocab_size}; there are"):
        tokenizer.piece(tokenizer.vocab_size)


def calls(tokenizer: Tokenizer) -> list[Callable[[Any], Any]]:
    return [lambda texts: tokenizer(texts, 8192), tokenizer.lengths]
