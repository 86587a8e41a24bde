"""Which checkpoints are rerankers, what is made of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import m3rt
from m3rt import CheckpointError, InputError, ParityError, artifact, cli, export, parity
from m3rt.export import Recipe, samples
from m3rt.parity import Reference
from m3rt.types import Heads
from tests.conftest import copied
from tests.reranker_oracle import Oracle

SHORT = Recipe(max_length=64)
PAIRS = [("which river?", "The Seine flows through Paris."), ("", "水"), ("water " * 30, "a")]


@pytest.fixture
def mine(reranker_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(reranker_checkpoint, tmp_path / "checkpoint")


def configure(path: Path, **fields: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors")


def test_what_is_written(reranker_dir: Path) -> None:
    manifest = artifact.read(reranker_dir).manifest
    assert manifest.is_reranker
    assert manifest.heads == ("score",)
    assert (manifest.colbert_dim, manifest.max_length, manifest.pooling) == (None, 1024, "cls")
    assert list(manifest.source.files) == ["model.safetensors"]
    figures = manifest.parity
    for found in (figures, figures["portable"], figures["grouped"]):
        assert found["ok"]
        assert found["score"]["error_max"] < 1e-4
        assert found["score"]["correlation"] > 0.9999
        assert found.keys().isdisjoint({"dense", "sparse", "colbert"})
    for spec, build in manifest.builds.items():
        assert build.parity["engine"] == spec
        assert build.parity["score"]["spread"] > 0.5
    reference = Reference.read(reranker_dir / parity.REFERENCE)
    for other in (reference.dense, reference.weights, reference.colbert):
        assert other is None
    assert reference.scores is not None
    assert len(reference.scores) == len(reference.ids) == figures["texts"]


def test_the_portable_graph(reranker_dir: Path, reranker: m3rt.Reranker) -> None:
    session = onnxruntime.InferenceSession(reranker_dir / "model.onnx")
    (score,) = session.get_outputs()
    assert (score.name, score.shape) == ("score", ["batch"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    tokens = reranker.tokenize(PAIRS[:2])
    width = tokens.ids.lengths.max()
    ids = np.ones((2, width), np.int64)
    mask = np.arange(width) < tokens.ids.lengths[:, None]
    ids[mask] = tokens.ids.values
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask.astype(np.int64)})
    np.testing.assert_allclose(found, reranker.score(PAIRS[:2]).scores, atol=1e-5)


def test_roberta_is_the_same(mine: Path, tmp_path: Path) -> None:
    configure(mine, model_type="roberta", architectures=["RobertaForSequenceClassification"])
    made = export.run(str(mine), tmp_path / "out", SHORT)
    assert made.manifest.architecture == "roberta"
    found = m3rt.load_reranker(made.path, "cpu").score(PAIRS).scores
    np.testing.assert_allclose(found, Oracle(mine).score(PAIRS, max_length=64), atol=2e-5)


def test_the_encoder_alone_is_an_embedder(mine: Path, tmp_path: Path) -> None:
    made = export.run(str(mine), tmp_path / "out", Recipe(Heads.DENSE, max_length=64))
    assert made.manifest.heads == ("dense",)
    assert not made.manifest.is_reranker
    assert m3rt.load(made.path, "cpu").encode(["a text"]).dense is not None


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two labels": (
        lambda path: configure(path, id2label={"0": "no", "1": "yes"}),
        "the model has 2 labels, a reranker has 1; to export its encoder alone, pass --heads dense",
    ),
    "labels not told": (lambda path: configure(path, id2label=None), "has 2 labels"),
    "more labels in the weights": (
        lambda path: rewrite(
            path, lambda s: s.update({"classifier.out_proj.weight": torch.ones(3, 64)})
        ),
        r"classifier\.out_proj\.weight is \(3, 64\), expected \(1, 64\)",
    ),
    "bert": (
        lambda path: configure(path, architectures=["BertForSequenceClassification"]),
        r"\['BertForSequenceClassification'\], expected a reranker's.*pass --heads dense",
    ),
    "no classifier": (
        lambda path: rewrite(
            path, lambda s: [s.pop(name) for name in list(s) if name.startswith("classifier")]
        ),
        r"classifier\.dense\.bias is missing, expected \(64,\)",
    ),
    "a classifier of another kind": (
        lambda path: rewrite(path, lambda s: s.update({"classifier.weight": torch.ones(1, 64)})),
        r"classifier\.weight is \(1, 64\), expected no such tensor",
    ),
    "nan": (
        lambda path: rewrite(path, lambda s: s["classifier.dense.weight"].fill_(torch.nan)),
        r"classifier\.dense\.weight holds NaN or Inf",
    ),
    "a score that overflows": (
        lambda path: rewrite(path, lambda s: s["classifier.out_proj.weight"].fill_(3e38)),
        "the checkpoint's own score output is NaN or Inf",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, mine: Path, tmp_path: Path) -> None:
    act, message = REFUSED[name]
    act(mine)
    with pytest.raises(CheckpointError, match=message):
        export.run(str(mine), tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(Heads.SCORE | Heads.DENSE), "heads are dense, score: .*pass score alone"),
        (Recipe(Heads.SCORE, pooling="mean"), "pooling is 'mean': a reranker's"),
        (Recipe(pooling="mcls"), "pooling is 'mcls': a reranker's score is of the first token"),
        (Recipe(max_length=5), "max_length is 5, expected 6 to 1024"),
    ],
)
def test_options_that_do_not_fit(recipe: Recipe, message: str, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export.run(str(mine), tmp_path / "out", recipe)


def test_an_embedder_has_no_score_to_export(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"architectures is \['XLMRobertaModel'\]"):
        export.run(str(checkpoint), tmp_path / "out", Recipe(Heads.SCORE))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_verify_and_inspect(reranker_dir: Path, reranker_checkpoint: Path) -> None:
    for spec in ("cpu", "openvino:bf16", "cpu:int8"):
        done = run("verify", reranker_dir, "--engine", spec)
        assert done.exit_code == 0, done.output
        assert "score  error_max" in done.stdout
    done = run("verify", reranker_dir, "--engine", "cpu", "--against", reranker_checkpoint)
    assert done.exit_code == 0, done.output
    shown = run("inspect", reranker_dir).stdout
    assert "score error" in shown
    assert "dense cosine" not in shown


def test_a_calibration_of_ones_own(reranker_dir: Path, tmp_path: Path) -> None:
    path = copied(reranker_dir, tmp_path / "model").path
    texts = tmp_path / "pairs.jsonl"
    lines = samples.sentences()
    texts.write_text(json.dumps({"query": lines[8], "documents": lines}), "utf-8")
    options = ("--engine", "cpu:int8", "--calibration", texts, "--force", "--json")
    done = run("build", path, *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recipe"]["calibration"]["texts"] == len(lines)
    texts.write_text('{"query": "a river", "documents": []}')
    done = run("build", path, *options)
    assert done.exit_code == InputError.exit_code
    assert "holds no pairs" in done.stderr


def test_verify_notices_other_weights(reranker_dir: Path, mine: Path, tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["classifier.out_proj.bias"] += 0.01

    rewrite(mine, change)
    with pytest.raises(ParityError, match=r"score error_max is 0\.0\d+, expected at most 0\.0001"):
        export.verify(artifact.read(reranker_dir), str(mine), "cpu")
    # and a reference that is not the model's
    path = copied(reranker_dir, tmp_path / "model").path
    reference = Reference.read(path / parity.REFERENCE)
    assert reference.scores is not None
    reference.scores[3] += 1
    reference.save(path / parity.REFERENCE)
    with pytest.raises(ParityError, match="score error_max"):
        parity.verify(artifact.Artifact(path, artifact.parse(path / artifact.MANIFEST)), "cpu")
