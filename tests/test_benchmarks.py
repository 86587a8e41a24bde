"""Benchmarks run: what they measure is not for tests, that they measure is."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import choices, footprint
from m3rt import artifact

ROOT = Path(__file__).parents[1]


def test_the_gpu_benchmark_is_ready(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.gpu", str(tmp_path), "--engine", "cpu-padded", "--tiny"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parity"]["ok"]
    assert found["parity"]["engine"] == "cpu-padded:fp32"
    assert found["tokens_per_second"].keys() == {"16", "128"}
    for rates in found["tokens_per_second"].values():
        assert all(rate > 0 for rate in rates.values())


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
