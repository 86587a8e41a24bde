"""Results as tables, as a page, and against each other."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from m3rt import comparison, plots, report, tables
from m3rt.errors import InputError
from m3rt.result import Result, document
from tests import results

HOSTILE = "<script>alert(1)</script>&\"'"


def parsed(page: str) -> ElementTree.Element:
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = report.page(results.result())
    root = parsed(page)
    assert len(root.findall(".//figure")) == 3
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|href=", page)
    text = "".join(root.itertext())
    for shown in ("244", "610", "cpu:int8", "throughput over length", "84.0%"):
        assert shown in text


def test_hostile_names_are_text() -> None:
    run = results.renamed(results.engine("cpu", 1.0, 1e-3), HOSTILE)
    bad = dataclasses.replace(results.engine("cpu", 1.0, 1e-3), engine="x", error=HOSTILE)
    found = results.result(run, bad)
    model = dataclasses.replace(found.model, path=f"/a/{HOSTILE}", checkpoint=HOSTILE)
    mixes = tuple(dataclasses.replace(mix, name=HOSTILE) for mix in found.mixes)
    found = dataclasses.replace(found, model=model, mixes=mixes)
    earlier = comparison.compare(HOSTILE, document(found), document(found))
    page = report.page(found, earlier)
    parsed(page)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


@pytest.mark.parametrize(
    "found",
    [
        results.result(results.with_error(results.engine("cpu", 1.0, 0.0), "gone")),
        results.result(results.engine("cpu", 1.0, 0.0)),  # a cosine of exactly one
        results.result(*(results.engine(f"e{i}", 10.0**i, 10.0**-i) for i in range(12))),
        results.result(dataclasses.replace(results.engine("e", 9.0, 0.1), accuracy=None)),
    ],
    ids=["error", "exact", "many", "no reference"],
)
def test_pages_of_other_results(found: Result) -> None:
    parsed(report.page(found))
    for sheet in tables.sheets(found):
        assert all(len(row) == len(sheet.columns) for row in sheet.rows), sheet.title


def test_accuracy_stands_beside_every_speed() -> None:
    speed = tables.speed(results.result())
    assert speed.columns[-3:] == ("dense", "ColBERT", "sparse")
    assert {row[-3] for row in speed.rows} == {"1.0000000", "0.9980000"}
    bare = dataclasses.replace(results.engine("cpu", 1.0, 0.1), accuracy=None)
    assert {row[-3:] for row in tables.speed(results.result(bare)).rows} == {("-", "-", "-")}


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (plots.linear("", [610.0]), (0, 200, 400, 600, 800)),
        (plots.linear("", []), (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (plots.around("", [0.52, 0.57]), (0.52, 0.54, 0.56, 0.58)),
        (plots.around("", [0.5]), (0.5, 0.5002)),
        (plots.around("", [0.0]), (0.0, 2.5e-7)),
        (plots.around("", []), (0, 0.25, 0.5, 0.75, 1)),
        (plots.decades("", [3.0, 40.0]), (2, 5, 10, 20, 50)),
        (plots.decades("", [10.0]), (10, 20)),
        (plots.decades("", []), (1, 2)),
        (plots.decades("", [1e-16, 1e-3]), (1e-16, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)),
        (plots.points("", [16, 64, 16]), (16, 64)),
    ],
)
def test_axes(axis: plots.Axis, ticks: tuple[float, ...]) -> None:
    assert axis.ticks == pytest.approx(ticks)
    assert axis.place(axis.ticks[0]) == 0
    assert axis.place(axis.ticks[-1]) == 1


def test_points_lie_within_the_picture() -> None:
    for found in (results.result(), results.result(results.engine("cpu", 1.0, 0.0))):
        for drawn in report.figures(found):
            for x, y in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", drawn):
                assert plots.LEFT <= float(x) <= plots.WIDTH - plots.RIGHT
                assert plots.TOP <= float(y) <= plots.HEIGHT - plots.BOTTOM


def test_gains_are_above_one_where_now_is_better() -> None:
    before = document(results.result(results.engine("cpu:fp32", 200.0, 1e-3)))
    now = document(results.result(results.engine("cpu:fp32", 400.0, 5e-4)))
    found = comparison.compare("a.json", before, now)
    gains = {(c.subject, c.figure): c.gain for c in found.changes}
    assert gains["mixed", "tokens/s"] == pytest.approx(2)
    assert gains["16 tokens", "p50, ms"] == pytest.approx(2)
    assert gains["dense", "1 - cosine min"] == pytest.approx(2)
    assert gains["start", "load, s"] == 1
    assert found.warnings == ()


def test_rounding_is_no_gain() -> None:
    before = document(results.result(results.engine("cpu:fp32", 200.0, 1e-13)))
    now = document(results.result(results.engine("cpu:fp32", 200.0, 2e-13)))
    gains = {(c.subject, c.figure): c.gain for c in comparison.compare("a", before, now).changes}
    assert gains["dense", "1 - cosine min"] is None


def test_only_engines_of_both_are_compared() -> None:
    before = document(results.result(results.engine("cpu:fp32", 1.0, 0.1)))
    assert {c.engine for c in comparison.compare("a", before, document(results.result())).changes}\
        == {"cpu:fp32"}  # fmt: skip


def test_what_else_changed_is_said() -> None:
    before, now = document(results.result()), document(results.result())
    before["machine"]["cpu"]["model"] = "Another CPU"
    before["machine"]["packages"]["numpy"] = "1.0"
    before["model"]["revision"] = "old"
    before["settings"]["heads"] = ["dense"]
    before["mixes"][0]["tokens"] = 1
    before["peak"][1]["flops"] /= 2
    found = " ".join(comparison.compare("a", before, now).warnings)
    for text in ("Another CPU", "numpy was 1.0", "revision was old", "heads were", "mix mixed"):
        assert text in found
    # the next fastest product counts now
    assert "fp32 is 1.17 times" in found


def test_other_gpus_are_said() -> None:
    before, now = document(results.result()), document(results.result())
    now["machine"]["nvidia"]["cuda"] = "13.0"  # another driver is no other GPU
    assert comparison.compare("a", before, now).warnings == ()
    gpu = {"index": 0, "name": "NVIDIA H200", "capability": [9, 0], "memory": 150_000_000_000}
    now["machine"]["nvidia"]["gpus"] = [gpu]
    assert comparison.compare("a", before, now).warnings == ("the graphics processors differ",)
    before["machine"]["nvidia"] = ["NVIDIA H200"]  # as older results have it
    assert comparison.compare("a", before, now).warnings == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot read"),
        (b"{", "is not JSON"),
        (b"[]", "is no result of m3rt bench"),
        (b'{"schema": 99}', "has schema 99, expected 1"),
        (b'{"schema": 1}', "is damaged"),
    ],
)
def test_what_is_no_result(tmp_path: Path, data: bytes | None, message: str) -> None:
    file = tmp_path / "result.json"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        comparison.read(file)


def test_a_result_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(document(results.result())))
    assert comparison.read(file) == document(results.result())
