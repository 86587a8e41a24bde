"""What the README shows runs as it stands."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import footprint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_example_runs(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bge-m3").symlink_to(model_dir)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_its_figures_are_those_of_the_committed_result() -> None:
    result = json.loads((RESULTS / "footprint.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert footprint.markdown(result) in readme
    engines = json.loads((RESULTS / "bench.json").read_text("utf-8"))["engines"]
    host = max(mix["host_us_per_token"] for engine in engines for mix in engine["mixes"])
    assert f"{host:.1f} µs of processor time a token" in readme
