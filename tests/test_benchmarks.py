"""Benchmarks run: what they measure is not for tests, that they measure is."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_gpu_benchmark_is_ready(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.gpu", str(tmp_path), "--engine", "cpu-padded", "--tiny"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parity"]["ok"]
    assert found["parity"]["engine"] == "cpu-padded"
    assert found["tokens_per_second"].keys() == {"16", "128"}
    for rates in found["tokens_per_second"].values():
        assert all(rate > 0 for rate in rates.values())
