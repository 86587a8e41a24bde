"""Searching a whole collection: against brute force, in any chunks, ties and all."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.checkpoint import train_tokenizer
from m3rt import protocol, score, search
from m3rt.errors import InputError
from m3rt.layouts import Layout
from m3rt.protocol import MIXTURES, MODES, Protocol
from m3rt.ranking import Best, Ranking
from m3rt.rows import Texts
from m3rt.runtime import M3
from m3rt.search import Search
from m3rt.types import Embeddings, Floats, Heads, Sparse, ragged
from tests import fake

VOCABULARY = 12


def eighths(rng: np.random.Generator, *shape: int) -> Floats:
    """Multiples of 1/8: their products and sums are exact, so scores tie where they should."""
    found: Floats = (rng.integers(-8, 9, shape) / 8).astype(np.float32)
    return found


def embeddings(rng: np.random.Generator, n: int) -> Embeddings:
    chosen = [np.flatnonzero(rng.random(VOCABULARY) < 0.3) for _ in range(n)]
    ids = [one.astype(np.int32) for one in chosen]
    weights = [(rng.integers(1, 9, len(one)) / 8).astype(np.float32) for one in chosen]
    # as many rows as a power of two: their mean is exact, too
    colbert = [eighths(rng, int(rng.choice([1, 2, 4])), 3) for _ in range(n)]
    return Embeddings(
        dense=eighths(rng, n, 3),
        sparse=Sparse(ragged(ids, np.int32), ragged(weights, np.float32)),
        colbert=colbert,
        n_tokens=np.ones(n, np.int64),
        truncated=np.zeros(n, np.bool_),
    )


def sorted_by(scores: Floats, kept: int) -> tuple[list[int], list[float]]:
    """The definition: by score, then by place in the collection."""
    places = [j for j in range(len(scores)) if scores[j] > -np.inf]
    places.sort(key=lambda j: (-scores[j], j))
    return places[:kept], [float(scores[j]) for j in places[:kept]]


def brute_force(
    queries: Embeddings, documents: Embeddings, how: Protocol, banned: np.ndarray
) -> dict[str, list[tuple[list[int], list[float]]]]:
    """Score everything, and sort."""
    assert queries.dense is not None
    assert documents.dense is not None
    assert queries.sparse is not None
    assert documents.sparse is not None
    assert queries.colbert is not None
    assert documents.colbert is not None
    found: dict[str, list[tuple[list[int], list[float]]]] = {mode: [] for mode in MODES}
    for i in range(len(queries)):
        dense = documents.dense @ queries.dense[i]
        words = queries.sparse[i]
        sparse = np.array(
            [
                sum(w * words.get(k, 0) for k, w in documents.sparse[j].items())
                for j in range(len(documents))
            ],
            np.float32,
        )
        maxsim = np.array(
            [
                (queries.colbert[i] @ rows.T).max(axis=1).sum() / len(queries.colbert[i])
                for rows in documents.colbert
            ],
            np.float32,
        )
        both = how.mixture.both.mean({"dense": dense, "sparse": sparse})
        every = how.mixture.all.mean({"dense": dense, "sparse": sparse, "colbert": maxsim})
        out = np.float32(-np.inf)
        dense, both = (np.where(banned[i], out, scores) for scores in (dense, both))
        sparse = np.where(banned[i] | (sparse <= 0), out, sparse)
        for mode, scores in (("dense", dense), ("sparse", sparse), ("dense+sparse", both)):
            found[mode].append(sorted_by(scores, how.hits))
        candidates = sorted_by(dense, how.depth)[0]
        for mode, scores in (("colbert", maxsim), ("all", every)):
            kept = np.full(len(scores), out)
            kept[candidates] = scores[candidates]
            found[mode].append(sorted_by(kept, how.depth))
    return found


def searched(
    queries: Embeddings, documents: Embeddings, how: Protocol, cuts: list[int], banned: np.ndarray
) -> dict[str, Ranking]:
    found = Search(queries, how, len(documents))
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(documents)]):
        rows = np.arange(begin, end)
        found.add(documents.take(rows), begin, banned[:, begin:end])
    return found.rankings()


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.integers(0, 30), max_size=6),
    st.sampled_from(sorted(MIXTURES)),
)
def test_equals_brute_force_in_any_chunks(
    seed: int, n: int, m: int, depth: int, hits: int, cuts: list[int], mixture: str
) -> None:
    rng = np.random.default_rng(seed)
    queries, documents = embeddings(rng, n), embeddings(rng, m)
    banned = rng.random((n, m)) < 0.1
    how = Protocol(MODES, MIXTURES[mixture], depth, hits)
    expected = brute_force(queries, documents, how, banned)
    found = searched(queries, documents, how, [min(cut, m) for cut in cuts], banned)
    assert list(found) == list(MODES)
    for mode, ranking in found.items():
        for i, (places, scores) in enumerate(expected[mode]):
            there = ranking.found[i]
            assert ranking.documents[i][there].tolist() == places, mode
            np.testing.assert_allclose(ranking.scores[i][there], scores, rtol=1e-6, atol=1e-6)
            assert (ranking.documents[i][~there] == -1).all()
            assert np.isneginf(ranking.scores[i][~there]).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 10))
def test_the_best_of_blocks_are_the_best_of_all(seed: int, m: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = eighths(rng, 3, m)
    best, begin = Best(3, k, ("twice",)), 0
    while begin < m:
        block = scores[:, begin : begin + int(rng.integers(1, 8))]
        entering = best.enter(block)
        best.add(block, begin, {"twice": np.where(entering, 2 * block, np.nan)})
        begin += block.shape[1]
    for i in range(3):
        places, values = sorted_by(scores[i], k)
        assert best.documents[i][: len(places)].tolist() == places
        # what was told of a document on its way in is still told of it
        assert best.further["twice"][i][: len(places)].tolist() == [2 * v for v in values]


def test_only_what_enters_is_scored_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, documents = embeddings(rng, 2), embeddings(rng, 40)
    dense = np.linspace(1, 0, 40, dtype=np.float32)[:, None] * [1, 0, 0]  # the best come first
    documents = Embeddings(
        dense.astype(np.float32), None, documents.colbert, documents.n_tokens, documents.truncated
    )
    queries = Embeddings(
        np.array([[1, 0, 0]] * 2, np.float32),
        None,
        queries.colbert,
        queries.n_tokens,
        queries.truncated,
    )
    pairs = []
    whole = score.maxsim

    def counted(left: list[Floats], right: list[Floats]) -> Floats:
        pairs.append(len(left) * len(right))
        return whole(left, right)

    monkeypatch.setattr(score, "maxsim", counted)
    how = Protocol(("colbert",), depth=5)
    searched(queries, documents, how, [10, 20, 30], np.zeros((2, 40), np.bool_))
    assert sum(pairs) == 2 * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    fake.write(folder)
    return fake.load(folder)


def some_texts(n: int) -> Texts:
    rng = np.random.default_rng(n)
    words = ["water", "Paris", "model", "a", "Spree", "巴黎", "small", "boils", ""]
    lines = [" ".join(rng.choice(words, rng.integers(0, 60))) for _ in range(n)]
    return Texts(tuple(f"t{i}" for i in range(n)), tuple(lines))


@pytest.mark.parametrize(("tokens", "texts"), [(1, 1), (100, 7), (2**16, 3)])
def test_chunks_do_not_matter(
    model: M3, monkeypatch: pytest.MonkeyPatch, tokens: int, texts: int
) -> None:
    documents, queries = some_texts(50), some_texts(6)
    whole = search.run(model, documents, queries, Protocol(depth=20))
    monkeypatch.setattr(search, "TOKENS", tokens)
    monkeypatch.setattr(search, "TEXTS", texts)
    told: list[int] = []
    parts = search.run(model, documents, queries, Protocol(depth=20), progress=told.append)
    assert sum(told) == 56
    assert parts.documents == whole.documents
    assert parts.queries == whole.queries
    assert whole.documents.truncated > 0  # 64 tokens is the longest
    for mode in MODES:
        one, other = whole.rankings[mode], parts.rankings[mode]
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-6)
        # equal texts have equal scores and keep their order; unequal ones may tie to rounding
        assert (one.documents == other.documents).mean() > 0.9


def test_a_query_does_not_find_itself(model: M3) -> None:
    texts = some_texts(10)
    for same, own in ((False, 10), (True, 0)):
        found = search.run(model, texts, texts, Protocol(), exclude_same_id=same)
        for mode in ("dense", "dense+sparse", "colbert", "all"):
            at = found.rankings[mode].documents == np.arange(10)[:, None]
            assert at.sum() == own, mode


def test_modes_follow_the_heads(model: M3, tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    for heads, modes in (
        (Heads.DENSE, ("dense",)),
        (Heads.SPARSE, ("sparse",)),
        (Heads.DENSE | Heads.SPARSE, ("dense", "sparse", "dense+sparse")),
        (Heads.DENSE | Heads.COLBERT, ("dense", "colbert")),
        (Heads.SPARSE | Heads.COLBERT, ("sparse",)),
        (Heads.ALL, MODES),
    ):
        fake.write(tmp_path, heads)
        some = fake.load(tmp_path)
        assert Protocol().fitted(some).modes == modes
        assert tuple(search.run(some, some_texts(4), some_texts(2), Protocol()).rankings) == modes
    fake.write(tmp_path, Heads.COLBERT)
    with pytest.raises(InputError, match="nothing to search with"):
        Protocol().fitted(fake.load(tmp_path))
    fake.write(tmp_path, Heads.DENSE)
    with pytest.raises(InputError, match="this model has no sparse head"):
        Protocol(("dense+sparse",)).fitted(fake.load(tmp_path))


def test_modes_that_were_asked_for_alone(model: M3) -> None:
    found = search.run(model, some_texts(9), some_texts(2), Protocol(("all", "sparse")))
    assert list(found.rankings) == ["sparse", "all"]
    assert Protocol(("dense",)).heads == Heads.DENSE
    assert Protocol(("all",)).heads == Heads.ALL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modes": ("dense", "lexical")}, "no mode 'lexical'; there are dense"),
        ({"modes": ()}, "no mode was asked for"),
        ({"depth": 0}, "depth is 0"),
        ({"hits": -1}, "hits is -1"),
    ],
)
def test_protocols_that_are_none(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Protocol(**fields)  # type: ignore[arg-type]


def test_lengths_fit_the_model(model: M3) -> None:
    how = protocol.of(Layout.MLDR)
    assert (how.max_length, how.query_max_length) == (8192, 512)
    assert (how.fitted(model).max_length, how.fitted(model).query_max_length) == (64, 64)
    assert protocol.of(Layout.BEIR).fitted(model).max_length == 64
    assert Protocol(max_length=9).fitted(model).max_length == 9


def test_memory_does_not_grow_with_the_collection() -> None:
    def peak(chunks: int, size: int = 200) -> int:
        rng = np.random.default_rng(0)
        found = Search(wide(rng, 4), Protocol(MODES, depth=20, hits=50), chunks * size)
        tracemalloc.start()
        for i in range(chunks):
            found.add(wide(rng, size), i * size)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(24) < 1.3 * peak(3)


def wide(rng: np.random.Generator, n: int) -> Embeddings:
    found = embeddings(rng, n)
    rows = rng.standard_normal((n, 20, 64), dtype=np.float32)
    return replace(found, colbert=list(rows))
