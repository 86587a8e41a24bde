"""Benchmarks run: what they measure is not for tests, that they measure is."""

import json
from pathlib import Path

import numpy as np

from benchmarks import choices, footprint, host, tensorrt
from m3rt import artifact
from m3rt.types import Batch, Heads, ragged
from tests.conftest import needs_int8

ROOT = Path(__file__).parents[1]


def test_documents_show_what_builds_take() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "tensorrt.json").read_text("utf-8"))
    assert tensorrt.markdown(found) in (ROOT / "docs" / "tensorrt.md").read_text("utf-8")
    for case, row in found["builds"].items():
        assert not row["faults"], case
        assert row["fused_attentions"] == row["expected_attentions"] == 96
        most = 4.5e9 if case.startswith(("fp16", "bf16")) else 3e9
        assert row["peak_bytes"] < most, case
        assert row["plan_bytes"] < (650e6 if case.startswith("int8") else 1200e6), case


def test_the_host_is_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "host.json").read_text("utf-8"))
    assert host.markdown(found) in (ROOT / "docs" / "design.md").read_text("utf-8")
    assert host.ratios(found["before"], found["now"]) == found["times_less"]
    engine = host.Ready()
    tokens = ragged([np.array([0, 7, 8, 2], np.int32), np.array([0, 2], np.int32)], np.int32)
    raw = engine.run(Batch(tokens, np.arange(2), 4), Heads.ALL)
    assert raw.colbert is not None
    assert [len(rows) for rows in raw.colbert] == [4, 2]
    assert raw.colbert[0].dtype == np.float32
    _, spent = host.clocked(1, lambda: sum(range(10**5)))
    assert all(value > 0 for value in spent.values())
    assert host.least([{"a": 2.0}, {"a": 1.0}]) == {"a": 1.0}


def test_choices_are_measured(built_dir: Path) -> None:
    found = choices.measure(built_dir, "openvino:bf16", ["a text", "water " * 50], rounds=1)
    assert found.keys() == {"tokens_in_a_step", "slack", "rows_rounded_to", "streams"}
    for rates in found.values():
        assert all(rate > 0 for rate in rates.values())


@needs_int8
def test_the_footprint_is_measured(built_dir: Path) -> None:
    rows = {spec: footprint.footprint(built_dir, spec, 1) for spec in ("cpu:fp32", "cpu:int8")}
    files = artifact.read(built_dir).manifest.files
    assert rows["cpu:int8"]["disk_bytes"] < rows["cpu:fp32"]["disk_bytes"]
    assert rows["cpu:fp32"]["disk_bytes"] > files["model.onnx.data"].bytes
    for row in rows.values():
        assert row["parity"]["ok"]
        assert row["long_peak_bytes"] >= row["query_peak_bytes"] > 0
    assert footprint.markdown({"engines": rows}).count("\n") == 3
