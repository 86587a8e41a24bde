"""From checkpoint to model directory: what is in it, how it is proven, how an export ends."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from huggingface_hub import constants
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import m3rt
from m3rt import artifact, cli, export, parity, tolerances
from m3rt.artifact import Artifact, File
from m3rt.engines import ort
from m3rt.errors import ArtifactError, CheckpointError, InputError, ParityError
from m3rt.export import Recipe, model, pipeline, samples
from m3rt.export import checkpoint as reading
from m3rt.types import Floats, Heads
from tests import contract
from tests.conftest import copied
from tests.contract import TEXTS

ROOT = Path(__file__).parents[1]
SHORT = Recipe(max_length=64)


# What is written


def test_the_directory_is_complete(model_dir: Path, checkpoint: Path) -> None:
    manifest = artifact.read(model_dir).manifest
    assert manifest.source.checkpoint == checkpoint.name
    assert manifest.source.revision is None
    read = ("model.safetensors", "sparse_linear.pt", "colbert_linear.pt")
    assert manifest.source.files == {name: described(checkpoint / name) for name in read}
    there = {file.name for file in model_dir.iterdir()}
    assert there == {*manifest.files, artifact.MANIFEST}
    assert manifest.files == {name: described(model_dir / name) for name in manifest.files}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < there
    assert manifest.graphs == {
        "portable": "model.onnx",
        "packed": "packed.onnx",
        "grouped": "grouped.onnx",
    }
    config = json.loads((checkpoint / "config.json").read_text())
    assert manifest.architecture == "xlm-roberta"
    assert manifest.heads == ("dense", "sparse", "colbert")
    assert manifest.pooling == "cls"
    assert (manifest.hidden, manifest.colbert_dim, manifest.layers) == (64, 64, 2)
    assert (manifest.vocab, manifest.max_length) == (config["vocab_size"], 8192)
    assert (manifest.pad_id, manifest.unscored_ids) == (1, (0, 1, 2, 3))
    for name in ("m3rt", "torch", "transformers", "tokenizers", "onnx", "onnxruntime"):
        assert manifest.versions[name] == version(name)


def described(file: Path) -> File:
    """By another program than ours."""
    done = subprocess.run(["sha256sum", file], capture_output=True, check=True, text=True)
    return File(file.stat().st_size, done.stdout.split()[0].lstrip("\\"))


def test_the_figures_of_the_gate_are_kept(model_dir: Path) -> None:
    figures = artifact.read(model_dir).manifest.parity
    assert figures["ok"] is True
    assert figures["engine"] == "cpu:fp32"
    assert figures["longest"] == 8192
    assert figures["texts"] > len(samples.sentences()) > 60
    assert figures["tolerances"] == dataclasses.asdict(tolerances.Tolerances())
    for head in ("dense", "colbert"):
        assert 1 - 1e-6 < figures[head]["cosine_min"] <= figures[head]["cosine_mean"] < 1 + 1e-6
    assert 0 <= figures["sparse"]["weight_error_max"] < 1e-5
    assert figures["sparse"]["key_sets_equal"] is True


def test_no_path_of_this_machine_is_in_it(
    model_dir: Path, checkpoint: Path, tmp_path: Path
) -> None:
    home = str(Path.home())
    paths = {str(checkpoint.parent), str(model_dir.parent), str(ROOT), sys.prefix, home} - {"/"}
    for file in model_dir.iterdir():
        data = file.read_bytes()
        for path in (*paths, "site-packages", "/home/"):
            assert path.encode() not in data, f"{path} is in {file.name}"
    # old versions of transformers noted where a checkpoint was loaded from
    config = json.loads((checkpoint / "config.json").read_text())
    noted = {**config, "_name_or_path": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(noted))
    source = dataclasses.replace(reading.read(str(checkpoint)), path=tmp_path)
    (tmp_path / "out").mkdir()
    pipeline.write_config(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_the_portable_graph_has_free_axes(model_dir: Path) -> None:
    onnx.checker.check_model(model_dir / "model.onnx", full_check=True)
    graph = onnx.load(model_dir / "model.onnx", load_external_data=False).graph
    axes = {value.name: shape(value) for value in [*graph.input, *graph.output]}
    assert axes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "dense": ["batch", 64],
        "sparse": ["batch", "sequence"],
        "colbert": ["batch", "sequence", 64],
    }


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_all_graphs_share_one_file_of_weights(model_dir: Path) -> None:
    places = {}
    for name in ("model.onnx", "packed.onnx", "grouped.onnx"):
        graph = onnx.load(model_dir / name, load_external_data=False).graph
        large = [tensor for tensor in graph.initializer if tensor.external_data]
        assert sum(len(t.raw_data) for t in graph.initializer) < 100_000  # small ones stay inside
        places[name] = {t.name: {e.key: e.value for e in t.external_data} for t in large}
        assert {place["location"] for place in places[name].values()} == {"model.onnx.data"}
    assert places["grouped.onnx"] == places["packed.onnx"] == places["model.onnx"]
    written = sum(int(place["length"]) for place in places["model.onnx"].values())
    assert 0.98 < written / (model_dir / "model.onnx.data").stat().st_size <= 1
    assert len(list(model_dir.glob("*.data"))) == 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("width", [2, 7, 300])
def test_any_batch_of_any_width_runs(batch: int, width: int, model_dir: Path) -> None:
    session = ort.open_session(model_dir / "model.onnx", "cpu")
    ids = np.full((batch, width), 5)
    dense, sparse, colbert = session.run(None, {"input_ids": ids, "attention_mask": ids // 5})
    assert dense.shape == (batch, 64)
    assert sparse.shape == (batch, width)
    assert colbert.shape == (batch, width, 64)


def test_a_checkpoint_of_another_shape(odd_model_dir: Path) -> None:
    manifest = artifact.read(odd_model_dir).manifest
    assert (manifest.hidden, manifest.colbert_dim, manifest.layers) == (48, 20, 3)
    assert (manifest.max_length, manifest.parity["longest"]) == (512, 512)
    found = m3rt.load(odd_model_dir, "cpu").encode(TEXTS)
    assert found.colbert is not None
    assert {rows.shape[1] for rows in found.colbert} == {20}


def test_a_hub_id(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    top = tmp_path / "cache" / "models--someone--m3"
    commit = "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(checkpoint, top / "snapshots" / commit)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unreachable)
    bars = Progress(disable=True)
    source = export.run("someone/m3", tmp_path / "out", SHORT, progress=bars).manifest.source
    assert (source.checkpoint, source.revision) == ("someone/m3", commit)
    assert all(task.finished for task in bars.tasks), bars.tasks
    assert {"run the checkpoint", "write the graphs"} < {task.description for task in bars.tasks}
    assert capfd.readouterr() == ("", "")  # libraries are kept quiet


def unreachable(*_: Any, **__: Any) -> None:
    raise ConnectionError("there is no network")


def test_tensors_that_are_equal(checkpoint: Path, tmp_path: Path) -> None:
    equal = Path(shutil.copytree(checkpoint, tmp_path / "equal"))
    state = load_file(equal / "model.safetensors")
    zeros = {name: torch.zeros_like(state[name]) for name in state if name.endswith("bias")}
    save_file(state | zeros, equal / "model.safetensors")
    export.run(str(equal), tmp_path / "out", SHORT)


@pytest.mark.parametrize("heads", [Heads.SPARSE, Heads.DENSE | Heads.COLBERT])
def test_some_heads(heads: Heads, checkpoint: Path, model: m3rt.M3, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT, heads=heads)
    some = m3rt.load(export.run(str(checkpoint), tmp_path / "out", recipe).path, "cpu")
    assert some.heads == heads
    found, expected = some.encode(TEXTS), model.encode(TEXTS, heads, max_length=64)
    for i in range(len(TEXTS)):
        contract.same(found, i, expected, i, 1e-6)


# Dense alone


def test_a_checkpoint_without_head_files(checkpoint: Path, model: m3rt.M3, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    for file in bare.glob("*_linear.pt"):
        file.unlink()
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"_linear\.pt is missing.*--heads dense"):
        export.run(str(bare), out)
    assert not out.exists()
    made = export.run(str(bare), out, Recipe(Heads.DENSE, max_length=64))
    assert (made.manifest.heads, made.manifest.colbert_dim) == (("dense",), None)
    small = m3rt.load(out, "cpu")
    texts = [text[:40] for text in TEXTS]
    found = small.encode(texts)
    assert (found.sparse, found.colbert) == (None, None)
    assert cosines(found.dense, model.encode(texts).dense).min() > 1 - 1e-9
    with pytest.raises(InputError, match="no sparse head, only dense"):
        small.encode(["a"], Heads.SPARSE)


def cosines(a: Floats | None, b: Floats | None) -> Any:
    assert a is not None
    assert b is not None
    a, b = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(float), b.astype(float))
    )
    return np.einsum("ij,ij->i", a, b)


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with mean pooling, as sentence-transformers saves it."""
    steps = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    encoder = pytest.importorskip("sentence_transformers").SentenceTransformer
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder / "trunk")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=96,
        initializer_range=0.2,
    )
    trunk = BertModel(config)
    for parameter in trunk.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)  # a fresh one has no biases
    trunk.save_pretrained(folder / "trunk")
    modules = [
        steps.Transformer(str(folder / "trunk")),
        steps.Pooling(32, pooling_mode="mean"),
        steps.Normalize(),
    ]
    encoder(modules=modules, device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def wordpiece() -> PreTrainedTokenizerFast:
    """Train BERT's kind of tokenizer on the sentences of the gate."""
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=list(names.values()), show_progress=False
    )
    backend.train_from_iterator(samples.sentences(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=96, **special)


def test_a_bert_with_mean_pooling_equals_sentence_transformers(
    sentence_encoder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    made = export.run(str(sentence_encoder), tmp_path / "out", Recipe(Heads.DENSE))
    manifest = made.manifest
    assert (manifest.architecture, manifest.pooling) == ("bert", "mean")
    assert (manifest.max_length, manifest.pad_id) == (96, 0)
    reference = SentenceTransformer(str(sentence_encoder), device="cpu").encode(list(TEXTS))
    found = m3rt.load(made.path, "cpu")
    packed = found.encode(TEXTS).dense
    assert cosines(packed, reference).min() > 1 - 1e-6
    tokens = found.tokenize(TEXTS)
    padded = portable(made, [row.tolist() for row in tokens.ids])["dense"]
    assert cosines(packed, padded).min() > 1 - 1e-9
    # vectors of other texts are another matter
    assert cosines(packed[:1] if packed is not None else None, reference[1:2]).max() < 0.999


def portable(made: Artifact, rows: list[list[int]]) -> dict[str, Floats]:
    """Run the portable graph on one padded batch."""
    width = max(map(len, rows))
    ids = np.array([row + [made.manifest.pad_id] * (width - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    session = ort.open_session(made.graph("portable"), "cpu")
    outputs = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return dict(zip(made.manifest.heads, outputs, strict=True))


def test_the_portable_graph_equals_the_packed_one(model_dir: Path, model: m3rt.M3) -> None:
    tokens = model.tokenize(TEXTS, max_length=200)
    found = portable(artifact.read(model_dir), [row.tolist() for row in tokens.ids])
    for batch, raw in model.run(tokens, batch_tokens=10**6):
        assert raw.dense is not None
        assert raw.weights is not None
        assert raw.colbert is not None
        starts = batch.tokens.starts
        for i, row in enumerate(batch.rows):
            n = batch.tokens.lengths[i]
            weights = raw.weights[starts[i] : starts[i + 1]]
            np.testing.assert_allclose(raw.dense[i], found["dense"][row], atol=1e-6)
            np.testing.assert_allclose(weights, found["sparse"][row, :n], atol=1e-6)
            np.testing.assert_allclose(raw.colbert[i], found["colbert"][row, :n], atol=1e-6)


# The gate


def wrong_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(source: reading.Checkpoint, state: reading.State) -> model.M3:
        trunk = dataclasses.replace(source.trunk, epsilon=1e-2)
        return right(dataclasses.replace(source, trunk=trunk), state)

    right = model.build
    monkeypatch.setattr(model, "build", build)


def no_colbert_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(source: reading.Checkpoint, state: reading.State) -> model.M3:
        return right(source, state | {"colbert_linear.bias": torch.zeros(64)})

    right = model.build
    monkeypatch.setattr(model, "build", build)


@pytest.mark.parametrize("mistake", [wrong_epsilon, no_colbert_bias])
def test_a_graph_that_differs_is_not_written(
    mistake: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    out = tmp_path / "out"
    done = CliRunner().invoke(
        cli.app, ["export", str(checkpoint), str(out), "--max-length", "64", "--json"]
    )
    assert done.exit_code == ParityError.exit_code
    assert json.loads(done.stderr)["error"]["type"] == "ParityError"
    figures = json.loads(done.stdout)["parity"]
    assert figures["ok"] is False
    assert figures["colbert"]["cosine_min"] < 0.99999
    # a mistake in one head shows in that head alone
    assert (figures["dense"]["cosine_min"] > 0.999999) == (mistake is no_colbert_bias)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_overflows_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    huge = {"weight": torch.full((64, 64), 3e38), "bias": torch.zeros(64)}
    torch.save(huge, broken / "colbert_linear.pt")
    with pytest.raises(CheckpointError, match="the checkpoint's own colbert output is NaN or Inf"):
        export.run(str(broken), tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


# Verifying


@pytest.fixture(scope="module")
def short_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of 64 tokens: quick to verify."""
    return export.run(str(checkpoint), tmp_path_factory.mktemp("short") / "out", SHORT).path


def verify(*args: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(cli.app, ["verify", *map(str, args), "--json"])
    return done.exit_code, json.loads(done.stdout or done.stderr)


def test_verify(short_dir: Path, checkpoint: Path) -> None:
    for options in ([], ["--against", checkpoint]):
        code, found = verify(short_dir, *options)
        assert code == 0
        assert found["parity"]["ok"] is True
        assert found["parity"]["longest"] == 64


def test_verify_notices_weights_that_changed_with_their_hash(
    short_dir: Path, checkpoint: Path, tmp_path: Path
) -> None:
    made = copied(short_dir, tmp_path / "made")
    weights = made.path / "model.onnx.data"
    values = np.fromfile(weights, np.float32)
    values[-5000:] *= 1.5  # in the last layer
    values.tofile(weights)
    assert verify(made.path)[0] == ArtifactError.exit_code
    rehash(made, weights.name)
    for options in ([], ["--against", checkpoint]):
        code, found = verify(made.path, *options)
        assert code == ParityError.exit_code
        assert found["parity"]["ok"] is False


def rehash(made: Artifact, name: str) -> None:
    files = {**made.manifest.files, name: artifact.describe(made.path / name)}
    manifest = dataclasses.replace(made.manifest, files=files)
    (made.path / artifact.MANIFEST).write_text(artifact.dump(manifest), "utf-8")


def test_verify_against_other_weights(short_dir: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    head = torch.load(other / "sparse_linear.pt", weights_only=True)
    torch.save(head | {"bias": head["bias"] + 1e-4}, other / "sparse_linear.pt")
    code, found = verify(short_dir, "--against", other, "--engine", "cpu")
    assert code == ParityError.exit_code
    assert found["parity"]["sparse"]["weight_error_max"] > 5e-5
    assert found["parity"]["dense"]["cosine_min"] > 0.999999


def test_verify_against_another_shape(short_dir: Path, odd_checkpoint: Path) -> None:
    code, found = verify(short_dir, "--against", odd_checkpoint)
    assert code == ParityError.exit_code
    assert "its hidden is 64, the checkpoint's 48" in found["error"]["message"]


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_reference(damage: str, short_dir: Path, tmp_path: Path) -> None:
    made = copied(short_dir, tmp_path / "made")
    file = made.path / parity.REFERENCE
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        np.savez(file, other=np.ones(3))
    rehash(made, parity.REFERENCE)
    with pytest.raises(ArtifactError, match=r"not a parity reference.*run: m3rt export"):
        parity.verify(artifact.read(made.path))


def test_verify_needs_no_torch(short_dir: Path) -> None:
    code = """
import sys
for name in ("torch", "transformers", "onnx", "safetensors"):
    sys.modules[name] = None  # importing it fails
from m3rt import cli
cli.main()
"""
    command = [sys.executable, "-c", code, "verify", str(short_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parity: ok" in done.stdout


# How an export ends


def test_out_is_not_overwritten(checkpoint: Path, short_dir: Path, tmp_path: Path) -> None:
    made = copied(short_dir, tmp_path / "out")
    with pytest.raises(InputError, match="is there already; choose another name, or pass --force"):
        export.run(str(checkpoint), made.path)
    assert artifact.read(made.path) == made


def test_force(checkpoint: Path, short_dir: Path, tmp_path: Path) -> None:
    made = copied(short_dir, tmp_path / "out")
    recipe = Recipe(Heads.DENSE, max_length=32)
    again = export.run(str(checkpoint), made.path, recipe, force=True)
    assert artifact.read(made.path) == again
    assert again.manifest.max_length == 32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="is not a model directory"):
        export.run(str(checkpoint), checkpoint, recipe, force=True)
    assert (checkpoint / "model.safetensors").is_file()


# When to kill: as soon as a file is there, or the export's directory itself.
MOMENTS = {"begun": "", "weights": "model.onnx.data"}


@pytest.fixture
def exporting(checkpoint: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An export to out, in a process of its own."""
    export = [sys.executable, "-m", "m3rt.cli", "export", "--max-length", "64"]
    command = [*export, str(checkpoint), str(tmp_path / "out")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def wait_for(file: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
    while not any(folder.glob(f".out.partial-*/{file}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_terminated_export_leaves_nothing(
    moment: str, exporting: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    wait_for(MOMENTS[moment], tmp_path, exporting)
    exporting.send_signal(signal.SIGTERM)
    stdout, stderr = exporting.communicate(timeout=60)
    assert exporting.returncode == cli.TERMINATED, stderr
    assert list(tmp_path.iterdir()) == []
    assert b"Traceback" not in stderr
    assert stdout == b""


def test_a_killed_export_leaves_no_model(
    exporting: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    wait_for(MOMENTS["weights"], tmp_path, exporting)
    exporting.kill()
    exporting.communicate(timeout=60)
    assert exporting.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(rf"\.out\.partial-{exporting.pid}-\w+", left.name)
    with pytest.raises(ArtifactError, match="does not exist"):
        m3rt.load(tmp_path / "out")
    with artifact.staged(tmp_path / "out"):  # as the next export begins
        assert not left.exists()


def test_what_is_missing_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "m3rt.export.pipeline")
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = CliRunner().invoke(cli.app, ["export", str(checkpoint), str(tmp_path / "out")])
    assert done.exit_code == 7
    assert "needs the package 'transformers'" in done.stderr
    assert "pip install 'm3rt[export]'" in done.stderr


def test_special_tokens_follow_the_tokenizer(sentence_encoder: Path, tmp_path: Path) -> None:
    source = reading.read(str(sentence_encoder), Heads.DENSE)
    assert pipeline.write_tokenizer(source, tmp_path) == (0, 1, 2)


def test_a_tokenizer_is_read_as_it_stands(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under transformers 5, which would make XLM-R's tokenizer anew."""
    from m3rt.export import checkpoint as checkpoints
    from m3rt.export import pipeline
    from m3rt.export.samples import EDGES, sentences

    monkeypatch.setattr(pipeline, "REBUILDS", True)
    unscored = pipeline.write_tokenizer(checkpoints.read(str(checkpoint)), tmp_path)
    assert unscored == (0, 1, 2, 3)
    ours, theirs = (
        Backend.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path, checkpoint)
    )
    for text in (*sentences(), *EDGES):
        assert ours.encode(text).ids == theirs.encode(text).ids
