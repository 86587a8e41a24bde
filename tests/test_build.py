"""m3rt build: what it leaves in a model directory, and what it never leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import m3rt
from m3rt import artifact, build, cli, trial
from m3rt.errors import ArtifactError, InputError, ParityError, UnavailableError
from m3rt.gate import Terms
from tests.conftest import ROOT, copied, needs_int8

FILES = {
    "openvino:bf16": ("openvino-bf16.bin", "openvino-bf16.xml"),
    "openvino:int8": ("int8-recipe.npz", "openvino-int8.bin", "openvino-int8.xml"),
    "cpu:int8": ("cpu-int8.onnx", "cpu-int8.onnx.data", "int8-recipe.npz"),
}


@pytest.fixture
def mine(model_dir: Path, tmp_path: Path) -> Path:
    """A copy to build in."""
    return copied(model_dir, tmp_path / "mine").path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("spec", FILES)
def test_what_is_built_stands_in_the_manifest(spec: str, built_dir: Path, model_dir: Path) -> None:
    manifest = artifact.read(built_dir).manifest
    entry = manifest.builds[spec]
    assert entry.files == FILES[spec]
    for name in entry.files:
        assert manifest.files[name] == artifact.describe(built_dir / name)
    assert entry.parity["engine"] == spec
    assert entry.parity["ok"] is True
    assert entry.versions["m3rt"] == m3rt.__version__
    there = {file.name for file in built_dir.iterdir()}
    assert there == {*manifest.files, artifact.MANIFEST}
    assert not artifact.read(model_dir).manifest.builds


def test_no_path_of_this_machine_is_in_it(built_dir: Path) -> None:
    for file in built_dir.iterdir():
        data = file.read_bytes()
        for path in (str(built_dir.parent), str(ROOT), sys.prefix, "site-packages"):
            assert path.encode() not in data, f"{path} is in {file.name}"


def test_bf16_takes_half_the_space(built_dir: Path) -> None:
    files = artifact.read(built_dir).manifest.files
    assert files["openvino-bf16.bin"].bytes < 0.55 * files["model.onnx.data"].bytes


def test_built_twice(mine: Path) -> None:
    build.run(mine, "openvino:bf16")
    before = (mine / artifact.MANIFEST).read_bytes()
    with pytest.raises(InputError, match="is built for openvino:bf16 already; pass --force"):
        build.run(mine, "openvino:bf16")
    assert (mine / artifact.MANIFEST).read_bytes() == before
    build.run(mine, "openvino:bf16", force=True)
    artifact.check(artifact.read(mine))


def test_nothing_to_prepare(mine: Path) -> None:
    before = (mine / artifact.MANIFEST).read_bytes()
    done = run("build", mine, "--engine", "cpu")
    assert done.exit_code == 0
    assert "cpu:fp32 has nothing to prepare" in done.stderr
    assert json.loads(run("build", mine, "--engine", "cpu", "--json").stdout)["built"] is None
    assert (mine / artifact.MANIFEST).read_bytes() == before


def test_out_of_tolerance_leaves_nothing(mine: Path) -> None:
    before = sorted(file.name for file in mine.iterdir())
    with pytest.raises(ParityError, match=r"openvino:bf16 engine differs .* dense cosine_min is"):
        build.run(mine, "openvino:bf16", terms=Terms({"dense_cosine": 1.1}))
    assert sorted(file.name for file in mine.iterdir()) == before
    artifact.check(artifact.read(mine))


def test_a_killed_build_leaves_the_model_as_it_was(mine: Path) -> None:
    before = (mine / artifact.MANIFEST).read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "m3rt.cli", "build", mine, "--engine", "cpu:int8"],
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not list(mine.glob(".build-*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert (mine / artifact.MANIFEST).read_bytes() == before
    assert len(list(mine.glob(".build-*"))) == 1
    artifact.check(artifact.read(mine))
    build.run(mine, "openvino:fp32")  # clears what the other left
    assert not list(mine.glob(".build-*"))


@pytest.mark.parametrize("damage", ["missing", "cut"])
@needs_int8
def test_a_damaged_build_is_refused(damage: str, built_dir: Path, tmp_path: Path) -> None:
    path = copied(built_dir, tmp_path / "broken").path
    file = path / "openvino-int8.bin"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"openvino-int8\.bin"):
        m3rt.load(path, "openvino:int8")


def test_without_the_quantiser(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir")

    monkeypatch.setattr(trial, "import_module", absent)
    with pytest.raises(UnavailableError, match=r"pip install 'm3rt\[build\]'"):
        build.run(mine, "cpu:int8")


def test_the_command(mine: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("A text to calibrate with.\nUnd noch einer.\n", "utf-8")
    options = ("--engine", "cpu", "--precision", "int8", "--calibration", texts, "--json")
    done = run("build", mine, *options)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["built"] == "cpu:int8"
    assert found["recipe"]["calibration"]["texts"] == 2
    table = run("inspect", mine).stdout
    assert "cpu:int8" in table
    assert "auto is" in table


def test_no_texts_to_calibrate_with(mine: Path, tmp_path: Path) -> None:
    empty = tmp_path / "texts.txt"
    empty.write_text("")
    done = run("build", mine, "--engine", "cpu:int8", "--calibration", empty)
    assert done.exit_code == InputError.exit_code
    assert "holds no texts" in done.stderr


def test_export_and_build_at_once(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--max-length", "64", "--build", "openvino:bf16", "--build", "cpu:int8", "--json")
    done = run("export", checkpoint, out, *options)
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["builds"]) == {"openvino:bf16", "cpu:int8"}
