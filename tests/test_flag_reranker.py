"""FlagReranker against FlagEmbedding's own, on a small random checkpoint."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import FlagEmbedding
import numpy as np
import pytest

from m3rt import FlagReranker, InputError, Reranker
from tests.reranker_oracle import Oracle

PAIRS: list[tuple[str, str]] = [
    ("Which river flows through Paris?", "The Seine flows through Paris."),
    ("巴黎", "   \n"),
    ("", ""),
    ("a query", "a passage " * 500),
    ("a query " * 500, "a passage " * 500),
]
APART = 2e-5


@pytest.fixture(scope="module")
def ours(reranker: Reranker) -> FlagReranker:
    return FlagReranker(reranker)


@pytest.fixture(scope="module")
def theirs(reranker_checkpoint: Path) -> Any:
    return Oracle(reranker_checkpoint).flag


OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalize": True},
    {"max_length": 1024},
    {"max_length": 32},
    {"query_max_length": 5, "batch_size": 2},
    {"query_max_length": 100, "max_length": 200, "normalize": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_compute_score(options: dict[str, Any], ours: FlagReranker, theirs: Any) -> None:
    for pairs in (PAIRS, PAIRS[0], list(PAIRS[0]), PAIRS[:1], [list(pair) for pair in PAIRS]):
        found = ours.compute_score(pairs, **options)
        expected = theirs.compute_score(pairs, **options)
        assert type(found) is type(expected) is list
        assert [type(score) for score in found] == [type(score) for score in expected]
        np.testing.assert_allclose(found, expected, rtol=0, atol=APART)


def test_options_of_the_constructor(reranker: Reranker, reranker_checkpoint: Path) -> None:
    options: dict[str, Any] = {
        "query_instruction_for_rerank": "Find",
        "query_instruction_format": "{}:\\n{}",
        "passage_instruction_for_rerank": "Passage",
        "passage_instruction_format": "{} - {}",
        "query_max_length": 9,
        "max_length": 40,
        "normalize": True,
    }
    for kept in (options, {k: v for k, v in options.items() if not k.startswith("passage")}):
        expected = Oracle(reranker_checkpoint, **kept).score(PAIRS)
        np.testing.assert_allclose(
            FlagReranker(reranker, **kept).compute_score(PAIRS), expected, rtol=0, atol=APART
        )


def test_the_signature_is_the_references() -> None:
    for name in ("__init__", "compute_score"):
        source = {
            "__init__": FlagEmbedding.FlagReranker.__init__,
            "compute_score": FlagEmbedding.FlagReranker.compute_score_single_gpu,
        }[name]
        theirs = inspect.signature(source).parameters
        mine = inspect.signature(getattr(FlagReranker, name)).parameters
        shared = [key for key in theirs if key not in ("kwargs", "device")]
        assert [key for key in mine if key not in ("kwargs", "engine")] == shared
        for key in shared:
            assert mine[key].default == theirs[key].default, key


def test_what_is_refused(reranker: Reranker, ours: FlagReranker) -> None:
    with pytest.raises(InputError, match=r"devices is 'cuda:0', expected None or 'cpu'"):
        FlagReranker(reranker, devices="cuda:0")
    with pytest.raises(InputError, match="max_length is 2048, expected 6 to 1024"):
        ours.compute_score(PAIRS, max_length=2048)
    pairs: Any
    for pairs, message in (
        ("a text", "pair 0 is str"),
        (["a", "b", "c"], "pair 0 has 3 items"),
        ([("a", None)], "the document of pair 0 is NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            ours.compute_score(pairs)
    assert ours.compute_score([]) == []


def test_a_directory_and_an_engine(reranker_dir: Path, ours: FlagReranker) -> None:
    opened = FlagReranker(reranker_dir, use_fp16=True, engine="cpu", cache_dir="unused")
    assert opened.compute_score(PAIRS) == ours.compute_score(PAIRS)
