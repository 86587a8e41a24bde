"""The GPU benchmark, on a CPU: that it goes on where it stopped, and harms nobody."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import model, parts, shares, table, texts, turns
from benchmarks.gpu.contenders import BASE, REFERENCE, Entry, entries
from benchmarks.gpu.nvml import Nvml, Watch
from benchmarks.gpu.parts import Measure
from benchmarks.gpu.record import Record, text
from benchmarks.gpu.session import Deadline, OutOfTimeError, Session
from benchmarks.gpu.texts import TINY
from benchmarks.peers.contenders import ALL, Contender
from benchmarks.peers.course import Course
from m3rt import course as m3rt_course
from m3rt.engines.unpadded import kernels
from m3rt.result import Model
from m3rt.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
MISSING = "No GPU figures yet"
MIXED = Measure("mixed", "mixed", rounds=3)
ALONE = Measure("latency", "length 16", length=16, alone=True, rounds=2)


class Steps(Deadline):
    """A call that ends after so many looks at its clock."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def left(self) -> float:
        self._steps -= 1
        return 30.0 if self._steps > 0 else -1.0


@pytest.fixture
def course(tmp_path: Path) -> Course:
    for name in ("mixed", "parity", "length 16"):
        path = texts.file(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(["one river", "two rivers and a bridge"]))
    return Course(tmp_path, tmp_path, texts.file(tmp_path, "parity"), 0, {})


def fake(name: str, patience: float = 20.0, **options: Any) -> Entry:
    batches = options.pop("batches", ())
    default = 32 if batches else None
    where = "tests.quick_worker"
    made = Contender(name, where, "fp32", ALL, "model", None, options, batches, default, patience)
    return Entry(made)


def record_at(folder: Path) -> Record:
    return Record(folder / "gpu.json", "boot", None)


def run(course: Course, record: Record, *given: Entry, deadline: Deadline | None = None) -> None:
    with Session(course, deadline or Deadline(60), None, 0) as session:
        for one in (MIXED, ALONE):
            turns.rounds(one, given, session, record, TINY, given[0].name)


def test_turns_give_rates_latency_and_the_best_batch(course: Course, tmp_path: Path) -> None:
    record = record_at(tmp_path)
    run(course, record, fake("base"), fake("peer", seconds=0.03, batches=(8, 16)))
    row = record.found["rows"]["peer"]
    assert row["trial"].keys() == {"8", "16", "32"}
    assert row["batch"] in (8, 32)
    rate, alone = (record.figures("peer")[one.key] for one in (MIXED, ALONE))
    assert rate["rounds"] == len(rate["seconds"]) == len(rate["cpu"]) == 3
    assert min(rate["seconds"]) >= 0.03
    assert rate["host_bytes"] > 1 << 20
    assert len(alone["ms"]) == 2 * TINY.samples
    assert json.loads((tmp_path / "gpu.json").read_text()) == record.found
    assert float(table.times(record.found, "base", "peer", MIXED.key)) > 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"breaks": "encode"}, "RuntimeError: out of tokens"),
        ({"breaks": "exit"}, "ended with 3: a library said its last"),
        ({"breaks": "hang", "patience": 4.0}, "no answer within"),
    ],
    ids=["encode", "exit", "hang"],
)
def test_one_that_breaks_harms_nobody(
    course: Course, tmp_path: Path, options: Mapping[str, Any], reason: str
) -> None:
    record = record_at(tmp_path)
    run(course, record, fake("sound"), fake("broken", **options))
    assert reason in record.figures("broken")[MIXED.key]["error"]
    assert record.figures("sound")[MIXED.key]["rounds"] == 3
    assert record.figures("sound")[ALONE.key]["rounds"] == 2
    record.forget_errors()
    assert not record.figures("broken")


def test_one_that_does_not_load_says_why_once(course: Course, tmp_path: Path) -> None:
    record = record_at(tmp_path)
    run(course, record, fake("sound"), fake("broken", breaks="load"))
    assert record.found["rows"]["broken"]["error"] == "ValueError: no weights in weights.bin"
    assert record.figures("sound")[MIXED.key]["rounds"] == 3
    assert "Could not run here: broken (ValueError: no weights" in table.failures(record.found)


def test_what_is_known_is_not_measured_again(course: Course, tmp_path: Path) -> None:
    given = (fake("base"), fake("peer"))
    with pytest.raises(OutOfTimeError):
        run(course, record_at(tmp_path), *given, deadline=Steps(14))
    before = json.loads((tmp_path / "gpu.json").read_text())
    first = before["rows"]["base"]["figures"]
    (name,) = first
    part = first[name][MIXED.key]["seconds"]
    assert 0 < len(part) < 3
    record = record_at(tmp_path)
    run(course, record, *given)
    assert record.run == name
    assert record.figures("base")[MIXED.key]["seconds"][: len(part)] == part
    for entry in given:
        assert record.figures(entry.name)[MIXED.key]["rounds"] == 3
    whole = (tmp_path / "gpu.json").read_text()
    run(course, record_at(tmp_path), *given)
    assert (tmp_path / "gpu.json").read_text() == whole


def test_another_machine_measures_the_base_again_for_a_ratio(
    course: Course, tmp_path: Path
) -> None:
    run(course, record_at(tmp_path), fake("base"))
    other = Record(tmp_path / "gpu.json", "another", None)
    run(course, other, fake("base"), fake("peer"))
    assert other.figures("base")[MIXED.key]["rounds"] == 3
    assert table.times(other.found, "base", "peer", MIXED.key)
    assert len(other.found["runs"]) == 2


def test_outputs_are_compared_with_the_reference(course: Course, tmp_path: Path) -> None:
    record = record_at(tmp_path)
    with Session(course, Deadline(60), None, 0) as session:
        given = (fake("peer", noise=1.0), fake(REFERENCE))
        turns.compare(given, session, record)
    assert record.figures(REFERENCE)["parity"]["accuracy"]["dense"]["cosine_min"] == pytest.approx(
        1
    )
    found = record.figures("peer")["parity"]["accuracy"]
    assert 1e-4 < 1 - found["dense"]["cosine_min"] < 0.1
    assert found["sparse"]["weight_error_max"] == 0


def command(out: Path) -> list[str]:
    chosen = "m3rt cpu:fp32,torch fp32,m3rt tensorrt:fp16"
    line = [str(ROOT / "benchmarks" / "gpu" / "run"), str(out), "--tiny", "--only", chosen]
    return [*line, "--parts", "model,mixed,parity,latency"]


def test_a_killed_call_is_gone_on_with(checkpoint: Path, model_dir: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    (out / "work").mkdir(parents=True)
    (out / "work" / "checkpoint").symlink_to(checkpoint)
    shutil.copytree(model_dir, out / "work" / "model")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": ""}
    process = subprocess.Popen(command(out), env=environment, cwd=home, stderr=subprocess.DEVNULL)
    result = out / "gpu.json"
    seconds: list[float] = []
    end = time.monotonic() + 300
    while not seconds and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
        rows = json.loads(result.read_text())["rows"] if result.exists() else {}
        for figures in rows.get("m3rt cpu:fp32", {}).get("figures", {}).values():
            seconds = figures.get(MIXED.key, {}).get("seconds", [])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seconds
    subprocess.run(command(out), env=environment, cwd=home, check=True, capture_output=True)
    found = json.loads(result.read_text())
    (run,) = found["runs"]
    figures = found["rows"]["m3rt cpu:fp32"]["figures"][run]
    mixed = figures[MIXED.key]
    assert mixed["seconds"][: len(seconds)] == seconds
    assert mixed["rounds"] == len(mixed["seconds"]) == 3
    assert figures["parity"]["accuracy"]["dense"]["cosine_min"] > 0.999999
    assert figures["parity"]["accuracy"]["colbert"]["cosine_min"] > 0.99999
    assert figures["parity"]["accuracy"]["colbert"]["other_tokens"] == 0
    assert "pip install" in found["rows"]["m3rt tensorrt:fp16"]["error"]
    assert found["runs"][run]["network"] == {"hidden": 64, "layers": 2, "ffn": 128, "colbert": 64}
    assert "| m3rt cpu:fp32 | three |" in (out / "gpu.md").read_text()
    assert str(tmp_path) not in result.read_text()
    assert not list(home.iterdir())


def test_steps_are_whole_or_say_why(tmp_path: Path) -> None:
    done = model.step(["checkpoint", "--tiny"], tmp_path, 300)
    assert done["cpu_seconds"] > 0
    assert "error" not in done
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    late = model.step(["export", "--tiny"], tmp_path, 0.2)
    assert late["late"]
    assert not (tmp_path / "model").exists()
    failed = model.step(["build", "--engine", "cpu:fp32"], tmp_path, 300)
    assert failed["error"].startswith("ArtifactError: model does not exist")


def test_shares_are_those_counted_by_hand() -> None:
    network = {"hidden": 2, "layers": 3, "ffn": 5, "colbert": 7}
    about = {"tokens": 4 + 1, "pairs": 16 + 1}
    # a token: 3 layers of 4 * 2 * 2 + 2 * 2 * 5 = 36 weights, and 2 * 7; a pair: 3 * 2 * 2
    count = 2 * (3 * 36 + 14) * 5 + 2 * 12 * 17
    assert shares.flop(about, network, True) == count == 1628
    assert shares.flop(about, network, False) == count - 2 * 14 * 5
    sizes = Model("m", "m", None, 2, 3, 5)
    assert m3rt_course.flop([4, 1], sizes, 7) == count
    found = result({"m3rt cuda:fp16": row([1e-9, 3e-9, 2e-9])}, network | {"colbert": 7}, about)
    assert shares.of_products(found, BASE, MIXED.key) == pytest.approx(count / 2e-9 / 4e12)
    assert shares.of_copies(found, BASE, MIXED.key) == pytest.approx(5 * 18 / 2e-9 / 5e10)
    found["rows"][BASE]["precision"] = "int8"
    assert shares.of_products(found, BASE, MIXED.key) is None


def row(seconds: list[float], **changes: Any) -> dict[str, Any]:
    rate = {"rounds": len(seconds), "seconds": seconds, "cpu": seconds, "device_bytes": 3 << 30}
    figures: dict[str, Any] = {MIXED.key: rate}
    figures["latency: length 16, all"] = {"rounds": 2, "ms": [1.0] * 99 + [9.0]}
    for length in (16, 512):
        figures[f"rate: length {length}, all"] = rate
    figures["rate: mixed, all, steps of 4096"] = rate
    accuracy = {"dense": {"cosine_min": 0.9999}, "sparse": {"weight_error_max": 0.001}}
    figures["parity"] = {"rounds": 1, "accuracy": accuracy}
    accuracy["sparse"]["top10_equal"] = 0.75
    made = {"precision": "fp16", "heads": list(ALL), "versions": {"torch": "2.11"}}
    return made | {"figures": {"today": figures}} | changes


def result(
    rows: dict[str, Any], network: dict[str, int] | None = None, about: Any = None
) -> dict[str, Any]:
    sets = dict.fromkeys(("mixed", "length 16", "length 512"), about or {"tokens": 100, "pairs": 9})
    rates = {
        "flops": {"fp16": 4e12, "fp32": 1e12},
        "bytes_per_second": {"device_to_host": 5e10},
        "size": 8192,
        "before": {"driver": "580"},
    }
    run = {
        "texts": {name: one | {"texts": 4} for name, one in sets.items()},
        "network": network or {"hidden": 2, "layers": 3, "ffn": 5, "colbert": 2},
        "rates": [rates],
        "machine": {"gpu": "A GPU", "cpu": "A CPU", "cores": 16},
        "tokenizer": "BGE-M3's",
    }
    return {"runs": {"today": run}, "rows": rows}


def test_the_tables_of_a_result() -> None:
    sized = {"batch": 64, "default_batch": 256, "trial": {"64": 0.5, "256": 2.0}}
    peer = row([0.4, 0.5, 0.6], **sized)
    peer["figures"]["today"]["rate: length 512, all"] = {"error": "CUDA out of memory"}
    found = result(
        {
            REFERENCE: {"precision": "fp32", "heads": list(ALL), "figures": {}},
            BASE: row([0.1, 0.1, 0.1]),
            f"{BASE} varlen": row([0.1, 0.1, 0.1]),
            "FlagEmbedding fp16": peer,
            "m3serve fp16": {"precision": "fp16", "heads": list(ALL), "error": "no m3serve"},
        }
    )
    written = table.markdown(found)
    for block in written.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| 4 texts, 100 tokens | heads | tokens/s | m3rt cuda:fp16 is faster by |" in written
    assert (
        "| FlagEmbedding fp16, batch 64 | three | 200 (50 at its default of 256) | 5.00 |"
        in written
    )
    assert "| 1.00 / 1.08 ms |  | 3.0 GiB | 1e-04 |  | 1e-03 | 75% |" in written
    assert "| FlagEmbedding fp16 | 200 (0%) | memory |" in written
    assert "| tokens/s by attention | 16 | 512 |" in written
    assert "| m3rt cuda:fp16, mixed | 1,000 |" in written
    assert "TFLOP/s: fp16 4, fp32 1" in written
    assert "Could not run here: m3serve fp16 (no m3serve)." in written


def test_readme_shows_the_committed_result() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    if RESULT.exists():
        assert table.markdown(json.loads(RESULT.read_text("utf-8"))) in readme
        assert MISSING not in readme
    else:
        assert MISSING in readme


def test_contenders_have_what_they_need() -> None:
    for given in (entries(), entries(tiny=True)):
        assert len({entry.name for entry in given}) == len(given)
        for entry in given:
            path = ROOT / f"{entry.contender.worker.replace('.', '/')}.py"
            assert path.is_file()
            assert set(entry.parts) <= set(parts.NAMES)
            if path.name == "ours.py":
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m3rt"):
                    raise AssertionError(f"{path} imports {node.module}")
    assert BASE in {entry.name for entry in entries()}


def test_texts_have_the_tokens_that_they_should(model_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(model_dir / "tokenizer.json")
    about = texts.write(TINY, tokenizer, None, tmp_path)
    assert about["length 64"]["texts"] == 4
    assert 4 * 62 <= about["length 64"]["tokens"] <= 4 * 64
    assert about["mixed"]["longest"] <= TINY.longest
    lengths = tokenizer.lengths(json.loads(texts.file(tmp_path, "mixed").read_text()))
    assert about["mixed"]["pairs"] == int((lengths**2).sum())
    assert {one.texts for one in parts.measures(TINY)} <= about.keys()
    every = list(parts.measures(texts.Scale()))
    assert len({(one.part, one.key) for one in every}) == len(every)


def test_numbers_are_on_one_line() -> None:
    found = {"a": [1, 2.5, -3e-07], "b": ["x", "y"], "c": {"d": []}}
    assert json.loads(text(found)) == found
    assert "[1, 2.5, -3e-07]" in text(found)


class Library:
    """A management library that knows one device."""

    def nvmlDeviceGetMemoryInfo(self, device: Any, found: Any) -> int:  # noqa: N802
        found._obj.used, found._obj.total = 3 << 30, 80 << 30
        return 0

    def nvmlDeviceGetName(self, device: Any, name: Any, size: Any) -> int:  # noqa: N802
        name.value = b"A GPU"
        return 0

    def nvmlSystemGetDriverVersion(self, name: Any, size: Any) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetClockInfo(self, device: Any, kind: Any, found: Any) -> int:  # noqa: N802
        found._obj.value = 1980 if kind.value == 1 else 2619
        return 0

    def nvmlDeviceGetPowerUsage(self, device: Any, found: Any) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetTemperature(self, device: Any, kind: Any, found: Any) -> int:  # noqa: N802
        found._obj.value = 40
        return 0


def test_the_device_is_only_read() -> None:
    nvml = Nvml(Library(), ctypes.c_void_p())
    about = nvml.describe()
    assert about["gpu"] == "A GPU"
    assert about["driver"] is None
    assert (about["sm_mhz"], about["memory_mhz"], about["celsius"]) == (1980, 2619, 40)
    with Watch(nvml) as watch:
        time.sleep(0.05)
    assert watch.most == 3 << 30


def test_the_table_says_which_kernels_ran() -> None:
    ran = {"PackedMultiHeadAttention": {"FLASH_ATTENTION": 24, "MATH": 1}}
    told = table.attention({"kernels": {"ran": ran, "slow": kernels.slow(ran)}})
    assert "ran PackedMultiHeadAttention in FLASH_ATTENTION (24), " in told
    assert told.endswith(
        "SLOW: 1 of PackedMultiHeadAttention ran in MATH, expected FLASH_ATTENTION"
    )
    assert table.attention({"kernels": {"error": "no GPU"}}).endswith("is not known (no GPU)")
    assert table.attention({}) == ""
