"""The command line: what goes where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import m3rt
from benchmarks.checkpoint import train_tokenizer
from m3rt import api, artifact, cli, doctor, engines, errors, gate, nvidia
from m3rt.artifact import Artifact
from m3rt.engines import Probe
from m3rt.types import Heads
from tests import fake

ROOT = Path(__file__).parents[1]
TEXTS = b"a tiny model\n\nwhat is a small model\n"
DIFFERS = {
    "texts": 1,
    "tokens": 9,
    "longest": 9,
    "sparse": {"key_sets_equal": False, "keys_differ": 3, "weight_error_max": 0.25},
    "tolerances": {"weight_error": 1e-5},
    "ok": False,
    "engine": "fake",
}

# a process of its own, with the fake engine behind it
FAKED = """
import sys
from m3rt import api, cli
from tests import fake
api.load = fake.load
cli.main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    made = fake.with_parity(fake.write(folder))
    fake.save(made)
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(api, "load", fake.load)

    def invoke(*args: object, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)

    return invoke


def process(*args: object, code: str = FAKED) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def finished(
    *args: object, code: str = FAKED, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(process(*args, code=code), cwd=ROOT, capture_output=True, **options)


def lines(data: bytes | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from m3rt import cli
try:
    cli.main()
finally:
    heavy = {"torch", "onnxruntime", "openvino", "transformers", "pyarrow", "onnx"}
    heavy |= {"scipy", "ir_measures", "regex", "mteb"}
    heavy &= sys.modules.keys()
    assert not heavy, heavy
"""
    done = finished("--help", code=code)
    assert done.returncode == 0, done.stderr
    for command in (
        b"export",
        b"build",
        b"verify",
        b"inspect",
        b"doctor",
        b"encode",
        b"bench",
        b"eval",
    ):
        assert command in done.stdout


def test_a_library_may_turn_the_end_into_its_own_error() -> None:
    code = """
import os, signal, sys
from m3rt import cli, doctor
from m3rt.errors import CheckpointError
def examine():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        raise CheckpointError("initialization failed") from error
doctor.examine = examine
cli.main()
"""
    done = finished("doctor", code=code)
    assert (done.returncode, done.stderr) == (cli.TERMINATED, b"")


def test_version(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"m3rt {m3rt.__version__}\n"


def test_stdout_holds_data_and_nothing_else(model: Artifact) -> None:
    done = finished("encode", model.path, input=TEXTS)
    assert done.returncode == 0
    assert done.stderr == b""
    found = lines(done.stdout)
    assert [line["id"] for line in found] == ["1", "2", "3"]
    assert set(found[0]) == {"id", "n_tokens", "truncated", "dense", "sparse", "colbert"}


def test_stdout_holds_data_even_while_a_bar_shows(model: Artifact) -> None:
    pty = pytest.importorskip("pty")
    reader, terminal = pty.openpty()
    with subprocess.Popen(
        process("encode", model.path),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm"},
    ) as encoder:
        stdout, _ = encoder.communicate(TEXTS)
    shown = os.read(reader, 1 << 16)
    os.close(terminal)
    os.close(reader)
    assert len(lines(stdout)) == 3
    assert b"encode" in shown


def test_encode_equals_the_library(
    run: Callable[..., Result], model: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"_id": "a", "title": "the", "text": "model"}\n')
    done = run("encode", model.path, tmp_path / "in.jsonl", "--heads", "dense,sparse", "--tokens")
    (found,) = lines(done.stdout)
    expected = fake.load(model.path).encode(["the model"])
    assert expected.dense is not None
    assert expected.sparse is not None
    assert found["id"] == "a"
    assert np.array_equal(np.array(found["dense"], np.float32), expected.dense[0])
    assert found["sparse"]["indices"] == expected.sparse.ids[0].tolist()
    piece = fake.load(model.path).tokenizer.piece
    assert found["sparse"]["tokens"] == [piece(i) for i in found["sparse"]["indices"]]
    assert "colbert" not in found


def test_encode_of_nothing(run: Callable[..., Result], model: Artifact) -> None:
    done = run("encode", model.path, "--json")
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(done.stderr)["texts"] == 0


def test_encode_of_many_chunks(run: Callable[..., Result], model: Artifact) -> None:
    done = run("encode", model.path, "--heads", "dense", "--json", stdin=b"a model\n" * 2100)
    found = lines(done.stdout)
    assert [line["id"] for line in found] == [str(i) for i in range(1, 2101)]
    assert all(line["dense"] == found[0]["dense"] for line in found)
    summary = json.loads(done.stderr)
    assert summary["texts"] == 2100
    assert summary["tokens"] == sum(line["n_tokens"] for line in found)


def test_truncated_texts_are_counted(run: Callable[..., Result], model: Artifact) -> None:
    done = run("encode", model.path, "--max-length", 4, stdin=TEXTS)
    assert [line["truncated"] for line in lines(done.stdout)] == [True, False, True]
    assert "2 of 3 texts were too long" in done.stderr
    done = run("encode", model.path, "--max-length", 4, "--json", stdin=TEXTS)
    assert json.loads(done.stderr)["truncated"] == 2


def test_output_tells_the_format(
    run: Callable[..., Result], model: Artifact, tmp_path: Path
) -> None:
    for name in ("out.jsonl", "out.npz", "out.parquet"):
        done = run("encode", model.path, "-o", tmp_path / name, stdin=TEXTS)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert len(lines((tmp_path / "out.jsonl").read_bytes())) == 3
    with np.load(tmp_path / "out.npz") as out:
        assert len(out["dense"]) == 3
    assert (tmp_path / "out.parquet").read_bytes().startswith(b"PAR1")
    assert len(list(tmp_path.iterdir())) == 3


def test_binary_goes_through_a_pipe(model: Artifact, tmp_path: Path) -> None:
    done = finished("encode", model.path, "--format", "npz", input=TEXTS)
    (tmp_path / "out.npz").write_bytes(done.stdout)
    with np.load(tmp_path / "out.npz") as out:
        assert out["ids"].tolist() == ["1", "2", "3"]


def test_binary_is_not_written_to_a_terminal(model: Artifact) -> None:
    pty = pytest.importorskip("pty")
    reader, terminal = pty.openpty()
    done = subprocess.run(
        process("encode", model.path, "--format", "npz"),
        cwd=ROOT,
        input=TEXTS,
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    os.close(reader)
    assert done.returncode == 2
    assert b"binary" in done.stderr


@pytest.mark.parametrize(
    ("args", "stdin", "code", "message"),
    [
        (["--format", "csv"], TEXTS, 2, "csv"),
        (["-o", "out.bin"], TEXTS, 2, "pass --format"),
        (["--heads", "dens"], TEXTS, 2, "dens"),
        (["--tokens", "--format", "npz"], TEXTS, 2, "--tokens is for jsonl"),
        (["none.txt"], TEXTS, 3, "cannot read none.txt"),
        (["--max-length", "999"], TEXTS, 3, "max_length is 999"),
        (["--on-long", "error", "--max-length", "4"], TEXTS, 3, "at line 1: 2 text(s) are longer"),
        ([], b"good\n\xff\n", 3, "stdin, line 2: byte 0"),
        (["--input-format", "jsonl"], b"text\n", 3, "stdin, line 1: not JSON"),
    ],
)
def test_errors_of_encode(
    run: Callable[..., Result],
    model: Artifact,
    args: list[str],
    stdin: bytes,
    code: int,
    message: str,
) -> None:
    done = run("encode", model.path, *args, stdin=stdin)
    assert done.exit_code == code
    assert done.stdout == ""
    assert message in " ".join(done.stderr.split())
    if code == 3:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_failure_leaves_no_file(
    run: Callable[..., Result], model: Artifact, tmp_path: Path
) -> None:
    for name in ("out.jsonl", "out.npz", "out.parquet"):
        done = run("encode", model.path, "-o", tmp_path / name, stdin=b"a\n" * 2000 + b"\xff")
        assert done.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    [
        errors.InputError,
        errors.ArtifactError,
        errors.CheckpointError,
        errors.UnavailableError,
        errors.EngineError,
    ],
)
def test_each_error_has_its_exit_code(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, kind: type[errors.M3Error]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("pip install 'm3rt[cpu]'")

    monkeypatch.setattr(api, "load", fail)
    done = run("encode", "anywhere")
    assert (done.exit_code, done.stdout) == (kind.exit_code, "")
    assert done.stderr == "error: pip install 'm3rt[cpu]'\n"
    done = run("encode", "anywhere", "--json")
    assert done.exit_code == kind.exit_code
    message = {"type": kind.__name__, "message": "pip install 'm3rt[cpu]'"}
    assert json.loads(done.stderr) == {"error": message}


@pytest.mark.parametrize("command", ["inspect", "verify", "encode"])
def test_model_that_is_not_there(run: Callable[..., Result], command: str) -> None:
    done = run(command, "nowhere")
    assert (done.exit_code, done.stdout) == (5, "")
    assert "nowhere does not exist" in done.stderr


def test_interrupt(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "load", interrupt)
    assert run("encode", "anywhere").exit_code == 130


def test_termination_leaves_no_file(model: Artifact, tmp_path: Path) -> None:
    with subprocess.Popen(
        process("encode", model.path, "-o", tmp_path / "out.jsonl"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as encoder:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):  # it has opened its output and waits for texts
            assert time.monotonic() < deadline
            time.sleep(0.05)
        encoder.send_signal(signal.SIGTERM)
        assert encoder.wait(30) == 143
        assert encoder.stderr is not None
        assert encoder.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_went_away_ends_it_quietly(model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"what is a small model\n" * 5000)
    with subprocess.Popen(
        process("encode", model.path, tmp_path / "in.txt"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as encoder:
        assert encoder.stdout is not None
        assert encoder.stderr is not None
        assert encoder.stdout.readline().startswith(b'{"id":"1"')
        encoder.stdout.close()
        assert encoder.stderr.read() == b""
    assert encoder.returncode == cli.BROKEN_PIPE


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("options", "told"), [((), 1), (("--engine", "cpu"), 0), (("--json",), 0)])
def test_people_at_a_terminal_are_told_which_engine_auto_is(
    options: tuple[str, ...], told: int, model: Artifact
) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = process("encode", model.path, *options)
    try:
        done = subprocess.run(command, cwd=ROOT, input=TEXTS, stdout=subprocess.PIPE, stderr=theirs)
        said = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, said
    assert said.count("engine: fake:fp32 ([no] network)") == told
    assert len(lines(done.stdout)) == 3


def test_inspect(
    run: Callable[..., Result], model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Artifact]()

    def automatic(found: Artifact) -> engines.Choice:
        asked.append(found)
        return engines.Choice("openvino", "bf16", "[a] detail")

    monkeypatch.setattr(engines, "automatic", automatic)
    done = run("inspect", model.path)
    assert (done.exit_code, done.stderr) == (0, "")
    for text in (
        "fake/m3",
        "0123abc",
        "dense, sparse, colbert",
        "auto is openvino:bf16: [a] detail; not built",
    ):
        assert text in done.stdout
    assert ["dense", "cosine_min", "0.9999991", "0.9999"] in map(str.split, done.stdout.split("\n"))
    found = json.loads(run("inspect", model.path, "--json").stdout)
    assert found["engine"]["auto"] == "openvino:bf16"
    assert found["engine"]["detail"].startswith("[a] detail; not built, so it starts slowly")
    assert found["heads"] == ["dense", "sparse", "colbert"]
    assert found["files"]["tokenizer.json"]["bytes"] > 0
    assert [one.path for one in asked] == [model.path] * 2  # which TensorRT engines it has counts


def test_inspect_where_no_engine_runs(
    run: Callable[..., Result], model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "probe", lambda name: Probe(name, False, "pip install it"))
    done = run("inspect", model.path)
    assert done.exit_code == 0
    assert "no engine can run here: openvino: pip install it" in done.stdout
    assert json.loads(run("inspect", model.path, "--json").stdout)["engine"]["auto"] is None


@pytest.mark.parametrize("ready", [True, False])
def test_doctor(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, ready: bool) -> None:
    monkeypatch.setattr(engines, "probe", lambda name: Probe(name, ready, f"about [{name}]"))
    done = run("doctor")
    assert done.exit_code == (0 if ready else 7)
    for text in ("about [cpu]", "about [tensorrt-rtx]", "numpy", np.__version__):
        assert text in done.stdout
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, done.stderr) == (0 if ready else 7, "")
    assert found["ready"] is ready
    assert found["packages"]["numpy"] == np.__version__
    assert {"engine": "cpu", "ready": ready, "detail": "about [cpu]"} in found["engines"]
    assert (found["auto"] is not None) is ready


def test_doctor_reads_proc(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx512f amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: Another\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       1024 kB\nMemFree: 1 kB\n")
    report = doctor.examine(tmp_path)
    assert (report.cpu.model, report.cpu.flags) == ("A CPU", ("avx512f", "amx_bf16"))
    assert report.cpu.cores >= 1
    assert report.memory == 1 << 20


def test_doctor_where_there_is_no_proc(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path)
    assert (report.cpu.flags, report.memory) == ((), None)


def test_doctor_shows_every_gpu(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = (
        nvidia.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),
        nvidia.Gpu(1, "NVIDIA A10", (8, 6), 24_000_000_000),
    )
    monkeypatch.setattr(nvidia, "read", lambda: nvidia.Driver("12.8", gpus))
    done = run("doctor")
    for text in (
        "0: NVIDIA H200, compute capability 9.0, 150.0 GB",
        "1: NVIDIA A10, compute capability 8.6, 24.0 GB",
        "driver for CUDA 12.8",
    ):
        assert text in done.stdout
    assert json.loads(run("doctor", "--json").stdout)["nvidia"] == {
        "cuda": "12.8",
        "gpus": [
            {"index": 0, "name": "NVIDIA H200", "capability": [9, 0], "memory": 150_000_000_000},
            {"index": 1, "name": "NVIDIA A10", "capability": [8, 6], "memory": 24_000_000_000},
        ],
        "why": "",
    }


def test_doctor_says_why_there_is_no_gpu(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = nvidia.Driver("12.8", (), "the NVIDIA driver has no device")
    monkeypatch.setattr(nvidia, "read", lambda: driver)
    shown = " ".join(run("doctor").stdout.split())
    assert "nvidia the NVIDIA driver has no device driver for CUDA 12.8" in shown
    found = json.loads(run("doctor", "--json").stdout)["nvidia"]
    assert found == {"cuda": "12.8", "gpus": [], "why": "the NVIDIA driver has no device"}


def test_doctor_survives_a_broken_library(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcudart.so.12: cannot open")

    monkeypatch.setattr(engines, "import_module", broken)
    done = run("doctor", "--json")
    assert done.exit_code == 7
    found = json.loads(done.stdout)
    assert found["auto"] is None
    detail = "cannot be imported: libcudart.so.12: cannot open"
    assert {"engine": "cuda", "ready": False, "detail": detail} in found["engines"]
    assert f"no engine can run here: openvino: {detail}" in found["why"]


@dataclass(frozen=True)
class Recipe:
    heads: Heads | None = None
    pooling: str | None = None
    revision: str | None = None
    max_length: int | None = None


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch, model: Artifact) -> list[Any]:
    """Put a stand-in in the place of m3rt.export; the list gets what it is called with."""
    calls: list[Any] = []

    def made(*args: object) -> Artifact:
        calls.append(args[:-1])  # without progress
        return model

    def compared(*args: object) -> object:
        calls.append(args[:-1])
        return model.manifest.parity

    stand_in = ModuleType("m3rt.export")
    stand_in.__dict__.update(Recipe=Recipe, run=made, verify=compared)
    monkeypatch.setitem(sys.modules, "m3rt.export", stand_in)
    return calls


def test_export(
    run: Callable[..., Result], exporter: list[Any], model: Artifact, tmp_path: Path
) -> None:
    options = ["--heads", "dense,colbert", "--pooling", "mean", "--revision", "r", "--force"]
    done = run("export", "hub/id", tmp_path, *options, "--max-length", 9)
    assert done.exit_code == 0
    assert "parity: ok (3 texts, 40 tokens)" in done.stdout
    recipe = Recipe(Heads.DENSE | Heads.COLBERT, "mean", "r", 9)
    assert exporter == [("hub/id", tmp_path, recipe, True)]
    found = json.loads(run("export", "hub/id", tmp_path, "--json").stdout)
    assert (found["path"], found["parity"]["ok"]) == (str(model.path), True)
    assert exporter[1] == ("hub/id", tmp_path, Recipe(), False)


def test_export_out_of_tolerance_shows_by_how_much(
    run: Callable[..., Result], exporter: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(*_: object) -> None:
        raise errors.ParityError("it differs", DIFFERS)

    monkeypatch.setattr(sys.modules["m3rt.export"], "run", differ)
    done = run("export", "in", "out")
    assert (done.exit_code, done.stderr) == (4, "error: it differs\n")
    assert ["sparse", "weight_error_max", "0.25", "1e-05"] in map(
        str.split, done.stdout.split("\n")
    )
    done = run("export", "in", "out", "--json")
    assert json.loads(done.stdout)["parity"] == DIFFERS
    assert json.loads(done.stderr)["error"]["type"] == "ParityError"


def test_verify(
    run: Callable[..., Result],
    exporter: list[Any],
    model: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "verify", lambda *_: (model.manifest.parity, None))
    done = run("verify", model.path)
    assert done.exit_code == 0
    assert "parity: ok" in done.stdout
    found = json.loads(run("verify", model.path, "--json", "--against", "ck").stdout)
    assert found == {
        "path": str(model.path),
        "parity": dict(model.manifest.parity),
        "certificate": None,
    }
    assert exporter == [(artifact.read(model.path), "ck", "auto")]


def test_verify_hashes_files_that_load_only_measures(
    run: Callable[..., Result], model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "read", lambda path: model)
    file = model.path / "tokenizer.json"
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-1] + b" ")
        done = run("verify", model.path)
    finally:
        file.write_bytes(before)
    assert done.exit_code == 5
    assert "damaged" in done.stderr
