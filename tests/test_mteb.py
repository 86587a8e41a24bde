"""The wrapper for MTEB, run by the mteb that is installed, on a task made here of local text."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.checkpoint import train_tokenizer
from m3rt import evaluation
from m3rt.datasets import Dataset
from m3rt.errors import InputError, UnavailableError
from m3rt.mteb_model import MTEBEncoder
from m3rt.rows import Texts
from m3rt.runtime import M3
from tests import fake

WORDS = ("water", "model", "Paris", "Spree", "small", "boils", "capital")
PAIRS = tuple(itertools.permutations(WORDS, 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    fake.write(folder)
    return fake.load(folder)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Titles go before texts; a query shares one word of the document, and more with others."""
    documents = Texts(
        tuple(f"d{i}" for i in range(len(PAIRS))), tuple(f"{a} {b} {b}" for a, b in PAIRS)
    )
    queries = Texts(tuple(f"q{i}" for i in range(len(PAIRS))), tuple(f"{a} {b}" for a, b in PAIRS))
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(len(PAIRS))}
    return Dataset("local", documents, queries, qrels)


def task(dataset: Dataset) -> Any:
    """Make a retrieval task of MTEB of a data set, without its loader, which would download."""
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):  # type: ignore[misc]  # mteb is not typed here
        metadata = TaskMetadata(
            name="M3rtLocal",
            dataset={"path": "local/local", "revision": "0"},
            description="A few words.",
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            titles, bodies = zip(*(x.split(" ", 1) for x in dataset.documents.texts), strict=True)
            corpus = {"id": list(dataset.documents.ids), "title": titles, "text": bodies}
            queries = {"id": list(dataset.queries.ids), "text": list(dataset.queries.texts)}
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": datasets.Dataset.from_dict(corpus),
                        "queries": datasets.Dataset.from_dict(queries),
                        "relevant_docs": {q: dict(grades) for q, grades in dataset.qrels.items()},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return Local()


@pytest.mark.slow
def test_mteb_finds_what_we_find(
    model: M3, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'm3rt[mteb]'")
    from mteb.models import EncoderProtocol

    encoder = MTEBEncoder(model)
    assert isinstance(encoder, EncoderProtocol)
    found = mteb.evaluate(
        encoder, task(dataset), cache=None, co2_tracker=False, show_progress_bar=False
    )
    (scores,) = found.task_results[0].scores["test"]
    ours = evaluation.evaluate(model, dataset)["dense"].means
    # mteb rounds to five digits, and breaks ties in its own way
    assert 0.1 < ours["nDCG@10"] < 1
    assert scores["ndcg_at_10"] == pytest.approx(ours["nDCG@10"], abs=0.02)
    assert scores["recall_at_100"] == ours["Recall@100"] == 1
    assert scores["mrr_at_1000"] == pytest.approx(ours["MRR"], abs=0.02)
    assert found.model_name == "fake/m3"
    meta = encoder.mteb_model_meta
    assert (meta.revision, meta.embed_dim, meta.max_tokens) == ("0123abc", fake.WIDTH, 64)
    assert meta.experiment_kwargs == {"runtime": "m3rt", "engine": "fake:fp32"}


def test_vectors_are_the_models(model: M3) -> None:
    encoder = MTEBEncoder(model, max_length=9, query_max_length=4)
    texts = ["water", "", "a small model " * 9, "巴黎"]
    batches = [{"text": texts[:3]}, {"text": texts[3:], "title": ["x"]}]
    for prompt_type, kept in (("document", 9), (None, 9), ("query", 4)):
        found = encoder.encode(batches, prompt_type=prompt_type, batch_size=2)
        expected = model.encode(texts, max_length=kept).dense
        assert expected is not None
        np.testing.assert_array_equal(found, expected)
    assert encoder.encode([]).shape == (0, fake.WIDTH)
    similarity = encoder.similarity(found, found[:2])
    assert similarity.shape == (4, 2)
    np.testing.assert_allclose(encoder.similarity_pairwise(found, found), 1, atol=1e-6)
    assert encoder.similarity(found[0], found).shape == (1, 4)


def test_what_is_no_text_is_refused(model: M3) -> None:
    with pytest.raises(InputError, match="a batch has image, expected text"):
        MTEBEncoder(model).encode([{"image": [None]}])
    with pytest.raises(InputError, match="max_length is 1"):
        MTEBEncoder(model, query_max_length=1)


def test_without_mteb_the_cure_is_named(model: M3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "mteb" or name.startswith("mteb.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UnavailableError, match=r"pip install 'm3rt\[mteb\]'"):
        _ = MTEBEncoder(model).mteb_model_meta
