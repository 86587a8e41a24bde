"""Model directories: how they are written, and what of a damaged or foreign one is noticed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import m3rt
from m3rt import artifact, cli
from m3rt.artifact import Artifact, Manifest, staged
from m3rt.errors import ArtifactError, InputError, M3Error
from tests.conftest import copied

WAY_OUT = "; run: m3rt export CHECKPOINT OUT"


@pytest.fixture
def mine(model_dir: Path, tmp_path: Path) -> Artifact:
    """A copy to damage."""
    return copied(model_dir, tmp_path / "mine")


def flip(file: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def each_in_turn(mine: Artifact, damage: Callable[[Path], object], message: str) -> None:
    """Damage every file in turn and put it right again; nothing may open the directory."""
    names = list(mine.manifest.files)
    assert {"model.onnx", "model.onnx.data", "packed.onnx", "tokenizer.json"} <= set(names)
    for name in names:
        file = mine.path / name
        before = file.read_bytes()
        damage(file)
        for opened in (artifact.read, m3rt.load):
            with pytest.raises(ArtifactError) as caught:
                opened(mine.path)
            assert str(file) in str(caught.value)
            assert message in str(caught.value)
            assert str(caught.value).endswith(WAY_OUT)
        file.write_bytes(before)
    assert artifact.read(mine.path) == mine


def test_every_file_missing(mine: Artifact) -> None:
    each_in_turn(mine, Path.unlink, "is missing")


def test_every_file_cut(mine: Artifact) -> None:
    each_in_turn(mine, cut, "cut or changed")


def test_every_file_empty(mine: Artifact) -> None:
    each_in_turn(mine, lambda file: file.write_bytes(b""), "has 0 bytes")


def test_every_file_with_one_bit_changed(mine: Artifact) -> None:
    each_in_turn(mine, flip, "is damaged: its sha256 is not the manifest's")


def test_large_files_are_hashed_by_check_alone(
    mine: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = mine.path / "model.onnx.data"
    monkeypatch.setattr(artifact, "SMALL", weights.stat().st_size - 1)
    flip(weights)
    assert artifact.read(mine.path) == mine
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data is damaged"):
        artifact.check(mine)
    done = CliRunner().invoke(cli.app, ["verify", str(mine.path)])
    assert (done.exit_code, done.stdout) == (ArtifactError.exit_code, "")
    cut(weights)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data has .*cut or changed"):
        artifact.read(mine.path)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what the manifest says."""

    def edit(file: Path) -> None:
        data = json.loads(file.read_text("utf-8"))
        change(data)
        file.write_text(json.dumps(data))

    return edit


def named(name: str) -> Callable[[Path], None]:
    return edited(lambda data: data["files"].update({name: data["files"]["config.json"]}))


MANIFESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_text(""), "is not JSON"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:400]), "is not JSON"),
    "binary": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "a list": (lambda file: file.write_text("[]"), "was not written by m3rt"),
    "another program's": (lambda file: file.write_text('{"name": "x"}'), "not written by m3rt"),
    "newer": (edited(lambda data: data.update(format=2)), "has format 2, this m3rt reads 1"),
    "an unknown field": (edited(lambda data: data.update(extra=1)), "is damaged: .*extra"),
    "an unknown head": (edited(lambda data: data.update(heads=["x"])), "is damaged: .*no head 'x'"),
    "files that are a list": (edited(lambda data: data.update(files=[])), "is damaged"),
    "a file without hash": (
        edited(lambda data: data["files"]["config.json"].pop("sha256")),
        "is damaged: .*sha256",
    ),
    "a path upwards": (named("../config.json"), "leaves the directory"),
    "a path from the root": (named("/config.json"), "leaves the directory"),
    "a path downwards": (named("a/config.json"), "leaves the directory"),
    "a graph elsewhere": (
        edited(lambda data: data["graphs"].update(packed="../model.onnx")),
        "leaves the directory",
    ),
}
FIELDS = {field.name for field in dataclasses.fields(Manifest)} - {
    *("format", "graphs", "parity", "cls_interval")
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_damaged_manifests(damage: str, mine: Artifact) -> None:
    act, message = MANIFESTS[damage]
    act(mine.path / artifact.MANIFEST)
    with pytest.raises(ArtifactError, match=message) as caught:
        m3rt.load(mine.path)
    assert artifact.MANIFEST in str(caught.value)
    assert "export" in str(caught.value)  # what to run


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_manifests_without_a_field(field: str, mine: Artifact) -> None:
    edited(lambda data: data.pop(field))(mine.path / artifact.MANIFEST)
    with pytest.raises(ArtifactError, match=f"is damaged: .*{field}"):
        m3rt.load(mine.path)


def test_what_is_no_model_directory(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, found in (
        (tmp_path / "none", "does not exist"),
        (checkpoint / "config.json", "is a file, expected a model directory"),
        (checkpoint, r"has no manifest\.json \(it looks like a checkpoint\)"),
        (tmp_path / "empty", r"has no manifest\.json \(it looks like something else\)"),
    ):
        with pytest.raises(ArtifactError, match=f"{found}{WAY_OUT}$"):
            m3rt.load(path)
        for command in ("inspect", "verify", "encode"):
            done = CliRunner().invoke(cli.app, [command, str(path)])
            assert done.exit_code == ArtifactError.exit_code
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1


def test_a_graph_that_is_not_there(model_dir: Path) -> None:
    with pytest.raises(ArtifactError, match="has no int8 graph"):
        artifact.read(model_dir).graph("int8")


def test_dump_and_parse_are_inverse(model_dir: Path, tmp_path: Path) -> None:
    manifest = artifact.read(model_dir).manifest
    (tmp_path / "manifest").write_text(artifact.dump(manifest), "utf-8")
    assert artifact.parse(tmp_path / "manifest") == manifest


# Writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(out: Path, content: str = "new", force: bool = False) -> None:
    with staged(out, force) as part:
        assert not out.exists() or force
        (part / artifact.MANIFEST).write_text(content)


def test_out_appears_when_it_is_complete(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def fail(force: bool) -> None:
        with staged(tmp_path / "out", force) as part:
            (part / "half").write_text("made")
            raise error

    with pytest.raises(error):
        fail(force=False)
    assert names(tmp_path) == []
    fill(tmp_path / "out", "old")
    with pytest.raises(error):
        fail(force=True)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / artifact.MANIFEST).read_text() == "old"


def test_force_replaces_a_model_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    (out / "more").write_text("of the old")
    with pytest.raises(InputError, match="is there already; choose another name, or pass --force"):
        fill(out)
    fill(out, force=True)
    assert names(tmp_path) == ["out"]
    assert names(out) == [artifact.MANIFEST]
    assert (out / artifact.MANIFEST).read_text() == "new"


def test_force_fills_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", force=True)
    assert names(tmp_path / "out") == [artifact.MANIFEST]


def test_force_replaces_nothing_else(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("text")
    for out in (folder, file):
        with pytest.raises(InputError, match="is not a model directory: --force will not replace"):
            fill(out, force=True)
    assert names(tmp_path) == ["file", "folder"]
    assert names(folder) == ["thesis.txt"]


def test_force_replaces_what_a_link_points_to(tmp_path: Path) -> None:
    fill(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    fill(tmp_path / "current", force=True)
    assert names(tmp_path) == ["current", "v1"]
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / artifact.MANIFEST).read_text() == "new"


@pytest.mark.parametrize("name", ["out", "m[3]*"])
def test_what_a_killed_export_left_is_removed(name: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    for pid, suffix in ((dead.pid, ""), (dead.pid, "-old"), (os.getpid(), "")):
        (tmp_path / f".{name}.partial-{pid}-0{suffix}").mkdir()
    (tmp_path / f".another.partial-{dead.pid}-0").mkdir()
    fill(tmp_path / name)
    kept = [f".another.partial-{dead.pid}-0", f".{name}.partial-{os.getpid()}-0", name]
    assert names(tmp_path) == sorted(kept)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((M3Error, OSError)):
        fill(tmp_path / "file" / "out")


def test_a_model_directory_can_be_moved(model_dir: Path, model: m3rt.M3, tmp_path: Path) -> None:
    copied(model_dir, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "a b" / "ü")
    found = m3rt.load(tmp_path / "a b" / "ü", "cpu").encode(["a text"]).dense
    expected = model.encode(["a text"]).dense
    assert found is not None
    assert expected is not None
    assert (found == expected).all()
