"""Benchmarks run: what they measure is not for tests, that they measure is."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import choices, footprint, tensorrt
from m3rt import artifact

ROOT = Path(__file__).parents[1]


def test_the_gpu_benchmark_is_ready(tmp_path: Path) -> None:
    specs = "cpu-padded:fp32,cpu:int8,tensorrt:fp16"
    command = ["-m", "benchmarks.gpu", str(tmp_path), "--engines", specs, "--tiny"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    row = found["engines"]["cpu-padded:fp32"]
    assert row["parity"]["ok"]
    assert row["parity"]["engine"] == "cpu-padded:fp32"
    # the others are measured all the same
    assert "has not been built for cpu:int8" in found["engines"]["cpu:int8"]["failed"]
    assert "pip install" in found["engines"]["tensorrt:fp16"]["cannot run"]
    for rates in (row["tokens_per_second"], found["torch"]):
        assert rates.keys() == {"16", "128"}
        assert all(rate > 0 for of_length in rates.values() for rate in of_length.values())


def test_documents_show_what_builds_take() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "tensorrt.json").read_text("utf-8"))
    assert tensorrt.markdown(found) in (ROOT / "docs" / "tensorrt.md").read_text("utf-8")
    for case, row in found["builds"].items():
        assert not row["faults"], case
        assert row["fused_attentions"] == row["expected_attentions"] == 96
        most = 4.5e9 if case.startswith(("fp16", "bf16")) else 3e9
        assert row["peak_bytes"] < most, case
        assert row["plan_bytes"] < (650e6 if case.startswith("int8") else 1200e6), case


def test_choices_are_measured(built_dir: Path) -> None:
    found = choices.measure(built_dir, "openvino:bf16", ["a text", "water " * 50], rounds=1)
    assert found.keys() == {"tokens_in_a_step", "slack", "rows_rounded_to", "streams"}
    for rates in found.values():
        assert all(rate > 0 for rate in rates.values())


def test_the_footprint_is_measured(built_dir: Path) -> None:
    rows = {spec: footprint.footprint(built_dir, spec, 1) for spec in ("cpu:fp32", "cpu:int8")}
    files = artifact.read(built_dir).manifest.files
    assert rows["cpu:int8"]["disk_bytes"] < rows["cpu:fp32"]["disk_bytes"]
    assert rows["cpu:fp32"]["disk_bytes"] > files["model.onnx.data"].bytes
    for row in rows.values():
        assert row["parity"]["ok"]
        assert row["long_peak_bytes"] >= row["query_peak_bytes"] > 0
    assert footprint.markdown({"engines": rows}).count("\n") == 3
