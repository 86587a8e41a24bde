"""The race's driver, with workers that are quick and break on demand.

This file is such a worker, too: python -m tests.test_peers.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import accuracy, environments, table, worker
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.process import PeerError
from benchmarks.peers.worker import Job, Outputs

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
RESULT = ROOT / "benchmarks" / "results" / "race.json"
TEXTS = ["one river", "two rivers and a bridge", "three"]
PEAKS = {"fp32": 100.0, "bf16": 200.0, "int8": 400.0}


class Fake:
    """A runtime without a model."""

    def __init__(self, job: Job) -> None:
        self._options = job.options
        if job.options.get("breaks") == "load":
            raise ValueError(f"no weights in {job.model}/weights.bin")

    def encode(self, texts: list[str], batch: int | None) -> list[str]:
        breaks = self._options.get("breaks") if batch is None else None  # not in the warm-up
        if breaks == "encode":
            raise RuntimeError("out of tokens")
        if breaks == "exit":
            sys.stderr.write("a library said its last\n")
            os._exit(3)
        if breaks == "hang":
            time.sleep(60)
        print("a line that no protocol expects")  # noqa: T201
        time.sleep(self._options.get("seconds", {}).get(str(batch), 0.02))
        return texts

    def outputs(self, found: list[str]) -> Outputs:
        noise = self._options.get("noise", 0.0)
        vectors = [np.array([len(text), 1 + noise], np.float32) for text in found]
        return Outputs(
            np.stack([vector / np.linalg.norm(vector) for vector in vectors]),
            [{5: 0.5, 7: len(text) / 100 + noise} for text in found],
            [np.tile(vector, (len(text), 1)) for vector, text in zip(vectors, found, strict=True)],
        )


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    race = pytest.importorskip("benchmarks.race")
    monkeypatch.setattr(race.machine, "peaks", lambda: PEAKS)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS))
    return race.Course(tmp_path, tmp_path, texts, 30, {16: "a query", 512: "a text"})


def fake(name: str, **changes: Any) -> Contender:
    contender = Contender(name, "tests.test_peers", "fp32", ("dense", "sparse", "colbert"), "model")
    return dataclasses.replace(contender, **changes)


def run(course: Any, *contenders: Contender, rounds: int = 2) -> dict[str, Any]:
    from benchmarks import race

    found: dict[str, Any] = race.race(contenders, course, rounds, course.work / "race.json")
    return found


def test_a_race_gives_speed_latency_memory_and_accuracy(course: Any) -> None:
    slow = {"seconds": {"1": 0.08, "4": 0.01, "32": 0.12}, "noise": 0.01}
    found = run(
        course,
        fake("FlagEmbedding fp32"),
        fake("peer", options=slow, batches=(1, 4), default_batch=32),
    )
    row = found["rows"]["peer"]
    assert row["batch"] == 4
    assert row["trial"].keys() == {"1", "4", "32"}
    assert row["default_tokens_per_second"] <= 30 / 0.12
    assert len(row["seconds"]) == len(row["load_seconds"]) == 2
    assert 30 / 0.08 < row["tokens_per_second"] <= 30 / 0.01
    assert row["median_ms"]["16"] >= 80
    assert row["peak_bytes"] > 1 << 20
    assert row["reference"] == "FlagEmbedding fp32"
    assert 0 < 1 - row["accuracy"]["dense"]["cosine_min"] < 1e-3
    assert row["accuracy"]["sparse"]["weight_error_max"] == pytest.approx(0.01, rel=1e-4)
    assert row["accuracy"]["sparse"]["top10_equal"] == 1
    assert row["accuracy"]["colbert"]["other_tokens"] == 0
    (name,) = found["runs"]
    assert row["run"] == name
    assert found["runs"][name]["peaks"] == {"before": PEAKS, "after": PEAKS}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": {"breaks": "load"}}, "ValueError: no weights in weights.bin"),
        ({"options": {"breaks": "encode"}}, "RuntimeError: out of tokens"),
        ({"options": {"breaks": "exit"}}, "ended with 3: a library said its last"),
        ({"options": {"breaks": "hang"}, "patience": 0.5}, "no answer within 0 s"),
        ({"worker": "tests.no_such_worker"}, "No module named"),
    ],
    ids=["load", "encode", "exit", "hang", "absent"],
)
def test_one_that_breaks_is_an_error_row(
    course: Any, changes: Mapping[str, Any], reason: str
) -> None:
    found = run(course, fake("broken", **changes), fake("sound"), rounds=1)
    assert reason in found["rows"]["broken"]["error"]
    assert "seconds" not in found["rows"]["broken"]
    assert len(found["rows"]["sound"]["seconds"]) == 1
    assert reason in table.markdown(found)


def test_a_result_is_replaced_in_parts_and_runs_are_not_mixed(course: Any) -> None:
    first = run(course, fake("m3rt cpu:fp32"), fake("peer"), fake("other"))
    second = run(course, fake("peer"))
    assert second["rows"]["other"] == first["rows"]["other"]
    assert second["rows"]["peer"]["run"] != first["rows"]["peer"]["run"]
    assert len(second["runs"]) == 2
    assert table.ratio(second, "m3rt cpu:fp32", "other") is not None
    assert table.ratio(second, "m3rt cpu:fp32", "peer") is None
    assert table.times(second, "m3rt cpu:fp32", "peer") == ""
    assert "| peer (another run) |" in table.markdown(second)
    assert len(run(course, fake("m3rt cpu:fp32"), fake("peer"), fake("other"))["runs"]) == 1


def test_the_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pretend(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pretend)
    python = tmp_path / "peers" / "fastembed" / "venv" / "bin" / "python"
    for _ in range(2):
        assert environments.interpreter("fastembed", tmp_path) == python
    assert [command[0] for command in commands] == [sys.executable, str(python)]
    assert environments.interpreter(None, tmp_path) == Path(sys.executable)


def test_an_environment_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        options["stdout"].write("ERROR: no such version\n")
        options["stdout"].flush()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(PeerError, match="fastembed does not install: ERROR: no such version"):
        environments.interpreter("fastembed", tmp_path)
    assert not (tmp_path / "peers" / "fastembed" / "installed.txt").exists()


def test_texts_cut_into_other_tokens_are_counted() -> None:
    one: accuracy.Arrays = {
        "colbert": np.ones((3, 3), np.float32),
        "colbert_starts": worker.starts([1, 2]),
    }
    two: accuracy.Arrays = {
        "colbert": np.ones((4, 3), np.float32),
        "colbert_starts": worker.starts([1, 3]),
    }
    assert accuracy.compare(one, two)["colbert"] == {
        "other_tokens": 1,
        "cosine_min": pytest.approx(1),
        "cosine_mean": pytest.approx(1),
    }


def test_lexical_weights_are_merged_as_the_reference_does() -> None:
    ids, weights = np.array([0, 7, 7, 9, 2], np.int32), np.array([1, 0.2, 0.4, 0, 1], np.float32)
    assert worker.lexical(ids, weights, frozenset({0, 2})) == {7: pytest.approx(0.4)}


def test_single_texts_have_just_so_many_tokens(model_dir: Path) -> None:
    from benchmarks import race
    from m3rt.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(model_dir / "tokenizer.json")
    words = ["Which", "river", "flows", "through", "Paris,", "and", "where", "does", "it", "end?"]
    for tokens in (3, 16, 40):
        text = race.exactly(tokens, tokenizer, words)
        assert tokenizer.lengths([text]).tolist() == [tokens]


def row(run: str, rate: float, cosine: float | None = None, **changes: Any) -> dict[str, Any]:
    figures = {
        "dense": {"cosine_min": cosine},
        "sparse": {"top10_equal": 0.75},
        "colbert": {"cosine_min": cosine, "other_tokens": 0},
    }
    return {
        "run": run,
        "precision": "fp32",
        "heads": ["dense", "sparse", "colbert"],
        "versions": {"torch": "2"},
        "seconds": [30 / rate],
        "tokens_per_second": rate,
        "median_ms": {"16": 20.4, "512": 400.0},
        "peak_bytes": 3 << 30,
        "reference": "FlagEmbedding fp32",
        "accuracy": {} if cosine is None else figures,
    } | changes


def result(rows: Mapping[str, Any], runs: Iterable[str] = ("today", "before")) -> dict[str, Any]:
    about = {
        "started": "2026-01-02T03:04:05.678",
        "machine": {"cpu": "A Processor", "cores": 2},
        "texts": 64,
        "tokens": 6000,
        "rounds": 3,
        "peaks": {"before": PEAKS, "after": PEAKS | {"bf16": 604.0}},
    }
    return {"runs": dict.fromkeys(runs, about), "rows": dict(rows)}


def test_the_table_of_a_result() -> None:
    found = result(
        {
            "FlagEmbedding fp32": row(
                "today",
                50,
                1.0,
                batch=4,
                default_batch=256,
                default_tokens_per_second=10.0,
            ),
            "m3rt openvino:bf16": row("today", 500, 0.99995, precision="bf16"),
            "m3rt openvino:int8": row("today", 900, 0.99, precision="int8"),
            "sentence-transformers torch bf16": row("today", 250, 0.9999, heads=["dense"]),
            "bge-m3-lite int8": row("today", 400, 0.99),
            "optimum ONNX fp32": row("before", 100, 1.0),
            "CTranslate2 bf16": {"run": "today", "error": "it knows none"},
        }
    )
    lines = table.markdown(found).splitlines()
    assert lines[0].startswith("| 64 texts, 6000 tokens | heads | tokens/s | m3rt openvino:bf16 is")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    by_name = {line.split(" |")[0].removeprefix("| "): line for line in lines}
    reference = by_name["FlagEmbedding fp32, batch 4"]
    assert "| three | 50 (10 at its default of 256) | 10.00 | 30% | 20 ms | 400 ms |" in reference
    assert reference.endswith("| reference | reference | reference |")
    assert (
        "| 1.00 | 50% | 20 ms | 400 ms | 3.0 GiB | 5e-05 | 5e-05 | 75% |"
        in (by_name["m3rt openvino:bf16"])
    )
    assert "| 100 |  | 60% |" in by_name["optimum ONNX fp32 (another run)"]
    text = "\n".join(lines)
    assert "bf16 200 / 604" in text
    assert "m3rt openvino:bf16 is at 50% of bf16's" in text
    # bge-m3-lite in int8 is faster, and not as accurate; FlagEmbedding has all three heads
    assert (
        "of any is sentence-transformers torch bf16: m3rt openvino:bf16 is faster by 2.00" in text
    )
    assert "three heads is FlagEmbedding fp32: m3rt openvino:bf16 is faster by 10.00" in text
    assert "m3rt openvino:int8 is faster than m3rt openvino:bf16 by 1.80" in text
    assert "Could not run here: CTranslate2 bf16 (it knows none)." in text


def test_a_result_without_a_row_that_ran() -> None:
    found = result({"peer": {"run": "today", "error": "no"}})
    assert table.markdown(found) == "Could not run here: peer (no)."


def test_readme_shows_the_committed_result() -> None:
    if not RESULT.exists():
        pytest.skip("no race has been committed")
    found = json.loads(RESULT.read_text("utf-8"))
    assert table.markdown(found) in (ROOT / "README.md").read_text("utf-8")


def test_contenders_have_what_they_need() -> None:
    assert len({contender.name for contender in CONTENDERS}) == len(CONTENDERS)
    for contender in CONTENDERS:
        assert (ROOT / f"{contender.worker.replace('.', '/')}.py").is_file()
        if contender.requirements is not None:
            assert (PEERS / f"{contender.requirements}.txt").is_file()


@pytest.mark.parametrize("file", sorted(PEERS.glob("*.txt")), ids=lambda file: file.stem)
def test_requirements_are_pinned(file: Path) -> None:
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+", line), line


def test_workers_of_peers_import_nothing_of_ours() -> None:
    workers = {contender.worker.rsplit(".", 1)[1] for contender in CONTENDERS}
    for name in sorted(workers - {"ours"} | {"worker"}):
        for node in ast.walk(ast.parse((PEERS / f"{name}.py").read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for found in names:
                assert not found.startswith("m3rt"), f"{name} imports {found}"
                assert found in ("benchmarks.peers.worker",) or not found.startswith("benchmarks")


if __name__ == "__main__":
    worker.serve(Fake)
