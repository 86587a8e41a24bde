"""The quality gate: what it is judged on, what it says, and what it does about int8."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import m3rt
from benchmarks.checkpoint import TINY, make
from m3rt import (
    api,
    artifact,
    build,
    cli,
    datasets,
    export,
    gate,
    harm,
    parity,
    sample,
    tolerances,
    trial,
)
from m3rt.certificate import Certificate
from m3rt.errors import ArtifactError, InputError, ParityError
from m3rt.export import samples
from m3rt.export.scales import quantized
from m3rt.gate import Baseline, Terms
from m3rt.harm import WORDS
from m3rt.parity import REFERENCE, Reference
from m3rt.tokenizer import Tokenizer
from m3rt.types import ragged
from tests.conftest import copied, needs_int8
from tests.sets import known_items

NO_BARS = Progress(disable=True)
SITE = "encoder.layer.0.output.dense.weight"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def mine(model_dir: Path, tmp_path: Path) -> Path:
    """A copy to build in."""
    return copied(model_dir, tmp_path / "mine").path


def test_no_text_of_the_gate_is_calibrated_on(model_dir: Path) -> None:
    queries, documents = sample.texts()
    assert len({*queries, *documents}) == len(queries) + len(documents) == 56
    assert not {*queries, *documents} & {*samples.sentences(), *samples.EDGES}
    model = artifact.read(model_dir)
    built_in = sample.built_in(model)
    calibration = Reference.read(model_dir / REFERENCE).ids
    assert sample.apart(calibration, built_in) is calibration
    rows = set(sample.rows(built_in.ids))
    assert not rows & set(sample.rows(calibration))
    # nor where the user asks for it
    both = ragged([*calibration, *built_in.ids], np.int32)
    kept = sample.apart(both, built_in)
    assert not rows & set(sample.rows(kept))
    assert len(kept) == len(calibration)
    with pytest.raises(InputError, match="all 56 texts to calibrate with are also texts of the"):
        build.run(model_dir, "cpu:int8", built_in.ids)


def test_the_sample_is_small_enough_for_a_large_model(data: Path) -> None:
    tokenizer = Tokenizer.from_file(data / "tokenizer" / "tokenizer.json")
    queries, documents = sample.texts()
    assert len(tokenizer([*queries, *documents], 512).ids.values) < 1500


@needs_int8
def test_a_certificate_says_all_of_it(built_dir: Path) -> None:
    for spec in ("openvino:bf16", "openvino:int8", "cpu:int8"):
        certificate = artifact.read(built_dir).manifest.builds[spec].certificate
        assert certificate is not None
        assert (certificate.engine, certificate.against) == (spec, "cpu:fp32")
        assert certificate.ok
        assert not certificate.failures
        assert certificate.texts.name == "built in"
        figures = certificate.figures
        assert set(figures) == {"dense", "sparse", "colbert", "dense+sparse", "all"}
        for head in ("dense", "colbert"):
            of_head = figures[head]
            assert of_head["cosine_min"] <= of_head["cosine_p1"] <= of_head["cosine_p5"] <= 1
        for of_head in figures.values():
            assert 0.5 < of_head["top10_overlap"] <= 1
            assert 0.5 < of_head["rank_correlation"] <= 1
        assert {"weight_error_max", "keys_differ", "top10_equal"} <= set(figures["sparse"])
        assert Certificate.read(json.loads(json.dumps(dataclasses.asdict(certificate)))) == (
            certificate
        )
    assert artifact.read(built_dir).manifest.builds["openvino:fp32"].certificate is None


def test_float32_agrees_with_itself(model_dir: Path) -> None:
    made = artifact.read(model_dir)
    expected = gate.baseline(made, sample.built_in(made), None, NO_BARS)
    found = gate.compare(expected.found, expected.found, expected.sample, tolerances.EXACT)
    assert {of["top10_overlap"] for of in found.values()} == {1.0}
    assert [of["rank_correlation"] for of in found.values()] == pytest.approx([1] * 5)


@pytest.fixture(scope="module")
def loud_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one feed-forward that drowns the rest, and words that int8 loses nothing of."""
    folder = tmp_path_factory.mktemp("loud")
    checkpoint = make(folder / "checkpoint", TINY, seed=4)
    state = load_file(checkpoint / "model.safetensors")
    state["encoder.layer.0.intermediate.dense.weight"] *= 20
    levels, steps = quantized(state[WORDS].numpy().T)
    state[WORDS] = torch.from_numpy((levels * steps).T.astype(np.float32).copy())
    save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return export.run(str(checkpoint), folder / "model", export.Recipe(max_length=512)).path


def test_recovery_raises_few_layers_and_reports_the_cost(loud_dir: Path, tmp_path: Path) -> None:
    spec = "cpu:int8"
    mine = copied(loud_dir, tmp_path / "mine").path
    limit = halfway(mine, spec, tmp_path)
    done = run("build", mine, "--engine", spec, "--tolerance", f"dense_cosine={limit}")
    assert done.exit_code == 0, done.output
    assert "raised to higher precision" in done.stdout
    assert "tokens a second" in done.stdout
    entry = artifact.read(mine).manifest.builds[spec]
    assert entry.certificate is not None
    assert entry.certificate.ok
    assert entry.certificate.tolerances.dense_cosine == limit
    report = entry.recipe["recovery"]
    assert 1 <= len(report["raised"]) <= 4
    assert next(iter(report["raised"].values())).startswith("layer 0 feed-forward")
    assert list(report["raised"]) == list(entry.recipe["kept"])
    assert report["raised"] == {site: harm.layer(site) for site in report["raised"]}
    assert any("dense cosine_min" in failure for failure in report["failed"])
    before, after = report["before"]["figures"], entry.certificate.figures
    assert before["dense"]["cosine_min"] < limit <= after["dense"]["cosine_min"]
    assert min(report["tokens_per_second"].values()) > 0
    assert set(report["tokens_per_second"]) == {"float32", "before", "after"}
    assert 0 < report["bytes"]["before"] != report["bytes"]["after"] > 0
    assert not list(mine.glob(".build-*"))
    artifact.check(artifact.read(mine))
    assert str(len(report["raised"])) in run("inspect", mine).stdout
    # the engine that is found later is the one that was certified
    again = run("verify", mine, "--engine", spec, "--json")
    assert again.exit_code == 0, again.output
    found = Certificate.read(json.loads(again.stdout)["certificate"])
    assert found == entry.certificate


def halfway(model: Path, spec: str, folder: Path) -> float:
    """Return a cosine halfway, as a loss, between int8 alone and all of it raised."""
    choice, limits = parity.usable(spec), tolerances.of("int8")
    trials = trial.Trials(artifact.read(model), choice, limits, Terms(), folder, NO_BARS)
    trials.prepare(None)
    losses = []
    for kept in ((), tuple(trials.harm())):
        certificate = trials.attempt_with(kept).certificate
        assert certificate is not None
        losses.append(1 - certificate.figures["dense"]["cosine_min"])
    assert losses[1] < losses[0] / 2
    return float(1 - np.sqrt(losses[0] * losses[1]))


@needs_int8
def test_a_hopeless_tolerance(mine: Path) -> None:
    before = sorted(file.name for file in mine.iterdir())
    options = ("--engine", "cpu:int8", "--tolerance", "dense_cosine=1.1")
    done = run("build", mine, *options)
    assert done.exit_code == ParityError.exit_code == 4
    for part in (
        "the cpu:int8 engine differs from float32: dense cosine_min is",
        "expected at least 1.1; so it is with all 10 layers in higher precision",
        "most of the harm to dense: ",
    ):
        assert part in done.stderr
    assert "colbert" not in done.stderr
    assert "quality gate: out of tolerance" in done.stdout
    assert sorted(file.name for file in mine.iterdir()) == before
    at_once = run("build", mine, *options, "--no-recover", "--json")
    assert at_once.exit_code == 4
    error = json.loads(at_once.stderr)["error"]
    assert "leave out --no-recover to raise layers until it passes" in error["message"]
    assert "most of the harm to dense: " in error["message"]
    found = json.loads(at_once.stdout)
    assert found["certificate"]["ok"] is False
    assert found["certificate"]["figures"]["dense"]["cosine_min"] < 1


def test_the_layers_of_bf16(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = Terms({"colbert_cosine": 1.1})
    with pytest.raises(ParityError, match=r"colbert cosine_min .*harm to colbert: .*layer \d "):
        build.run(mine, "openvino:bf16", terms=terms)

    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir")

    monkeypatch.setattr(trial, "import_module", absent)
    with pytest.raises(ParityError, match=r"which layers do it: pip install 'm3rt\[build\]'"):
        build.run(mine, "openvino:bf16", terms=terms)


@needs_int8
def test_verify_names_the_layers(built_dir: Path) -> None:
    options = ("--engine", "cpu:int8", "--tolerance", "rank_correlation=2")
    done = run("verify", built_dir, *options)
    assert done.exit_code == 4
    for head in ("dense", "sparse", "colbert"):
        assert f"{head} rank_correlation is" in done.stderr
        assert f"most of the harm to {head}: " in done.stderr


@needs_int8
def test_a_manifest_without_certificates(built_dir: Path, tmp_path: Path) -> None:
    old = copied(built_dir, tmp_path / "old").path
    data = json.loads((old / artifact.MANIFEST).read_bytes())
    for entry in data["builds"].values():
        del entry["certificate"]
    (old / artifact.MANIFEST).write_text(json.dumps(data))
    assert artifact.read(old).manifest.builds["cpu:int8"].certificate is None
    assert m3rt.load(old, "cpu:int8").encode(["a"]).dense is not None
    assert "cpu:int8" in run("inspect", old).stdout
    done = run("verify", old, "--engine", "cpu:int8", "--json")
    assert json.loads(done.stdout)["certificate"]["ok"] is True
    data["builds"]["cpu:int8"]["certificate"] = {"engine": "cpu:int8"}
    (old / artifact.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.read(old)


def test_texts_of_ones_own(mine: Path, tmp_path: Path) -> None:
    texts = tmp_path / "mine.txt"
    texts.write_text("\n".join(f"A text about number {i}." for i in range(25)), "utf-8")
    options = ("--engine", "cpu:int8", "--json")
    done = run("build", mine, *options, "--gate-texts", texts)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["certificate"]
    assert (found["texts"]["name"], found["texts"]["queries"]) == ("mine.txt", 25)
    assert found["texts"]["documents"] == 25
    both = run("build", mine, *options, "--force", "--gate-texts", texts, "--calibration", texts)
    assert both.exit_code == InputError.exit_code
    assert "all 25 texts to calibrate with are also texts of the quality gate" in both.stderr
    texts.write_text("too few\n")
    few = run("build", mine, *options, "--force", "--gate-texts", texts)
    assert "mine.txt holds 1 texts, expected at least 20" in few.stderr
    many = ragged([np.zeros(sample.MOST // 20 + 1, np.int32)] * 20, np.int32)
    with pytest.raises(InputError, match="tokens, expected at most 16384"):
        sample.own("mine.txt", many)


def test_a_query_is_not_its_own_document() -> None:
    ids = ragged([np.array([0, i, 2], np.int32) for i in range(5, 30)], np.int32)
    texts = sample.own("own", ids)
    scores = np.eye(25, dtype=np.float32)
    for (left, right), query in zip(
        gate.rankings(scores, scores, texts), texts.queries, strict=True
    ):
        assert len(left) == 24
        assert not left.any()
        assert not right.any(), query


def test_retrieval_on_ones_own_set(mine: Path, tmp_path: Path) -> None:
    folder = known_items(tmp_path / "set")
    options = ("--engine", "cpu:int8", "--dataset", folder, "--dataset-loss", "30%", "--json")
    done = run("build", mine, *options)
    assert done.exit_code == 0, done.output
    found = Certificate.read(json.loads(done.stdout)["certificate"])
    assert found.dataset == "set"
    assert found.tolerances.ndcg_loss == 0.3
    assert set(found.retrieval) == {"dense", "sparse", "colbert", "dense+sparse", "all"}
    for figures in found.retrieval.values():
        assert 0 < figures["ndcg10"] <= 1
        assert figures["ndcg10_loss"] == pytest.approx(
            1 - figures["ndcg10"] / figures["ndcg10_float32"]
        )
    verified = run("verify", mine, "--engine", "cpu:int8", "--dataset", folder, "--json")
    assert json.loads(verified.stdout)["certificate"]["retrieval"] == found.retrieval
    table = run("verify", mine, "--engine", "cpu:int8", "--dataset", folder).stdout
    assert "retrieval: set" in table


def test_retrieval_that_is_lost_fails(built_dir: Path, tmp_path: Path) -> None:
    made = artifact.read(built_dir)
    dataset = datasets.read(known_items(tmp_path / "set"))
    expected = gate.baseline(made, sample.built_in(made), dataset, NO_BARS)
    better = {mode: 2 * value for mode, value in expected.ndcg.items()}
    model = api.start(made, "cpu:int8")
    limits = tolerances.of("int8")
    certificate = gate.certify(model, expected, limits, NO_BARS)
    assert gate.measured(certificate, model, no_dataset(expected), NO_BARS) is certificate
    found = gate.measured(certificate, model, dataclasses.replace(expected, ndcg=better), NO_BARS)
    assert certificate.ok
    assert not found.ok
    assert {failure.head for failure in found.failures} == set(better)
    assert "dense ndcg10_loss is" in str(found.failures[0])
    assert harm.heads_of(["all"]) == ("dense", "sparse", "colbert")


def no_dataset(expected: Baseline) -> Baseline:
    return dataclasses.replace(expected, dataset=None)


def test_losses_of_nothing() -> None:
    assert gate.loss(0, 0) == 0
    assert gate.loss(0, 0.5) == -0.5
    assert gate.loss(0.5, 0.25) == 0.5


def test_options_that_do_not_fit(mine: Path, tmp_path: Path) -> None:
    def refused(*options: object) -> str:
        done = run("build", mine, "--engine", "cpu:int8", *options)
        assert done.exit_code in (InputError.exit_code, 2), done.output
        return str(done.stderr)

    assert "there are dense_cosine, colbert_cosine" in refused("--tolerance", "cosine=1")
    assert "expected a number" in refused("--tolerance", "dense_cosine=high")
    assert "--dataset-loss is for --dataset" in refused("--dataset-loss", "1%")
    assert "neither NAME=VALUE nor a file" in refused("--tolerance", tmp_path / "none.json")
    assert not artifact.read(mine).manifest.builds


def test_layers_have_names() -> None:
    assert harm.layer(SITE) == "layer 0 feed-forward out"
    assert harm.layer("encoder.layer.11.attention.self.query.weight") == "layer 11 attention in"
    assert harm.layer(WORDS) == "word embeddings"
    assert harm.layer("something.else") == "something.else"
