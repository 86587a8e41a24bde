"""Rerankers: ids and scores are FlagEmbedding's own, on every engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import m3rt
from benchmarks.checkpoint import Shape, make
from m3rt import EngineError, InputError, artifact, bench, certificate, parity, tolerances
from m3rt.export import calibrate, samples
from m3rt.pair_tokenizer import PairTokenizer
from m3rt.parity import Reference
from m3rt.reranker import best, sigmoid
from m3rt.result import Settings
from m3rt.tokenizer import CHUNK, Tokenizer
from m3rt.types import Batch, Floats, Heads, Limits, Raw
from tests.reranker_oracle import Oracle

LINES = [*samples.sentences(), *samples.EDGES]
LONG = " ".join(samples.sentences())
PAIRS = [
    *pairwise(LINES),
    (LINES[0], LONG * 3),
    (LONG * 3, LINES[0]),
    (LONG * 3, LONG * 3),
    ("", LONG * 3),
    (LONG * 3, ""),
    ("", ""),
    (LINES[0], LINES[0]),
]

# Ids


@pytest.fixture(scope="module")
def oracle(reranker_checkpoint: Path) -> Oracle:
    return Oracle(reranker_checkpoint)


@pytest.fixture(scope="module")
def join(reranker_checkpoint: Path) -> PairTokenizer:
    return PairTokenizer(Tokenizer.from_file(reranker_checkpoint / "tokenizer.json"))


def rows(found: m3rt.types.Tokens) -> list[list[int]]:
    return [row.tolist() for row in found.ids]


# max_length, query_max_length: those where a query always leaves room for the document
LENGTHS = [(1024, None), (512, None), (512, 507), (64, None), (64, 1), (21, None), (7, 2), (6, 1)]


@pytest.mark.parametrize(("longest", "of_query"), LENGTHS)
def test_ids_are_the_references(
    longest: int, of_query: int | None, reranker: m3rt.Reranker, oracle: Oracle
) -> None:
    expected = oracle.tokenize(PAIRS, max_length=longest, query_max_length=of_query)
    found = reranker.tokenize(PAIRS, max_length=longest, query_max_length=of_query)
    assert rows(found) == expected
    assert found.ids.lengths.max() == longest
    whole = oracle.tokenize(PAIRS, max_length=10**6, query_max_length=10**6)
    cut = [len(ids) < len(every) for ids, every in zip(expected, whole, strict=True)]
    assert found.truncated.tolist() == cut


def test_ids_of_the_real_tokenizer(data: Path, tmp_path: Path) -> None:
    shape = Shape(hidden=16, layers=1, heads=2, ffn=16, positions=1026)
    checkpoint = make(tmp_path / "real", shape, data / "tokenizer", reranker=True)
    real = PairTokenizer(Tokenizer.from_file(checkpoint / "tokenizer.json"))
    for longest in (1024, 100, 21):
        expected = Oracle(checkpoint).tokenize(PAIRS, max_length=longest)
        assert rows(real(PAIRS, longest, longest * 3 // 4)) == expected


texts = st.text() | st.lists(st.sampled_from([*LINES, " ", "<s>", "</s></s>", "\n"])).map("".join)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8), st.integers(6, 200), st.data())
def test_ids_of_any_pairs(
    oracle: Oracle,
    join: PairTokenizer,
    pairs: list[tuple[str, str]],
    longest: int,
    data: st.DataObject,
) -> None:
    of_query = data.draw(st.integers(1, longest - 5))
    expected = oracle.tokenize(pairs, max_length=longest, query_max_length=of_query)
    assert rows(join(pairs, longest, of_query)) == expected


def test_a_query_leaves_room_for_one_token(reranker: m3rt.Reranker, oracle: Oracle) -> None:
    found = reranker.tokenize(PAIRS, max_length=64, query_max_length=500)
    expected = oracle.tokenize(PAIRS, max_length=64, query_max_length=500)
    assert found.ids.lengths.max() == 64
    over = [i for i, ids in enumerate(expected) if len(ids) > 64]
    assert over  # the reference lets them grow
    for i, ids in enumerate(expected):
        if i not in over:
            assert found.ids[i].tolist() == ids
    query = PAIRS.index((LONG * 3, LONG * 3))
    assert found.truncated[over].all()
    first, *middle, last = found.ids[query].tolist()
    assert (first, last) == (0, 2)
    assert middle[-3:-1] == [2, 2]  # one token of the document after them
    assert middle[:-3] == expected[query][1:60]


def test_more_texts_than_a_chunk(join: PairTokenizer) -> None:
    pairs = [(str(i % 7), str(i)) for i in range(CHUNK + 5)]
    assert rows(join(pairs, 64, 48)) == [rows(join([pair], 64, 48))[0] for pair in pairs]


def test_a_tokenizer_that_joins_no_pairs(reranker_checkpoint: Path, tmp_path: Path) -> None:
    state = json.loads((reranker_checkpoint / "tokenizer.json").read_text("utf-8"))
    state["post_processor"]["pair"] = state["post_processor"]["pair"][::-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(m3rt.ArtifactError, match=r"the tokenizer makes .* of a pair of texts"):
        PairTokenizer(Tokenizer.from_file(tmp_path / "tokenizer.json"))


# Scores

# largest difference from the checkpoint; between a pair alone and in a batch
ENGINES = {
    "cpu:fp32": (2e-5, 0),
    "cpu-padded:fp32": (2e-5, 1e-5),
    "openvino:fp32": (5e-5, 5e-5),
    "openvino:bf16": (0.5, 0.5),
    "openvino:int8": (2.0, 0.5),
    "cpu:int8": (2.0, 0),
}


@pytest.mark.parametrize("spec", ENGINES)
def test_every_engine_scores_as_the_reference(
    spec: str, reranker_dir: Path, oracle: Oracle
) -> None:
    within, apart = ENGINES[spec]
    model = m3rt.load_reranker(reranker_dir, spec)
    assert model.engine.name == spec
    for longest in (1024, 512, 40):
        expected = np.array(oracle.score(PAIRS, max_length=longest, batch_size=8))
        assert expected.std() > 0.5
        found = model.score(PAIRS, max_length=longest)
        assert found.scores.dtype == np.float32
        np.testing.assert_allclose(found.scores, expected, rtol=0, atol=within)
        assert np.corrcoef(found.scores, expected)[0, 1] > 0.9
    contract(model, apart)


def contract(model: m3rt.Reranker, apart: float) -> None:
    """A pair's score does not depend on its batch, nor on its place."""
    some = [*PAIRS[:20], *PAIRS[-7:]]
    whole = model.score(some).scores
    for i, pair in enumerate(some):
        np.testing.assert_allclose(model.score([pair]).scores, whole[i], rtol=0, atol=apart)
    for other in (model.score(some, batch_tokens=64), model.score(some, batch_tokens=10**6)):
        np.testing.assert_allclose(other.scores, whole, rtol=0, atol=apart)
    backwards = model.score(some[::-1]).scores
    np.testing.assert_allclose(backwards[::-1], whole, rtol=0, atol=apart)


def test_streams_and_threads(reranker: m3rt.Reranker, reranker_dir: Path) -> None:
    expected = reranker.score(PAIRS).scores
    two = m3rt.load_reranker(reranker_dir, "cpu", streams=2)
    np.testing.assert_array_equal(two.score(PAIRS).scores, expected)
    lengths = [40, 64, 512, 1024] * 4
    alone = {n: reranker.score(PAIRS, max_length=n).scores for n in set(lengths)}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: reranker.score(PAIRS, max_length=n).scores, lengths)
        for n, scores in zip(lengths, found, strict=True):
            np.testing.assert_array_equal(scores, alone[n])


def test_bf16_keeps_the_scores_apart(reranker_dir: Path) -> None:
    scores = m3rt.load_reranker(reranker_dir, "openvino:bf16").score(PAIRS[:80]).scores
    bits = scores.view(np.uint32) & 0xFFFF  # of the fraction, those that bf16 does not have
    assert (bits != 0).mean() > 0.9


def test_normalized_scores(reranker: m3rt.Reranker, oracle: Oracle) -> None:
    found = reranker.score(PAIRS, normalize=True, max_length=512).scores
    np.testing.assert_allclose(found, oracle.score(PAIRS, normalize=True), atol=1e-5)
    extremes = np.array([-1000, -100, 0, 100, 1000], np.float32)
    np.testing.assert_allclose(sigmoid(extremes), [0, 3.720076e-44, 0.5, 1, 1], rtol=1e-1)


def test_truncation_is_reported_or_refused(reranker: m3rt.Reranker) -> None:
    pairs = [("a", "b"), ("a", LONG * 3), (LONG * 3, "b")]
    found = reranker.score(pairs)
    assert found.truncated.tolist() == [False, True, True]
    assert found.n_tokens.max() == 1024
    with pytest.raises(InputError, match=r"2 pair\(s\) are longer than 1024 tokens.*: number 1, 2"):
        reranker.score(pairs, on_long="error")
    np.testing.assert_array_equal(
        reranker.score(pairs[:1], on_long="error").scores, found.scores[:1]
    )


def test_nothing(reranker: m3rt.Reranker) -> None:
    found = reranker.score([])
    assert len(found) == 0
    assert found.scores.dtype == np.float32
    assert reranker.rank("a query", []) == []


def test_progress(reranker: m3rt.Reranker) -> None:
    done: list[int] = []
    reranker.score(PAIRS, progress=done.append)
    assert sum(done) == len(PAIRS)
    assert len(done) > 1


def test_rank(reranker: m3rt.Reranker) -> None:
    documents = [*LINES[:9], LONG * 3, LINES[0]]
    expected = reranker.score([(LINES[4], document) for document in documents])
    found = reranker.rank(LINES[4], documents)
    assert sorted(one.index for one in found) == list(range(len(documents)))
    assert [one.score for one in found] == sorted(expected.scores.tolist(), reverse=True)
    for one in found:
        assert one.score == expected.scores[one.index]
        assert one.truncated == (one.index == 9)
    twins = [one.index for one in found if one.index in (0, 10)]
    assert twins == [0, 10]  # equal scores keep their order
    assert reranker.rank(LINES[4], documents, top=3) == found[:3]
    assert reranker.rank(LINES[4], documents, top=99) == found


def test_the_best_come_first() -> None:
    scores = np.array([1, 3, -2, 3], np.float32)
    assert best(scores).tolist() == [1, 3, 0, 2]
    assert best(scores, 2).tolist() == [1, 3]
    with pytest.raises(InputError, match="top is 0, expected at least 1"):
        best(scores, 0)


# What is refused

BAD: dict[str, tuple[Any, str]] = {
    "a text": ("a text", r"expected a list of \(query, document\), found str"),
    "one pair": (("a", "b"), r"pair 0 is str.*for one pair pass \[\(query, document\)\]"),
    "an iterator": (iter([("a", "b")]), "found .*iterator"),
    "three": ([("a", "b"), ("a", "b", "c")], "pair 1 has 3 items"),
    "none": ([None], "pair 0 is NoneType"),
    "a number": ([("a", 3)], "the document of pair 0 is int, expected str"),
    "bytes": ([("a", "b"), (b"a", "b")], "the query of pair 1 is bytes, expected str"),
    "nan": ([("a", float("nan"))], "the document of pair 0 is float"),
    "a surrogate": ([("a", "b"), ("a", "x\ud83d")], r"the document of pair 1 .*U\+D83D.*r 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_pair_is_refused(name: str, reranker: m3rt.Reranker) -> None:
    pairs, message = BAD[name]
    with pytest.raises(InputError, match=message):
        reranker.score(pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 5}, "max_length is 5, expected 6 to 1024"),
        ({"max_length": 1025}, "max_length is 1025, expected 6 to 1024"),
        ({"query_max_length": 0}, "query_max_length is 0, expected at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"on_long": "cut"}, "on_long is 'cut'"),
    ],
)
@pytest.mark.parametrize("pairs", [[], [("a", "b")]])
def test_bad_options(
    pairs: Any, options: dict[str, Any], message: str, reranker: m3rt.Reranker
) -> None:
    with pytest.raises(InputError, match=message):
        reranker.score(pairs, **options)


def test_bad_ranks(reranker: m3rt.Reranker) -> None:
    query: Any = 3
    with pytest.raises(InputError, match="the query is int"):
        reranker.rank(query, ["a"])
    with pytest.raises(InputError, match=r"one str: pass \[text\]"):
        reranker.rank("a", "a document")
    with pytest.raises(InputError, match="top is 0"):
        reranker.rank("a", ["b"], top=0)


class Broken:
    """An engine that gives NaN."""

    name = "broken:fp32"
    limits = Limits(64, 1024, pads=False)

    def run(self, batch: Batch, heads: Heads) -> Raw:
        return Raw(scores=np.full(len(batch.rows), np.nan, np.float32))


def test_nan_is_an_error(reranker: m3rt.Reranker) -> None:
    broken = m3rt.Reranker(reranker.manifest, reranker.tokenizer, Broken())
    with pytest.raises(EngineError, match=r"the score output is NaN or Inf for 1 text\(s\): 0"):
        broken.score([("a", "b")])


def test_embedders_and_rerankers_are_not_mixed_up(model_dir: Path, reranker_dir: Path) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: m3rt.load(reranker_dir, "cpu"), "is a reranker.*m3rt.load_reranker"),
        (lambda: m3rt.BGEM3FlagModel(reranker_dir), "is a reranker.*m3rt.load_reranker"),
        (lambda: m3rt.load_reranker(model_dir, "cpu"), "is an embedder.* or m3rt.load"),
        (lambda: m3rt.FlagReranker(model_dir), "is an embedder.* or m3rt.load"),
        (
            lambda: bench.run(artifact.read(reranker_dir), ["cpu"], ["mixed"], Settings()),
            "is a reranker: m3rt bench measures embedders",
        ),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_an_embedder_has_no_score(model: m3rt.M3) -> None:
    with pytest.raises(InputError, match="this model has no score head, only dense, sparse"):
        model.encode(["a"], Heads.SCORE)


# The network


def test_the_last_layer_computes_first_tokens_alone(reranker_dir: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = artifact.read(reranker_dir).graph("packed")
    session = onnxruntime.InferenceSession(graph, options)
    feed = {"input_ids": np.array([0, 5, 2, 0, 6, 7, 2]), "starts": np.array([0, 3, 7])}
    (scores,) = session.run(["score"], feed | {"want_score": np.array(True)})
    assert scores.shape == (2,)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    computed = [
        next(iter(event["args"]["output_type_shape"][0].values()))[0]
        for event in events
        if event["cat"] == "Node" and event["args"].get("op_name") in ("MatMul", "Gemm")
    ]
    # two layers; of the last one queries, output, feed-forward; and the classifier
    assert sorted(computed) == [2] * 5 + [7] * 8
    (none,) = session.run(["score"], feed | {"want_score": np.array(False)})
    assert none.shape == (0,)


def test_calibration_sees_enough_of_the_last_layer(reranker_dir: Path) -> None:
    made = artifact.read(reranker_dir)
    ids = Reference.read(reranker_dir / parity.REFERENCE).ids.take(np.arange(150))
    seen = calibrate.observe(made.graph("packed"), ids, lambda n: None)
    for observed in seen.values():
        assert len(observed.sample) > 100


def test_figures_of_scores() -> None:
    expected: Floats = np.linspace(-10, 5, 40, dtype=np.float32)
    figures = parity.score_figures(expected, expected + np.float32(0.25), 0.5)
    for name in ("error_max", "error_mean"):
        assert figures[name] == pytest.approx(0.25, abs=1e-5)
    assert figures["correlation"] == pytest.approx(1)
    constant = parity.score_figures(expected, np.zeros_like(expected), 100)
    assert "correlation" not in constant  # what is allowed is more than there is
    limits = tolerances.of("int8")
    for found in (np.zeros_like(expected), -expected, np.full_like(expected, np.nan)):
        scores = parity.score_figures(expected, found, limits.score_error)
        failed = certificate.failures({"score": scores}, limits)
        assert {one.figure for one in failed} == {"error_max", "correlation"}
