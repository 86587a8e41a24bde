"""Scores against the plain formulas, and the formulas of FlagEmbedding."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt import Embeddings, InputError, Sparse, score
from m3rt.score import Scores, Vectors, Weights
from m3rt.types import Floats, ragged

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def units(rows: int, width: int, seed: int = 0) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((rows, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def sparse(texts: Sequence[dict[int, float]]) -> Sparse:
    ordered = [sorted(text.items()) for text in texts]
    return Sparse(
        ragged([np.array([i for i, _ in text], np.int32) for text in ordered], np.int32),
        ragged([np.array([w for _, w in text], np.float32) for text in ordered], np.float32),
    )


def embeddings(
    n: int, seed: int = 0, heads: str = "dense sparse colbert", width: int = 8
) -> Embeddings:
    random = np.random.default_rng(seed)
    texts = [
        {int(i): float(random.random()) + 0.01 for i in random.integers(0, 20, size)}
        for size in random.integers(0, 12, n)
    ]
    colbert = [units(int(rows), width, seed) for rows in random.integers(1, 9, n)]
    return Embeddings(
        dense=units(n, width, seed) if "dense" in heads else None,
        sparse=sparse(texts) if "sparse" in heads else None,
        colbert=colbert if "colbert" in heads else None,
        n_tokens=np.full(n, 5, np.int64),
        truncated=np.zeros(n, np.bool_),
    )


def plain_lexical(query: dict[int, float], document: dict[int, float]) -> float:
    # compute_lexical_matching_score
    return sum(weight * document[i] for i, weight in query.items() if i in document)


def plain_maxsim(query: Vectors, document: Vectors) -> float:
    # colbert_score
    similarity = np.einsum("in,jn->ij", query.astype(np.float64), document.astype(np.float64))
    return float(similarity.max(-1).sum() / len(query))


lexicons = st.lists(
    st.dictionaries(st.integers(0, 12) | st.just(250_001), st.floats(2**-10, 4), max_size=8),
    max_size=7,
)
lengths = st.lists(st.integers(1, 9), max_size=7)


@given(lexicons, lexicons, st.sampled_from([1, 64, score.BLOCK]))
def test_lexical_is_the_sum_over_shared_ids(
    queries: list[dict[int, float]], documents: list[dict[int, float]], block: int
) -> None:
    expected = [[plain_lexical(q, d) for d in documents] for q in queries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "BLOCK", block)
        found = score.lexical(sparse(queries), sparse(documents))
    assert found.dtype == np.float32
    assert found.shape == (len(queries), len(documents))
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), rtol=1e-5)


@given(lexicons)
def test_lexical_pairs_are_the_diagonal(texts: list[dict[int, float]]) -> None:
    queries, documents = sparse(texts), sparse(texts[::-1])
    found = score.lexical_pairs(queries, documents)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.diag(score.lexical(queries, documents)), rtol=1e-6)


@given(lengths, lengths, st.sampled_from([1, 7, 40, score.BLOCK]), st.integers(0, 99))
def test_maxsim_is_the_mean_of_the_best(
    left: list[int], right: list[int], block: int, seed: int
) -> None:
    queries = [units(rows, 5, seed + i) for i, rows in enumerate(left)]
    documents = [units(rows, 5, seed - i + 1000) for i, rows in enumerate(right)]
    expected = [[plain_maxsim(q, d) for d in documents] for q in queries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "BLOCK", block)
        found = score.maxsim(queries, documents)
    assert found.dtype == np.float32
    assert found.shape == (len(left), len(right))
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), rtol=1e-5, atol=1e-6)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6))
def test_maxsim_pairs_are_the_diagonal(shapes: list[tuple[int, int]]) -> None:
    queries = [units(rows, 5, i) for i, (rows, _) in enumerate(shapes)]
    documents = [units(rows, 5, i + 50) for i, (_, rows) in enumerate(shapes)]
    found = score.maxsim_pairs(queries, documents)
    expected = [plain_maxsim(*both) for both in zip(queries, documents, strict=True)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 6), st.integers(0, 6))
def test_dense_is_the_dot_product(n: int, m: int) -> None:
    queries, documents = units(n, 5), units(m, 5, 1)
    found = score.dense(queries, documents)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, queries @ documents.T, rtol=1e-6)
    k = min(n, m)
    pairs = score.dense_pairs(queries[:k], documents[:k])
    np.testing.assert_allclose(pairs, np.diag(found[:k, :k]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_scored_in_float32(dtype: type[np.floating]) -> None:
    queries, documents = units(3, 64).astype(dtype), units(3, 64, 1).astype(dtype)
    for found in (
        score.dense(queries, documents),
        score.dense_pairs(queries, documents),
        score.maxsim([queries], [documents]),
    ):
        assert found.dtype == np.float32
    expected = queries.astype(np.float32) @ documents.astype(np.float32).T
    np.testing.assert_allclose(score.dense(queries, documents), expected, rtol=1e-6)
    best = score.maxsim([queries], [documents])[0, 0]
    assert best == pytest.approx(plain_maxsim(queries, documents), abs=1e-6)


def test_negative_similarities_stay_negative() -> None:
    # in FlagEmbedding's compute_score the zero vectors of padding would win
    query = np.array([[1, 0]], np.float32)
    documents = [-query, np.repeat(-query, 9, axis=0)]
    assert score.maxsim([query], documents).tolist() == [[-1, -1]]


def peak(queries: list[Floats], documents: list[Floats]) -> int:
    tracemalloc.start()
    score.maxsim(queries, documents)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_maxsim_memory_is_bounded_with_many_texts() -> None:
    # 64 x 64 x 256 x 256 similarities: 1.07 GB
    assert peak([units(256, 4)] * 64, [units(256, 4)] * 64) < 6 * score.BLOCK


def test_maxsim_memory_is_bounded_with_long_texts() -> None:
    # 2 x 2 x 8191 x 8191 similarities: 1.07 GB
    assert peak([units(8191, 4)] * 2, [units(8191, 4)] * 2) < 6 * score.BLOCK


def test_lexical_memory_is_bounded() -> None:
    texts = sparse([dict.fromkeys(range(250), 0.5)] * 600)  # 90 million products
    tracemalloc.start()
    found = score.lexical(texts, texts)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found == 62.5).all()
    assert most < 8 * score.BLOCK


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_matrix_scores_every_pair(n: int, m: int) -> None:
    queries, documents = embeddings(n, 1), embeddings(m, 2)
    found = score.matrix(queries, documents, Weights(0.4, 0.2, 0.4))
    for i in range(n):
        for j in range(m):
            dense_q, sparse_q, colbert_q = text(queries, i)
            dense_d, sparse_d, colbert_d = text(documents, j)
            dense = float(dense_q @ dense_d)
            lexical = plain_lexical(sparse_q, sparse_d)
            maxsim = plain_maxsim(colbert_q, colbert_d)
            assert at(found, (i, j)) == pytest.approx(
                (dense, lexical, maxsim, 0.4 * dense + 0.2 * lexical + 0.4 * maxsim), abs=1e-5
            )
    assert found.combined.shape == (n, m)
    assert found.combined.dtype == np.float32


@pytest.mark.parametrize("n", [0, 1, 5])
def test_pairs_are_the_diagonal_of_the_matrix(n: int) -> None:
    queries, documents = embeddings(n, 1), embeddings(n, 2)
    every = score.matrix(queries, documents)
    pairs = score.pairs(queries, documents)
    assert pairs.combined.shape == (n,)
    for i in range(n):
        assert at(pairs, (i,)) == pytest.approx(at(every, (i, i)), abs=1e-6)


def text(texts: Embeddings, i: int) -> tuple[Floats, dict[int, float], Floats]:
    assert texts.dense is not None
    assert texts.sparse is not None
    assert texts.colbert is not None
    return texts.dense[i], texts.sparse[i], texts.colbert[i]


def at(scores: Scores, place: tuple[int, ...]) -> tuple[float, ...]:
    assert scores.dense is not None
    assert scores.sparse is not None
    assert scores.colbert is not None
    heads = (scores.dense, scores.sparse, scores.colbert, scores.combined)
    return tuple(float(values[place]) for values in heads)


def test_heads_of_one_side_do_not_count() -> None:
    found = score.matrix(embeddings(2, 1, "dense"), embeddings(3, 2))
    assert found.sparse is None
    assert found.colbert is None
    assert found.dense is not None
    np.testing.assert_array_equal(found.combined, found.dense)

    both = score.pairs(embeddings(3, 1), embeddings(3, 2, "dense sparse"), Weights(3, 1, 50))
    assert both.colbert is None
    assert both.dense is not None
    assert both.sparse is not None
    np.testing.assert_allclose(both.combined, (3 * both.dense + both.sparse) / 4, rtol=1e-6)


def test_texts_without_lexical_weights_score_zero() -> None:
    queries, documents = sparse([{}, {5: 1.0}]), sparse([{5: 2.0}, {}, {6: 1.0}])
    assert score.lexical(queries, documents).tolist() == [[0, 0, 0], [2, 0, 0]]
    assert score.lexical_pairs(queries, sparse([{}, {}])).tolist() == [0, 0]


@pytest.mark.parametrize(
    "weights", [(0, 0, 0), (math.nan, 1, 1), (math.inf, 1, 1), (math.inf, -math.inf, 1), (1, -2, 0)]
)
def test_weights_sum_to_more_than_zero(weights: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="more than 0"):
        Weights(*weights)


def test_weights_count_on_a_common_head() -> None:
    with pytest.raises(InputError, match="weights of dense sum to 0"):
        score.pairs(embeddings(1, heads="dense"), embeddings(1), Weights(0, 1, 1))


def test_no_common_head() -> None:
    with pytest.raises(InputError, match="no head in common"):
        score.matrix(embeddings(1, heads="dense"), embeddings(1, heads="sparse"))


@pytest.mark.parametrize("head", ["dense", "sparse", "colbert"])
def test_pairs_of_different_counts(head: str) -> None:
    with pytest.raises(InputError, match="2 queries and 3 documents"):
        score.pairs(embeddings(2, heads=head), embeddings(3, heads=head))


@pytest.mark.parametrize("head", ["dense", "colbert"])
def test_different_widths(head: str) -> None:
    queries, documents = embeddings(2, heads=head), embeddings(2, heads=head, width=6)
    for form in (score.matrix, score.pairs):
        with pytest.raises(InputError, match=r"\[6, 8\] wide"):
            form(queries, documents)


def test_one_vector_is_no_matrix() -> None:
    with pytest.raises(InputError, match=r"\(8,\), expected \(rows, width\)"):
        score.dense(units(1, 8)[0], units(2, 8))
    with pytest.raises(InputError, match=r"\(8,\), expected \(rows, width\)"):
        score.maxsim([units(1, 8)], [units(1, 8)[0]])


def test_texts_without_rows() -> None:
    full, empty = units(2, 4), units(0, 4)
    for form in (score.maxsim, score.maxsim_pairs):
        with pytest.raises(InputError, match="document 1 has no ColBERT vectors"):
            form([full, full], [full, empty])
        with pytest.raises(InputError, match="query 0 has no ColBERT vectors"):
            form([empty, full], [full, full])
