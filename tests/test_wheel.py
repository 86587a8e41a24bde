"""The wheel: built, installed with its [cpu] extra alone, and run elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

import m3rt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TEXTS = ["a small model", "", "मॉडल 模型", "the longest of these texts, by far"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build directory, which would get into the next."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("m3rt", "export", "engines", "tests"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(copy)]
    done(*command, *(["--no-isolation"] if has_setuptools() else []))
    (built,) = out.iterdir()
    return built


def has_setuptools() -> bool:
    """Whether the build backend that pyproject.toml asks for is installed."""
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a fresh environment."""
    environment = tmp_path_factory.mktemp("fresh") / "venv"
    done(sys.executable, "-m", "venv", str(environment))
    scripts = environment / "bin"
    constraints = str(ROOT / "constraints.txt")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet"]
    done(*pip, "--constraint", constraints, f"{wheel}[cpu]")
    return scripts


def done(
    *command: str, stdin: str = "", code: int = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    finished = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=clean, cwd=cwd
    )
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"m3rt/py.typed", "m3rt/export/sentences.txt"} <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "m3rt",
        f"m3rt-{m3rt.__version__}.dist-info",
    }
    for folder in ("m3rt", "export", "engines"):
        package = "m3rt" if folder == "m3rt" else f"m3rt/{folder}"
        for file in (ROOT / folder).glob("*.py"):
            assert f"{package}/{file.name}" in names
    assert len(names) == len(set(names))
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_core_needs_no_export_stage(installed: Path, tmp_path: Path) -> None:
    listed = done(str(installed / "pip"), "list", "--format", "json").stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert {"m3rt", "numpy", "tokenizers", "onnxruntime"} <= names
    assert not names & {"torch", "transformers", "onnx", "optimum", "safetensors", "flagembedding"}
    found = done(str(installed / "m3rt"), "export", "a", "b", code=7, cwd=tmp_path)
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: m3rt export needs the package ")
    assert found.stderr.endswith("which is not installed: pip install 'm3rt[export]'\n")


def test_help_and_doctor(installed: Path, tmp_path: Path) -> None:
    program = str(installed / "m3rt")
    assert "encode" in done(program, "--help", cwd=tmp_path).stdout
    report = json.loads(done(program, "doctor", "--json", cwd=tmp_path).stdout)
    assert report["ready"] is True
    assert report["packages"]["m3rt"] == m3rt.__version__
    assert report["packages"].get("torch") is None


def test_it_gives_the_same_vectors(
    installed: Path, model_dir: Path, model: m3rt.M3, tmp_path: Path
) -> None:
    program = str(installed / "m3rt")
    stdin = "".join(f"{text}\n" for text in TEXTS)
    found = done(program, "encode", str(model_dir), stdin=stdin, cwd=tmp_path)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    expected = model.encode(TEXTS)
    assert expected.dense is not None
    assert expected.sparse is not None
    assert expected.colbert is not None
    assert len(lines) == len(TEXTS)
    for i, line in enumerate(lines):
        np.testing.assert_allclose(line["dense"], expected.dense[i], atol=1e-6)
        np.testing.assert_allclose(line["colbert"], expected.colbert[i], atol=1e-6)
        sparse = dict(zip(line["sparse"]["indices"], line["sparse"]["values"], strict=True))
        assert sparse == pytest.approx(expected.sparse[i], abs=1e-6)
    done(program, "verify", str(model_dir), cwd=tmp_path)
