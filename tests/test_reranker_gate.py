"""The quality gate on a reranker: its certificate, its tolerances, and raising its layers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import Progress
from typer.testing import CliRunner

import m3rt
from m3rt import agreement, api, artifact, build, cli, gate, harm, parity, sample, tolerances, trial
from m3rt.certificate import Certificate
from m3rt.errors import InputError, ParityError
from m3rt.export import sensitivity
from m3rt.gate import Terms
from m3rt.mteb_model import MTEBEncoder
from m3rt.pair_tokenizer import PairTokenizer
from m3rt.sample import PairSample
from m3rt.tokenizer import Tokenizer
from m3rt.types import ragged
from tests.conftest import copied, needs_int8
from tests.sets import known_items

NO_BARS = Progress(disable=True)
QUERIES, DOCUMENTS = 8, 20


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("spec", ["cpu:int8", "openvino:int8", "openvino:bf16"])
def test_a_reranker_has_a_certificate(spec: str, reranker_dir: Path) -> None:
    manifest = artifact.read(reranker_dir).manifest
    found = manifest.builds[spec].certificate
    assert found is not None
    assert found.ok
    assert (found.engine, found.against) == (spec, "cpu:fp32")
    assert (found.texts.name, found.texts.queries) == ("built in", QUERIES)
    assert found.texts.documents == QUERIES * DOCUMENTS
    assert found.figures.keys() == {"score"}
    figures = found.figures["score"]
    assert 0 < figures["error_mean"] <= figures["error_p95"] <= figures["error_max"]
    assert found.tolerances.top10_overlap <= figures["top10_overlap"] <= 1
    assert found.tolerances.rank_correlation <= figures["rank_correlation"] <= 1
    assert manifest.builds["openvino:fp32"].certificate is None
    if spec != "openvino:bf16":
        assert manifest.builds[spec].recipe["worst"].keys() == {"score"}


@needs_int8
def test_verify_repeats_it(reranker_dir: Path) -> None:
    certificate = artifact.read(reranker_dir).manifest.builds["cpu:int8"].certificate
    done = run("verify", reranker_dir, "--engine", "cpu:int8", "--json")
    assert done.exit_code == 0, done.output
    assert Certificate.read(json.loads(done.stdout)["certificate"]) == certificate
    failed = run(
        *("verify", reranker_dir, "--engine", "cpu:int8", "--tolerance", "rank_correlation=2")
    )
    assert failed.exit_code == ParityError.exit_code
    assert "score rank_correlation is" in failed.stderr
    assert "most of the harm to score: " in failed.stderr
    assert "top 10 kept" in run("inspect", reranker_dir).stdout


def test_pairs_are_few_and_of_the_sample(reranker_dir: Path, reranker: m3rt.Reranker) -> None:
    queries, documents = sample.texts()
    found = sample.built_in(artifact.read(reranker_dir))
    assert isinstance(found, PairSample)
    assert np.diff(found.starts).tolist() == [DOCUMENTS] * QUERIES
    first = reranker.tokenize([(queries[2], documents[4])]).ids[0]
    np.testing.assert_array_equal(found.ids[DOCUMENTS + 2], first)
    calibrated = parity.Reference.read(reranker_dir / parity.REFERENCE).ids
    assert sample.apart(calibrated, found) is calibrated


def test_the_pairs_are_few_enough_for_a_large_model(data: Path) -> None:
    tokenizer = PairTokenizer(Tokenizer.from_file(data / "tokenizer" / "tokenizer.json"))
    queries, documents = (kind[:: sample.EVERY] for kind in sample.texts())
    pairs = list(itertools.product(queries, documents))
    assert len(tokenizer(pairs, 512, 384).ids.values) < 7000


def test_float32_agrees_with_itself(reranker_dir: Path) -> None:
    made = artifact.read(reranker_dir)
    expected = gate.baseline(made, sample.built_in(made), None, NO_BARS)
    model = api.start_reranker(made, "cpu-padded:fp32")
    found = gate.certify(model, expected, tolerances.of("fp32"), NO_BARS)
    assert found.ok, found.failures
    assert found.figures["score"]["error_max"] < 1e-4


def test_recovery_raises_layers(reranker_dir: Path, tmp_path: Path) -> None:
    mine = copied(reranker_dir, tmp_path / "mine").path
    limit = halfway(mine, tmp_path)
    terms = Terms({"score_error": limit, "rank_correlation": 0, "top10_overlap": 0})
    alone = Terms(terms.tolerances, recover=False)
    with pytest.raises(ParityError, match=r"score error_max is .*most of the harm to score: "):
        build.run(mine, "cpu:int8", force=True, terms=alone)
    _, made = build.run(mine, "cpu:int8", force=True, terms=terms)
    entry = made.manifest.builds["cpu:int8"]
    report = entry.recipe["recovery"]
    assert report["raised"]
    assert report["failed"][0].startswith("score error_max is")
    assert entry.certificate is not None
    before, after = report["before"]["figures"]["score"], entry.certificate.figures["score"]
    assert after["error_max"] <= limit < before["error_max"]
    assert min(report["tokens_per_second"].values()) > 0


def halfway(model: Path, folder: Path) -> float:
    """Return an error halfway between int8 alone and all of it raised."""
    choice, limits = parity.usable("cpu:int8"), tolerances.of("int8")
    trials = trial.Trials(artifact.read(model), choice, limits, Terms(), folder, NO_BARS)
    trials.prepare(None)
    errors = []
    for kept in ((), tuple(trials.harm())):
        certificate = trials.attempt_with(kept).certificate
        assert certificate is not None
        errors.append(certificate.figures["score"]["error_max"])
    assert errors[1] < errors[0] / 4
    return float(np.sqrt(errors[0] * errors[1]))


@needs_int8
def test_pairs_of_ones_own(reranker_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    documents = [f"A text about number {i}." for i in range(12)]
    lines = [{"query": f"number {i}?", "documents": documents[: 12 - i]} for i in range(3)]
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    options = ("--engine", "cpu:int8", "--json", "--gate-texts", file)
    done = run("verify", reranker_dir, *options)
    certificate = json.loads(done.stdout)["certificate"]
    assert (certificate["texts"]["name"], certificate["texts"]["queries"]) == ("mine.jsonl", 3)
    assert certificate["texts"]["documents"] == 12 + 11 + 10
    file.write_text(json.dumps(lines[0]), "utf-8")
    few = run("verify", reranker_dir, *options)
    assert few.exit_code == InputError.exit_code
    assert "mine.jsonl holds 12 pairs, expected at least 20" in few.stderr
    ids = ragged([np.zeros(5, np.int32)] * 20, np.int32)
    with pytest.raises(InputError, match="no query with two documents"):
        sample.own_pairs("mine.jsonl", ids, [1] * 20)


def test_what_a_reranker_cannot(
    reranker_dir: Path, reranker: m3rt.Reranker, tmp_path: Path
) -> None:
    folder = known_items(tmp_path / "set")
    for command in ("build", "verify"):
        options = ("--engine", "cpu:int8", "--dataset", folder)
        done = run(command, reranker_dir, *options, *(["--force"] if command == "build" else []))
        assert done.exit_code == InputError.exit_code, done.output
        assert "is a reranker, and retrieves nothing on set: leave out --dataset" in done.stderr
    done = run("eval", reranker_dir, folder)
    assert done.exit_code == InputError.exit_code
    assert "is a reranker: it scores pairs, and has no embeddings. Use m3rt rerank" in done.stderr
    with pytest.raises(InputError, match=r"is a reranker.*m3rt rerank"):
        MTEBEncoder(reranker_dir, engine="cpu")
    with pytest.raises(InputError, match=r"is a reranker.*m3rt rerank"):
        MTEBEncoder(reranker)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=30))
def test_what_counts_as_found(raw: list[float]) -> None:
    scores = np.array(raw, np.float32)
    found = gate.relevant(scores)
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    part = probability / probability.max()
    assert (found >= 0).all()
    assert (found[part > 0.0101] > 0).all()
    assert (found[part < 0.0099] == 0).all()
    order = np.argsort(scores, kind="stable")
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(order))


def test_the_order_of_unrelated_documents_is_no_matter() -> None:
    expected = np.array([6, 2, -1, -10.9, -11, -11.1, -11.2], np.float32)
    found = np.array([5.5, 2.3, -1, -11.2, -11.1, -11, -10.9], np.float32)
    (pair,) = [(gate.relevant(expected), gate.relevant(found))]
    assert gate.alike([pair]) == {"top10_overlap": 1, "rank_correlation": pytest.approx(1)}
    assert agreement.correlation(expected, found) < 0.9


def test_the_harm_to_scores() -> None:
    scores = np.array([-11, -10, -9], np.float32)
    assert sensitivity.unrest(scores, scores) == 0
    assert sensitivity.unrest(scores, scores + 1) == pytest.approx(1.5)  # variance: 2/3
    assert harm.heads_of(["score"]) == ("score",)
    assert harm.heads_of(["all"]) == ("dense", "sparse", "colbert")
