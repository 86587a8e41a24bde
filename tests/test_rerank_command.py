"""m3rt rerank: what it reads, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import m3rt
from m3rt import cli

DOCUMENTS = [
    "The Seine flows through Paris.",
    "She bought bread and cheese.",
    "water " * 2000,
    "",
    "The capital of France is Paris.",
]
QUERY = "Which river flows through Paris?"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Queries with documents, in every form there is."""
    lines = [
        {"query": QUERY, "documents": DOCUMENTS},
        {"id": "q2", "query": "巴黎", "documents": [{"_id": "a", "text": "b", "title": "t"}, "c"]},
        {"_id": 7, "query": "", "document": "a document", "other": [1]},
        {"query": "nothing", "documents": []},
    ]
    path = tmp_path / "queries.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    return path


def run(*arguments: object, stdin: str | bytes = b"") -> Any:
    return CliRunner().invoke(cli.app, ["rerank", *map(str, arguments)], input=stdin)


def lines(data: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_rank_equals_the_library(file: Path, reranker_dir: Path, reranker: m3rt.Reranker) -> None:
    done = run(reranker_dir, file, "--engine", "cpu")
    assert done.exit_code == 0, done.output
    found = lines(done.stdout)
    assert [(one["query"], one["rank"]) for one in found] == [
        *[("1", rank) for rank in (1, 2, 3, 4, 5)],
        *[("q2", 1), ("q2", 2), ("7", 1)],
    ]
    expected = reranker.rank(QUERY, DOCUMENTS)
    for one, ranked in zip(found, expected, strict=False):
        assert one["id"] == str(ranked.index)
        assert np.float32(one["score"]) == np.float32(ranked.score)
        assert one["truncated"] == ranked.truncated == (ranked.index == 2)
    assert {one["id"] for one in found if one["query"] == "q2"} == {"a", "1"}
    second = reranker.score([("巴黎", "t b")]).scores[0]
    assert np.float32(next(one for one in found if one["id"] == "a")["score"]) == second
    assert "text" not in found[0]
    assert done.stderr == "1 of 8 pairs were too long and are truncated\n"


def test_one_query_and_lines(reranker_dir: Path, reranker: m3rt.Reranker) -> None:
    options = ("--query", QUERY, "--engine", "cpu", "--top", 3, "--text", "--normalize", "--json")
    done = run(reranker_dir, *options, stdin="\n".join(DOCUMENTS))
    assert done.exit_code == 0, done.output
    expected = reranker.rank(QUERY, DOCUMENTS, 3, normalize=True)
    found = lines(done.stdout)
    assert [one["id"] for one in found] == [str(ranked.index + 1) for ranked in expected]
    assert [one["text"] for one in found] == [DOCUMENTS[ranked.index] for ranked in expected]
    assert [one["rank"] for one in found] == [1, 2, 3]
    np.testing.assert_array_equal(
        np.array([one["score"] for one in found], np.float32),
        np.array([ranked.score for ranked in expected], np.float32),
    )
    assert all("query" not in one and 0 < one["score"] < 1 for one in found)
    summary = json.loads(done.stderr)
    counted = {"queries", "pairs", "tokens", "truncated", "recomputed"}
    assert summary.keys() == counted | {"engine", "why", "seconds"}
    assert (summary["engine"], summary["recomputed"]) == ("cpu:fp32", 0)
    assert (summary["queries"], summary["pairs"], summary["truncated"]) == (1, 5, 1)


def test_records_and_output(reranker_dir: Path, tmp_path: Path) -> None:
    documents, out = tmp_path / "documents.jsonl", tmp_path / "out.jsonl"
    documents.write_text('{"_id": "d1", "text": "a"}\n{"text": "b", "title": "c"}\n')
    done = run(reranker_dir, documents, "--query", "a", "--output", out, "--engine", "cpu")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert {one["id"] for one in lines(out.read_text())} == {"d1", "2"}


def test_many_lines_stay_in_order(reranker_dir: Path) -> None:
    pairs = [{"query": str(i), "document": str(i % 3)} for i in range(2500)]
    stdin = "\n".join(map(json.dumps, pairs))
    done = run(reranker_dir, "--engine", "cpu", stdin=stdin)
    assert [one["query"] for one in lines(done.stdout)] == [str(i) for i in range(1, 2501)]


def test_of_nothing(reranker_dir: Path) -> None:
    for options in ((), ("--query", "a")):
        done = run(reranker_dir, *options, "--engine", "cpu")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


PAIR = b'{"query": "a", "document": "b"}\n'
BAD: dict[str, tuple[bytes, str]] = {
    "text": (b"a line\n", "stdin, line 1: not JSON .*; for lines of documents pass --query"),
    "a list": (PAIR + b"[1]", "line 2: found a JSON list, expected an object with 'query'"),
    "no query": (b'{"document": "b"}', "the object has no 'query', only 'document'"),
    "no documents": (b'{"query": "b"}', "expected 'documents', a list, or one 'document'"),
    "both": (b'{"query": "b", "document": "a", "documents": []}', "or one 'document'; found"),
    "a number": (b'{"query": 3, "document": "b"}', "'query' is int, expected a string"),
    "an object": (b'{"query": "a", "documents": {}}', "'documents' is dict, expected a list"),
    "null": (b'{"query": "a", "document": null}', "document 0: found a JSON NoneType"),
    "deep": (b'{"query": "a", "documents": ["b", {"id": "c"}]}', "document 1: .* no 'text'"),
    "an id": (b'{"query": "a", "document": "b", "id": [1]}', "the id is list"),
    "a surrogate": (rb'{"query": "\ud83d", "document": "b"}', "lone surrogate"),
    "latin 1": (PAIR + b'{"query": "\xe9", "document": "b"}', "line 2: byte 11 is 0xe9"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named(name: str, reranker_dir: Path, tmp_path: Path) -> None:
    data, message = BAD[name]
    out = tmp_path / "out.jsonl"
    done = run(reranker_dir, "--engine", "cpu", "-o", out, stdin=data)
    assert done.exit_code == m3rt.InputError.exit_code, done.output
    assert pytest.RaisesExc(Exception, match=message).matches(Exception(done.stderr)), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_long_is_refused_and_placed(file: Path, reranker_dir: Path) -> None:
    done = run(reranker_dir, file, "--engine", "cpu", "--on-long", "error")
    assert done.exit_code == m3rt.InputError.exit_code
    assert "counting pairs from 0 at line 1: 1 pair(s) are longer than 1024 tokens" in done.stderr


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--max-length", 5), 3), (("--batch-tokens", 0), 3), (("--top", 0), 2)],
)
def test_bad_options(options: tuple[object, ...], code: int, reranker_dir: Path) -> None:
    assert run(reranker_dir, "--engine", "cpu", *options).exit_code == code


def test_wrong_models(model_dir: Path, reranker_dir: Path) -> None:
    done = run(model_dir, "--engine", "cpu", "--json")
    assert done.exit_code == m3rt.InputError.exit_code
    assert "is an embedder" in json.loads(done.stderr)["error"]["message"]
    for command in ("encode", "bench"):
        other = CliRunner().invoke(cli.app, [command, str(reranker_dir), "--engine", "cpu"])
        assert other.exit_code == m3rt.InputError.exit_code
        assert "is a reranker" in other.stderr
