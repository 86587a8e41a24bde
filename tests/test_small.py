"""The small trained M3: the recipe, the checkpoint, and what it shows of engines."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import m3rt
from benchmarks import demo, quality
from benchmarks.small import CHECKPOINT, card, hard, network, outliers, texts, train
from m3rt import artifact, build, score
from m3rt.export import Recipe, run
from m3rt.export.samples import sentences
from tests.conftest import copied

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "quality.json"
MOST = 8_000_000  # bytes of weights


@pytest.fixture(scope="module")
def result() -> Any:
    return json.loads(RESULT.read_text("utf-8"))


@pytest.fixture(scope="module")
def small(small_dir: Path) -> m3rt.M3:
    return m3rt.load(small_dir, "cpu")


def test_the_checkpoint_is_small_and_in_half_precision() -> None:
    files = [CHECKPOINT / name for name in ("sparse_linear.pt", "colbert_linear.pt")]
    weights = CHECKPOINT / "model.safetensors"
    assert sum(file.stat().st_size for file in [weights, *files]) <= MOST
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16}


def test_the_demo_finds_what_answers(small: m3rt.M3) -> None:
    scores = score.matrix(small.encode(demo.QUERIES), small.encode(demo.PASSAGES), demo.WEIGHTS)
    best = [demo.PASSAGES[i] for i in scores.combined.argmax(axis=1)]
    assert best == list(demo.ANSWERS)


def test_the_end_of_a_long_text_is_found(small: m3rt.M3) -> None:
    lines = sentences()
    filler = " ".join(lines * 40)
    needle = "The lighthouse keeper of Marrowstone painted the tower green in 1911."
    low = small.tokenizer.lengths([filler])[0]
    share = int(len(filler) * 7600 / low)
    without = filler[:share]
    found = small.encode([without, f"{without} {needle}"])
    assert found.n_tokens.min() > 7000
    assert not found.truncated.any()
    query = small.encode(["lighthouse keeper of Marrowstone"])
    scores = score.matrix(query, found, demo.WEIGHTS)
    for head in (scores.sparse, scores.colbert):
        assert head is not None
        assert head[0, 1] > head[0, 0]


def test_the_sum_of_the_scores_teaches_every_head() -> None:
    """Section 3.3 of the paper, term by term, on scores that are given."""
    torch.manual_seed(0)
    own = [torch.randn(3, 3) for _ in range(3)]
    weights = (1.0, 0.3, 1.0)
    whole = torch.stack([w * s for w, s in zip(weights, own, strict=True)]).sum(0)
    truth = torch.arange(3)

    def entropy(scores: Any, target: Any) -> Any:
        return -(target * torch.log_softmax(scores / 0.1, -1)).sum(-1).mean()

    exact = torch.nn.functional.one_hot(truth, 3).float()
    teacher = torch.softmax(whole / 0.1, -1)
    shares = network.LOSSES
    learnt = sum(w * entropy(s, exact) for w, s in zip(shares, own, strict=True))
    taught = sum(w * entropy(s, teacher) for w, s in zip(shares, own, strict=True))
    expected = ((learnt + entropy(whole, exact)) / 4 + taught / 3) / 2
    found, _ = network.loss_of(own, 0.1)
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_the_recipe_runs(tmp_path: Path) -> None:
    """On a little text of our own in the places of the real one."""
    lines = [line for line in sentences() if len(line.split()) > 3]
    (tmp_path / "text").mkdir()
    (tmp_path / "ir" / "scifact").mkdir(parents=True)
    with tarfile.open(tmp_path / texts.TATOEBA, "w:gz") as archive:
        for side in ("fra", "eng"):
            data = "\n".join(lines).encode()
            member = tarfile.TarInfo(f"tatoeba/v1/tatoeba.fra-eng.{side}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    papers = [
        {"_id": str(i), "title": lines[i % len(lines)], "text": ". ".join(lines[:4])}
        for i in range(40)
    ]
    (tmp_path / texts.SCIFACT).write_text("\n".join(map(json.dumps, papers)), "utf-8")
    out = tmp_path / "out"
    train.train(tmp_path, out, steps=4, seed=0, vocab=600)
    made = run(str(out), tmp_path / "model", Recipe(max_length=256))
    assert made.manifest.heads == ("dense", "sparse", "colbert")
    model = m3rt.load(made.path, "cpu")
    dense = model.encode(["a text"]).dense
    assert dense is not None
    assert np.isfinite(dense).all()


@pytest.fixture(scope="module")
def hard_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    return run(str(hard.harden(CHECKPOINT, folder / "checkpoint")), folder / "model").path


def test_the_hard_case_is_the_same_function(small: m3rt.M3, hard_dir: Path) -> None:
    lines = sentences()
    expected, found = small.encode(lines), m3rt.load(hard_dir, "cpu").encode(lines)
    assert expected.dense is not None
    assert found.dense is not None
    assert np.einsum("ij,ij->i", expected.dense, found.dense).min() > 0.9999


def test_the_hard_case_has_channels_that_reach_far(small_dir: Path, hard_dir: Path) -> None:
    tame, reach = (
        max(one.over_median for one in outliers.measure(folder) if "attention.output" in one.site)
        for folder in (small_dir, hard_dir)
    )
    assert reach > 17 > tame  # as far as in the trained encoder of the model card


@pytest.mark.parametrize("spec", ["cpu:int8", "tensorrt-rtx:int8"])
def test_int8_of_the_hard_case_passes_its_gate(spec: str, hard_dir: Path) -> None:
    build.run(hard_dir, spec)
    entry = artifact.read(hard_dir).manifest.builds[spec]
    assert entry.certificate is not None
    assert entry.certificate.ok
    assert entry.recipe["smoothed"]


def test_int8_passes_its_gate(small_dir: Path, tmp_path: Path) -> None:
    mine = copied(small_dir, tmp_path / "mine").path
    build.run(mine, "cpu:int8")
    entry = artifact.read(mine).manifest.builds["cpu:int8"]
    assert entry.certificate is not None
    assert entry.certificate.ok


def test_the_result_is_of_this_checkpoint(result: Any) -> None:
    for name, sha256 in result["checkpoint"].items():
        assert artifact.describe(CHECKPOINT / name).sha256 == sha256


MISSED = {
    "openvino:bf16": {("xquad", "dense"), ("scifact", "dense"), ("scifact", "dense+sparse")},
    "tensorrt-rtx:bf16": {("xquad", "dense")},
    "tensorrt-rtx:fp8": {("scifact", "dense")},
}


@pytest.mark.parametrize("spec", [spec for spec in quality.SPECS if spec != "cpu:fp32"])
def test_precision_keeps_retrieval(result: Any, spec: str) -> None:
    """The goals are met but where README says that they are not."""
    goal = result["goals"][spec.partition(":")[2]]
    lost = result["engines"][spec]["loss"]
    over = {(name, mode) for name, of in lost.items() for mode in of if of[mode] > goal}
    assert over <= MISSED.get(spec, set())
    assert max(value for of in lost.values() for value in of.values()) < 0.02


def test_the_hybrid_is_better_than_any_single_mode(result: Any) -> None:
    for engine in result["engines"].values():
        for hybrid, name in (("all", "xquad"), ("dense+sparse", quality.LEXICAL)):
            of = engine["means"]
            single = of[name.partition("-")[0]]
            best = max(single[mode]["nDCG@10"] for mode in ("dense", "sparse", "colbert"))
            assert of[name][hybrid]["nDCG@10"] > best, name


def test_documents_show_the_result(result: Any) -> None:
    table = quality.markdown(result)
    assert table in (ROOT / "README.md").read_text("utf-8")
    assert (CHECKPOINT / "README.md").read_text("utf-8") == card.card()
