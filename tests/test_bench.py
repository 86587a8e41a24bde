"""Benchmarks: the arithmetic, the processes, and the command; never how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner, Result

import m3rt
from m3rt import artifact, bench, cli, course, meter, peak, worker
from m3rt.course import flop
from m3rt.errors import EngineError
from m3rt.mixes import Mix
from m3rt.result import (
    SERIAL,
    STAGES,
    EngineRun,
    Latency,
    Model,
    Rate,
    Spread,
    percentile,
)
from m3rt.types import Heads
from m3rt.worker import Worker
from tests import contract
from tests.conftest import copied

BGE_M3 = Model("", "", None, hidden=1024, layers=24, ffn=4096)
RATES = (
    Rate("fp32", "numpy", (512, 1024, 4096), 1e9),
    Rate("fp32", "other", (512, 1024, 4096), 2e9),
)

# stand in for m3rt.meter: ready, and then gone in the first round
DIES = """
import sys
ready = '{"engine": "cpu:fp32", "load": 1, "first": 1, "memory": 1, "max_length": 9, "step": 9}'
print(ready, flush=True)
sys.stdin.readline()
sys.exit("the last word")
"""
ECHO = """
import sys
for line in sys.stdin:
    print(line, end="", flush=True)
"""


def test_spread_and_percentiles() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, p) for p in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert [percentile([2.0, 1.0], p) for p in (1, 50, 51, 99)] == [1.0, 1.0, 2.0, 2.0]
    assert Latency.of(16, [0.002, 0.001]) == Latency(16, 2, p50=1.0, p90=2.0, p99=2.0)


def test_flop() -> None:
    # 24 layers of 12 h^2 weights, two operations each
    linear = 24 * 12 * 1024**2 * 2
    assert flop([1], BGE_M3, 0) == linear + 24 * 4 * 1024
    assert flop([10, 20], BGE_M3, 0) == 30 * linear + 24 * 4 * 1024 * (10**2 + 20**2)
    assert flop([1], BGE_M3, 1024) == linear + 24 * 4 * 1024 + 2 * 1024**2
    assert flop([1], dataclasses.replace(BGE_M3, ffn=None), 0) is None


def test_facts_of_a_mix() -> None:
    found = bench.facts(Mix("m", ("",) * 5), np.array([3, 4, 16, 17, 512], np.int32))
    assert (found.texts, found.tokens) == (5, 552)
    assert found.quantiles == {"min": 3, "p10": 3, "p50": 16, "p90": 512, "max": 512}
    assert found.histogram == {"4": 2, "16": 1, "32": 1, "512": 1}


@pytest.mark.parametrize("heads", [Heads.ALL, Heads.DENSE])
def test_what_is_split_is_what_encode_does(model: m3rt.M3, heads: Heads) -> None:
    found, measured = meter.encode(model, contract.TEXTS, heads)
    expected = model.encode(contract.TEXTS, heads)
    for i in range(len(contract.TEXTS)):
        contract.same(found, i, expected, i, 0)
    assert (found.dense is None, found.colbert is None) == (
        expected.dense is None,
        expected.colbert is None,
    )
    assert measured["tokens"] == measured["computed"] == expected.n_tokens.sum()
    assert tuple(measured["seconds"]) == STAGES
    assert meter.serialised(model, found).keys() == set(SERIAL)


def test_padding_is_counted(model_dir: Path) -> None:
    padded = m3rt.load(model_dir, "cpu-padded")
    texts = ["water " * 60, "water " * 50]
    _, measured = meter.encode(padded, texts, Heads.ALL)
    longest, shortest = padded.tokenize(texts).ids.lengths
    assert (measured["tokens"], measured["computed"]) == (longest + shortest, 2 * longest)


def test_repeating_stops_in_time(model_dir: Path, model: m3rt.M3) -> None:
    subject = meter.Subject(artifact.read(model_dir), model)
    for most, seconds, n in ((3, 60.0, 3), (3, 0.0, 1)):
        found = meter.repeat(subject, ["a text"], ["dense"], seconds, most)
        assert len(found["seconds"]) == n


def test_peak_measures_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"numpy": peak.with_numpy, "no_such_library": peak.with_numpy}
    monkeypatch.setattr(peak, "LIBRARIES", libraries)
    found = peak.measure(1, seconds=0.0)
    assert [(rate.precision, rate.by, rate.shape) for rate in found] == [
        ("fp32", "numpy", shape) for shape in peak.SHAPES
    ]
    assert all(rate.flops > 0 for rate in found)


def test_the_best_rate_counts() -> None:
    assert peak.best(RATES, "fp32") is RATES[1]
    assert peak.best(RATES, "bf16") is None


@pytest.mark.parametrize(
    ("operator", "left", "right"),
    [("MatMul", np.float32, np.float32), ("MatMulInteger", np.uint8, np.int8)],
)
def test_a_graph_written_by_hand(
    operator: str, left: type[np.generic], right: type[np.generic]
) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 100, (3, 200)).astype(left)
    b = rng.integers(-9, 9, (200, 5)).astype(right)
    session = ort.InferenceSession(peak.product_graph(operator, a, b))
    (found,) = session.run(None, {"a": a})
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64))


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_worker_answers() -> None:
    with Worker(script(ECHO)) as process:
        assert process.ask("this", n=1) == {"do": "this", "n": 1}
        with pytest.raises(EngineError, match="as it says"):
            process.ask("that", error="as it says")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('the last word')", "ended with 1: the last word"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("print('no JSON', flush=True); input()", "said 'no JSON'"),
        ("input()", "no answer within 1 s"),
    ],
)
def test_a_worker_that_does_not(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 1)
    with Worker(script(code)) as process, pytest.raises(EngineError, match=message):
        process.answer()


def test_a_worker_that_is_gone_cannot_be_asked() -> None:
    with Worker(script("print('{}')")) as process:
        process.answer()
        process._process.wait()
        with pytest.raises(EngineError, match="ended with 0: it said nothing"):
            process.ask("this", texts=["long " * 100_000])


def test_engines_take_turns() -> None:
    order: list[str] = []

    def steps(name: str, n: int) -> Generator[str, None, EngineRun]:
        for i in range(n):
            yield f"{name}{i}"
            order.append(f"{name}{i}")
        return EngineRun(name)

    said: list[str] = []
    found = bench.in_turn([steps("a", 3), steps("b", 1)], said.append)
    assert [run.engine for run in found] == ["a", "b"]
    assert order == ["a0", "b0", "a1", "a2"]
    assert [step for step in said if step] == order


def test_engines_that_do_not_fit_together(model_dir: Path) -> None:
    model = artifact.read(model_dir)
    size = max(file.bytes for file in model.manifest.files.values())
    assert bench.fit(model, 2, 100 * size)
    assert not bench.fit(model, 2, 2 * size)
    assert not bench.fit(model, 2, None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, model_dir: Path) -> Callable[..., Result]:
    monkeypatch.setattr(peak, "measure", lambda threads: RATES)
    monkeypatch.setattr(course, "LENGTHS", (16, 4096))
    monkeypatch.setattr(course, "BATCHES", (1, 2))

    def invoke(*args: object, model: Path = model_dir) -> Result:
        options = ("bench", model, "--seconds", 0.2, "--rounds", 2, "--lengths", "16,3000", *args)
        return CliRunner().invoke(cli.app, list(map(str, options)))

    return invoke


def test_bench(run: Callable[..., Result], model_dir: Path, tmp_path: Path) -> None:
    kept, page = tmp_path / "result.json", tmp_path / "report.html"
    engines = ("--engine", "cpu", "--engine", "cpu-padded", "--engine", "nosuch")
    done = run(*engines, *("--mix", "queries") * 2, "-o", kept, "--html", page)
    assert done.exit_code == 0, done.output
    for text in ("cpu:fp32", "cpu-padded:fp32", "no engine 'nosuch'", "tokens/s"):
        assert text in done.stdout
        assert text.replace("'", "&#x27;") in page.read_text("utf-8")
    found = json.loads(kept.read_text("utf-8"))
    assert (found["schema"], found["interleaved"], found["comparison"]) == (1, True, None)
    assert found["mixes"][0]["texts"] == 64
    packed, padded, absent = found["engines"]
    assert (absent["engine"], absent["mixes"], absent["load_seconds"]) == ("nosuch", [], None)
    for row, longest in ((packed, 4096), (padded, 16)):
        assert row["error"] is None
        (mix,) = row["mixes"]
        assert mix["tokens"] == found["mixes"][0]["tokens"]
        assert mix["peak_share"] == pytest.approx(mix["flops"] / 2e9)
        assert mix["tokens_per_second"]["median"] > 0
        assert row["accuracy"]["dense"]["cosine_min"] > 0.99999
        assert [one["length"] for one in row["lengths"]][-1] <= longest
        assert row["load_memory"] > 1 << 20
    assert [one["length"] for one in packed["latency"]] == [16, 3000]
    assert [one["length"] for one in padded["latency"]] == [16]  # it takes 2048 tokens
    assert packed["mixes"][0]["padding_share"] == 0
    assert padded["mixes"][0]["padding_share"] > 0

    again = run("--mix", "queries", "--engine", "cpu", "--compare", kept, "--json")
    assert (again.exit_code, again.stderr) == (0, "")
    compared = json.loads(again.stdout)["comparison"]
    assert {change["engine"] for change in compared["changes"]} == {"cpu:fp32"}
    assert compared["warnings"] == []


def test_bench_without_a_reference_or_a_width(
    run: Callable[..., Result], model_dir: Path, tmp_path: Path
) -> None:
    bare = copied(model_dir, tmp_path / "model")
    gone = ("reference.npz", "config.json")
    for name in gone:
        (bare.path / name).unlink()
    files = {name: file for name, file in bare.manifest.files.items() if name not in gone}
    manifest = dataclasses.replace(bare.manifest, files=files)
    (bare.path / artifact.MANIFEST).write_text(artifact.dump(manifest))
    (tmp_path / "mine.txt").write_text("a text\nanother\n")
    done = run(
        *("--mix", tmp_path / "mine.txt", "--heads", "dense", "--engine", "cpu", "--json"),
        model=bare.path,
    )
    found = json.loads(done.stdout)
    (row,) = found["engines"]
    assert (row["accuracy"], row["mixes"][0]["flops"]) == (None, None)
    assert found["settings"]["heads"] == ["dense"]
    assert found["mixes"][0]["name"] == str(tmp_path / "mine.txt")


def test_bench_of_nothing_that_runs(run: Callable[..., Result]) -> None:
    done = run("--engine", "nosuch", "--json")
    assert done.exit_code == EngineError.exit_code
    assert "no engine 'nosuch'" in json.loads(done.stdout)["engines"][0]["error"]
    assert "no engine was measured: nosuch" in json.loads(done.stderr)["error"]["message"]


def test_a_worker_that_dies_is_a_row(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.command

    def command(model: Path, engine: str, streams: int, devices: str | None = None) -> list[str]:
        return script(DIES) if engine == "dies" else real(model, engine, streams, devices)

    monkeypatch.setattr(worker, "command", command)
    done = run("--engine", "dies", "--engine", "cpu", "--mix", "queries", "--json")
    dead, alive = json.loads(done.stdout)["engines"]
    assert (done.exit_code, alive["error"]) == (0, None)
    assert "ended with 1: the last word" in dead["error"]
    assert (dead["load_seconds"], dead["mixes"]) == (1, [])


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--mix", "none"], 3, "no mix 'none'"),
        (["--lengths", "1,x"], 2, "numbers joined by commas"),
        (["--lengths", "2"], 2, "too short"),
        (["--compare", "none.json"], 3, "cannot read none.json"),
        (["--html", "none/report.html"], 3, "cannot write"),
    ],
)
def test_errors_of_bench(
    run: Callable[..., Result], args: list[str], code: int, message: str
) -> None:
    done = run(*args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())


def test_a_failed_bench_leaves_no_file(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("-o", tmp_path / "result.json", "--mix", "none").exit_code == 3
    assert list(tmp_path.iterdir()) == []
