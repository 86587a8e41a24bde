"""Retrieval data sets: every layout as it is published, and what is wrong with a file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt import answers, datasets, layouts
from m3rt.datasets import Dataset
from m3rt.errors import InputError
from m3rt.layouts import Layout
from m3rt.tokenizer import Tokenizer
from tests import sets

JOINED = tuple(f"{title} {text}".strip() for title, text in sets.DOCUMENTS.values())


def check(found: Dataset) -> None:
    """Every layout holds the same set."""
    assert found.documents.ids == tuple(sets.DOCUMENTS)
    assert found.documents.texts == JOINED
    assert dict(zip(found.queries.ids, found.queries.texts, strict=True)) == sets.QUERIES
    assert found.qrels == sets.QRELS


@pytest.mark.parametrize(("end", "qrels"), [("", "qrels/test.tsv"), (".gz", "qrels.tsv")])
def test_beir(tmp_path: Path, end: str, qrels: str) -> None:
    found = datasets.read(sets.beir(tmp_path / "set", end, qrels))
    check(found)
    assert (found.name, found.layout, found.language) == ("set", Layout.BEIR, None)
    assert found.exclude_same_id


def test_the_split_is_chosen(tmp_path: Path) -> None:
    folder = sets.beir(tmp_path)
    sets.write(folder / "qrels/train.tsv", "query-id\tcorpus-id\tscore\ntrain-1\td4\t1\n")
    assert datasets.read(folder).queries.ids == ("q1", "q2")
    assert datasets.read(folder, split="train").queries.ids == ("train-1",)
    with pytest.raises(InputError, match="'dev', only for 'test', 'train'"):
        datasets.read(folder, split="dev")


@pytest.mark.parametrize("beside", ["", "miracl-corpus"])
def test_miracl(tmp_path: Path, beside: str) -> None:
    found = datasets.read(sets.miracl(tmp_path, "sw", beside))
    check(found)
    assert (found.name, found.layout, found.language) == ("miracl-sw", Layout.MIRACL, "sw")
    check(datasets.read(tmp_path / "miracl-v1.0-sw"))


def test_miracl_as_two_repositories(tmp_path: Path) -> None:
    sets.miracl(tmp_path / "miracl", "sw", "../miracl-corpus")
    check(datasets.read(tmp_path))
    check(datasets.read(tmp_path / "miracl"))


@pytest.mark.parametrize("qrels", [True, False])
def test_mldr(tmp_path: Path, qrels: bool) -> None:
    found = datasets.read(sets.mldr(tmp_path, "th", qrels))
    assert found.documents.texts == JOINED
    relevant = {q: {d: min(g, 1) for d, g in grades.items()} for q, grades in sets.QRELS.items()}
    assert found.qrels == (sets.QRELS if qrels else relevant)  # passages are relevant or not
    assert (found.name, found.layout, found.language) == ("mldr-th", Layout.MLDR, "th")
    assert datasets.read(tmp_path, split="dev").queries.ids == ("q1",)
    assert datasets.read(tmp_path / "mldr-v1.0-th").qrels == found.qrels


@pytest.mark.parametrize(
    ("titles", "split", "layout"), [(True, "dev", Layout.MIRACL), (False, "test", Layout.MLDR)]
)
def test_what_flagembedding_stores(
    tmp_path: Path, titles: bool, split: str, layout: Layout
) -> None:
    found = datasets.read(sets.flag(tmp_path / "set", "de", titles, split))
    assert (found.name, found.layout, found.language) == ("set-de", layout, "de")
    assert found.qrels == sets.QRELS
    assert found.documents.ids == tuple(sets.DOCUMENTS)
    inside = datasets.read(tmp_path / "set" / "de")
    assert (inside.name, inside.language, inside.qrels) == ("de", None, sets.QRELS)


def test_mkqa(tmp_path: Path) -> None:
    found = datasets.read(sets.mkqa(tmp_path), language="ja")
    assert (found.name, found.layout, found.language) == ("mkqa-ja", Layout.MKQA, "ja")
    assert found.queries.ids == ("7", "8", "9")
    assert found.answers["8"] == ("100 °C", "ONE hundred")
    assert found.qrels == {}
    assert found.documents.texts == tuple(map(str.lower, JOINED))


def test_mkqa_as_flagembedding_stores_it(tmp_path: Path) -> None:
    sets.mkqa(tmp_path, [])
    sets.jsonl(tmp_path / "de/test_queries.jsonl", [{"id": "7", "text": "Welcher Fluss?"}])
    sets.jsonl(tmp_path / "de/test_qrels.jsonl", [{"qid": "7", "answers": ["the Seine"]}])
    found = datasets.read(tmp_path)
    assert (found.layout, found.language) == (Layout.MKQA, "de")
    assert found.answers == {"7": ("the Seine",)}


def test_squad(tmp_path: Path) -> None:
    file = sets.squad(tmp_path / "xquad.de.json")
    for found in (datasets.read(file), datasets.read(tmp_path, language="de")):
        assert (found.name, found.layout, found.language) == ("xquad.de", Layout.SQUAD, "de")
        assert found.documents.texts == tuple(text for _, text in sets.DOCUMENTS.values())
        assert len(found.queries) == 10
        assert found.qrels["0-1"] == found.qrels["4-0"] == {"0": 1}


def test_the_language_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    sets.mldr(sets.mldr(tmp_path, "de"), "th")
    assert layouts.languages(tmp_path) == ["de", "th"]
    with pytest.raises(InputError, match="in 2 languages: pass --language, one of de, th"):
        datasets.read(tmp_path)
    check(datasets.read(tmp_path, language="th"))
    with pytest.raises(InputError, match="not in the language 'xx', it has de, th"):
        datasets.read(tmp_path, language="xx")


def test_real_sets(data: Path) -> None:
    found = datasets.read(data / "ir/scifact")
    assert (len(found.documents), len(found.queries)) == (5183, 300)
    assert sum(map(len, found.qrels.values())) == 339
    languages = layouts.languages(data / "ir/xquad")
    assert "zh" in languages
    for language in languages:
        found = datasets.read(data / "ir/xquad", language=language)
        assert (len(found.documents), len(found.queries)) == (240, 1190)


def test_a_smaller_set_keeps_what_is_judged(tmp_path: Path) -> None:
    whole = datasets.read(sets.beir(tmp_path))
    assert whole.first() is whole
    assert whole.first(5, 9) is whole
    one = whole.first(1, 3)
    assert one.queries.ids == ("q1",)
    assert one.qrels == {"q1": sets.QRELS["q1"]}
    assert one.documents.ids == ("d1", "d3", "d4")  # all judged, so no room for d2
    assert "1 queries, 3 documents" in one.name
    assert whole.first(1, 1).documents.ids == ("d1", "d3", "d4")
    assert whole.first(documents=3).documents.ids == tuple(sets.DOCUMENTS)


def beir_with(name: str, text: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(data)

    return damage


ROW = '{"_id": "d9", "text": "x"}\n'
DAMAGED = {
    "not JSON": (beir_with("corpus.jsonl", ROW + "{"), "corpus.jsonl, line 2: not JSON"),
    "a list": (beir_with("corpus.jsonl", "[1]\n"), "line 1: found a JSON list"),
    "no text": (beir_with("corpus.jsonl", '{"_id": "d1"}\n'), "no 'text', only '_id'"),
    "a number": (beir_with("corpus.jsonl", '{"_id": "d1", "text": 1}\n'), "'text' is int"),
    "no id": (beir_with("corpus.jsonl", '{"text": "x"}\n'), "the id '_id' is None"),
    "an id that is true": (beir_with("corpus.jsonl", '{"_id": true, "text": ""}\n'), "is True"),
    "a title that is none": (
        beir_with("corpus.jsonl", '{"_id": "d1", "title": 3, "text": ""}\n'),
        "'title' is int",
    ),
    "twice": (beir_with("corpus.jsonl", ROW * 2), "'d9' is there already: .*line 1"),
    "latin-1": (beir_with("corpus.jsonl", ROW.encode() + b"\xe4\n"), "line 2: byte 0 is no UTF-8"),
    "surrogate": (beir_with("corpus.jsonl", '{"_id": "d", "text": "\\ud800"}\n'), "surrogate"),
    "empty": (beir_with("corpus.jsonl", ""), "holds no documents"),
    "no queries": (beir_with("queries.jsonl", ""), "judges 2 queries that .* lacks.*'q1'"),
    "no judgments": (
        beir_with("qrels/test.tsv", "query-id\tcorpus-id\tscore\n"),
        "holds no judged queries",
    ),
    "nothing relevant": (beir_with("qrels/test.tsv", "q1\td1\t0\n"), "judges no document relevant"),
    "a grade of words": (
        beir_with("qrels/test.tsv", "q1\td1\tyes\n"),
        "line 1: the grade is 'yes'",
    ),
    "two fields": (beir_with("qrels/test.tsv", "q1\td1\n"), "2 fields, expected BEIR's"),
    "contradiction": (
        beir_with("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2\n"),
        "line 2: query 'q1' judges 'd1' as 2 here and 1 above",
    ),
    "unknown document": (
        beir_with("qrels/test.tsv", "q1\td1\t1\nq1\tx\t1\n"),
        "judges 1 documents .* 'x' for query 'q1'.*--keep-missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_wrong_is_said(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGED[name]
    damage(sets.beir(tmp_path))
    with pytest.raises(InputError, match=message):
        datasets.read(tmp_path)


def test_judged_documents_may_be_missing_if_asked(tmp_path: Path) -> None:
    sets.write(sets.beir(tmp_path) / "qrels/test.tsv", "q1\td1\t1\nq1\tx\t1\nq1\td1\t1\n")
    assert datasets.read(tmp_path, missing="keep").qrels == {"q1": {"d1": 1, "x": 1}}


def test_damaged_archives(tmp_path: Path) -> None:
    sets.beir(tmp_path, ".gz")
    file = tmp_path / "corpus.jsonl.gz"
    rows = "".join(ROW.replace("d9", str(i)) for i in range(20_000))
    whole = gzip.compress(rows.encode())
    for data, message in ((whole[: len(whole) // 2], "damaged after line"), (b"{}", "damaged")):
        file.write_bytes(data)
        with pytest.raises(InputError, match=message):
            datasets.read(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.write_bytes(b"x"), "is no directory"),
        (lambda path: path.mkdir(), "no data set of a layout that is known, it has nothing"),
        (lambda path: sets.jsonl(path / "corpus.jsonl", []), "it has corpus.jsonl; expected"),
        (lambda path: (path / "miracl-v1.0-de").mkdir(parents=True), "has no collection"),
        (lambda path: (path / "mldr-v1.0-de").mkdir(parents=True), "has no corpus.jsonl.gz"),
        (lambda path: sets.jsonl(path / "de.jsonl", []), "has no corpus.jsonl: expected that of"),
    ],
)
def test_what_is_no_set(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        datasets.read(tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not SQuAD's layout"),
        ('{"data": [{"paragraphs": [{"context": 1, "qas": []}]}]}', "a context is int"),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1"}]}]}]}', "no 'question'"),
        ('{"data": []}', "holds no documents"),
    ],
)
def test_what_is_no_squad(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        datasets.read(sets.write(tmp_path / "x.json", text))


def test_answers_that_are_none(tmp_path: Path) -> None:
    sets.mkqa(tmp_path, ["de"])
    row = {"id": 1, "question": "?", "answers": []}
    sets.write(tmp_path / "qa_data/de.jsonl", json.dumps(row))
    with pytest.raises(InputError, match=r"'answers' is \[\], expected a list of at least one"):
        datasets.read(tmp_path)


@pytest.mark.parametrize(
    ("answer", "text", "held"),
    [
        ("the Seine", "on the seine.", True),
        ("seine", "insein e", False),  # words, not letters
        ("100 °C", "at 100°c", True),  # signs are tokens, spaces are not
        ("São", "sa\u0303o", True),  # composed or not
        ("a b", "a, b", False),  # a comma stands between
        ("東京", "東京都", False),  # a run of letters is one token: as the reference has it
        ("", "anything", True),
    ],
)
def test_answers(answer: str, text: str, held: bool) -> None:
    assert answers.right([answer], [text]) == ([0] if held else [])


def test_documents_are_written_alike() -> None:
    # as FlagEmbedding's normalize_text and lower() give it
    assert answers.normalise("“A”–B…\u00adC\u0001 ‘d’ ″ ⁄ . . . ×") == "\"a\"-b...c 'd' '' / ... ×"


@settings(deadline=None)
@given(st.text())
def test_normalised_texts_stay(text: str) -> None:
    once = answers.normalise(text)
    assert not set(once) & set("“”‘’–—…\u00ad\u0001")
    assert answers.tokens(answers.normalise(once)) == answers.tokens(once)


def test_a_line_end_after_the_title_gives_the_same_tokens(data: Path) -> None:
    # the paper's scripts put one there for MIRACL, BEIR a space
    tokenizer = Tokenizer.from_file(data / "tokenizer" / "tokenizer.json")
    rows = [row for row in sets.DOCUMENTS.values() if row[0]]
    space, line = (tokenizer([end.join(row) for row in rows], 512).ids for end in (" ", "\n"))
    np.testing.assert_array_equal(space.values, line.values)
