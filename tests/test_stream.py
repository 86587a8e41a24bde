"""Tokens made while others run: equal results, whatever the windows, and nothing left running."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3rt import M3, Embeddings, EngineError, InputError, Reranker
from m3rt.engines.fallback import patched
from m3rt.flag import BGEM3FlagModel
from m3rt.halves import BLOCK, widen
from m3rt.heads import check_finite, lexical
from m3rt.tokenizer import CHUNK, Tokenizer, pieces, together
from m3rt.types import Batch, Engine, Floats, Heads, Limits, Raw, Tokens, offsets, ragged
from m3rt.windows import gathered, prefetched
from tests import fake
from tests.contract import TEXTS

PATIENCE = 60.0  # seconds: for what takes none, on a machine that does much else
MANY = [*TEXTS, *(f"text {i} of the windows " * (i % 5 + 1) for i in range(40)), "", "巴黎"]


class Ahead:
    """An engine whose limits are other ones."""

    def __init__(self, engine: Engine, **changes: Any) -> None:
        self.name = engine.name
        self.limits = dataclasses.replace(engine.limits, **changes)
        self.engine = engine
        self.threads: set[str] = set()
        self.rows: list[list[int]] = []

    def run(self, batch: Batch, heads: Heads) -> Raw:
        self.threads.add(threading.current_thread().name)
        self.rows.append(batch.rows.tolist())
        return self.engine.run(batch, heads)


class Failing(fake.FakeEngine):
    """Fails at the batch that has a text of the request."""

    def __init__(self, limits: Limits, text: int, error: BaseException) -> None:
        super().__init__(limits)
        self.text, self.error = text, error

    def run(self, batch: Batch, heads: Heads) -> Raw:
        if self.text in batch.rows:
            raise self.error
        return super().run(batch, heads)


class Scoring(fake.FakeEngine):
    """Scores pairs by their own ids."""

    def run(self, batch: Batch, heads: Heads) -> Raw:
        assert heads == Heads.SCORE
        scores = [(ids * np.arange(1, len(ids) + 1)).sum() % 4093 for ids in batch.tokens]
        return Raw(scores=np.array(scores, np.float32))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every thread of ours has ended when its call has."""
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("m3rt")]
    assert not left


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fake")
    (made / "tokenizer.json").symlink_to(checkpoint / "tokenizer.json")
    fake.write(made)
    return made


def faked(folder: Path, engine: Engine | None = None, **changes: int) -> M3:
    model = fake.load(folder)
    return M3(model.manifest, model.tokenizer, engine or Ahead(model.engine, **changes))


def same(left: Embeddings, right: Embeddings) -> None:
    """Compare bit for bit."""
    assert left.dense is not None
    assert right.dense is not None
    assert left.sparse is not None
    assert right.sparse is not None
    assert left.colbert is not None
    assert right.colbert is not None
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (left.dense, right.dense),
        (left.sparse.ids.values, right.sparse.ids.values),
        (left.sparse.ids.starts, right.sparse.ids.starts),
        (left.sparse.weights.values, right.sparse.weights.values),
        (left.n_tokens, right.n_tokens),
        (left.truncated, right.truncated),
        *zip(left.colbert, right.colbert, strict=True),
    ]
    for mine, other in pairs:
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(MANY), max_size=30),
    st.integers(1, 400),
    st.integers(1, 3),
    st.integers(1, 200),
)
def test_any_window_gives_the_same(
    folder: Path, texts: list[str], ahead: int, parallel: int, batch_tokens: int
) -> None:
    whole = faked(folder).encode(texts, batch_tokens=batch_tokens)
    told: list[int] = []
    some = faked(folder, ahead=ahead, parallel=parallel)
    same(some.encode(texts, batch_tokens=batch_tokens, progress=told.append), whole)
    assert sum(told) == len(texts)


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("ahead", [1, 30, 200, 2000])
def test_any_window_gives_the_same_bits_of_the_network(
    model: M3, ahead: int, parallel: int
) -> None:
    engine = Ahead(model.engine, ahead=ahead, parallel=parallel)
    same(M3(model.manifest, model.tokenizer, engine).encode(MANY), model.encode(MANY))
    assert sorted(row for rows in engine.rows for row in rows) == [*range(len(MANY))]


@pytest.mark.parametrize("ahead", [1, 60, 400])
def test_any_window_gives_pairs_the_same_scores(folder: Path, ahead: int) -> None:
    pairs = [(MANY[i % 7], text) for i, text in enumerate(MANY)]
    model = fake.load(folder)
    alone = Reranker(model.manifest, model.tokenizer, Scoring())
    engine = Ahead(Scoring(), ahead=ahead, parallel=2)
    some = Reranker(model.manifest, model.tokenizer, engine)
    told: list[int] = []
    mine, whole = some.score(pairs, progress=told.append), alone.score(pairs)
    assert len(set(whole.scores.tolist())) > 20
    assert sorted(row for rows in engine.rows for row in rows) == [*range(len(pairs))]
    np.testing.assert_array_equal(mine.scores, whole.scores)
    np.testing.assert_array_equal(mine.n_tokens, whole.n_tokens)
    np.testing.assert_array_equal(mine.truncated, whole.truncated)
    assert sum(told) == len(pairs)
    with pytest.raises(InputError, match="the document of pair 40 holds a lone surrogate"):
        some.score([*pairs[:40], ("a", "\ud800")])


@pytest.mark.parametrize("ahead", [1, 100])
def test_flagembeddings_interface_gives_the_same(folder: Path, ahead: int) -> None:
    every: dict[str, Any] = {
        "return_dense": True,
        "return_sparse": True,
        "return_colbert_vecs": True,
    }
    whole = BGEM3FlagModel(faked(folder), **every, passage_max_length=64).encode(MANY)
    some = BGEM3FlagModel(faked(folder, ahead=ahead), **every, passage_max_length=64).encode(MANY)
    np.testing.assert_array_equal(some["dense_vecs"], whole["dense_vecs"])
    assert some["lexical_weights"] == whole["lexical_weights"]
    for mine, other in zip(some["colbert_vecs"], whole["colbert_vecs"], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_cls_tokens_inside_texts_are_cut_as_without_windows(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json", cls_interval=8)
    whole = tokenizer(MANY, 50)
    some = together(list(tokenizer.chunks(MANY, 50, 100)))
    np.testing.assert_array_equal(some.ids.values, whole.ids.values)
    np.testing.assert_array_equal(some.ids.starts, whole.ids.starts)
    np.testing.assert_array_equal(some.truncated, whole.truncated)
    assert whole.truncated.any()


def test_the_engine_runs_while_later_texts_are_tokenised(folder: Path) -> None:
    began, ran = threading.Event(), threading.Event()
    waited: list[bool] = []

    class Watched(fake.FakeEngine):
        def run(self, batch: Batch, heads: Heads) -> Raw:
            began.set()
            waited.append(ran.wait(PATIENCE))  # for the tokenizer, which waits for this
            return super().run(batch, heads)

    class Later(Tokenizer):
        def chunks(self, texts: Sequence[str], *limits: int) -> Iterator[Tokens]:
            for i, chunk in enumerate(super().chunks(texts, *limits)):
                if i == 1:
                    assert began.wait(PATIENCE)
                    ran.set()
                yield chunk

    engine = Watched(Limits(32, 64, pads=False, ahead=1))
    tokenizer = Later.from_file(folder / "tokenizer.json")
    same(
        M3(faked(folder).manifest, tokenizer, engine).encode(MANY),
        faked(folder).encode(MANY),
    )
    assert all(waited)


def test_no_more_than_two_windows_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    found = prefetched(items(), 2)
    for i, item in enumerate(found):
        assert item == i
        until = time.monotonic() + PATIENCE
        while len(made) < min(10, i + 3) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == min(10, i + 3)  # this one, and two


def test_windows_have_the_tokens_asked_for(folder: Path) -> None:
    tokenizer = faked(folder).tokenizer
    for least in (1, 50, 300):
        found = list(gathered(tokenizer.chunks(MANY, 64, least), least))
        sizes = [len(window.ids.values) for window in found]
        assert all(size >= least for size in sizes[:-1])
        assert max(sizes) <= 2 * least + 64
        assert sum(len(window.ids) for window in found) == len(MANY)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_pieces_are_whole_and_as_long_as_they_may_be(lengths: list[int], most: int) -> None:
    found = list(pieces(lengths, most))
    assert [i for some in found for i in range(some.start, some.stop)] == [*range(len(lengths))]
    sizes = [sum(lengths[some]) + 2 * len(lengths[some]) for some in found]
    assert all(
        size <= most or some.stop - some.start == 1 for size, some in zip(sizes, found, strict=True)
    )
    for size, after in pairwise(zip(sizes, found, strict=True)):
        assert size[0] + lengths[after[1].start] + 2 > most


def test_pieces_have_no_more_texts_than_a_chunk() -> None:
    found = list(pieces([0] * (2 * CHUNK + 1)))
    assert [some.stop - some.start for some in found] == [CHUNK, CHUNK, 1]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("error", [EngineError("broken"), KeyboardInterrupt()])
def test_an_engine_that_fails_ends_both(folder: Path, parallel: int, error: BaseException) -> None:
    limits = Limits(32, 64, pads=False, ahead=50, parallel=parallel)
    with pytest.raises(type(error)) as caught:
        faked(folder, Failing(limits, 20, error)).encode(MANY * 20)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("m3rt")]  # although this holds frames
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_interrupt_after_a_step_ends_both(folder: Path, error: BaseException) -> None:
    def told(_: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        faked(folder, ahead=50, parallel=2).encode(MANY * 20, progress=told)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("m3rt")]
    assert caught.value is error


def test_a_text_that_is_not_unicode_is_named_by_its_place(folder: Path) -> None:
    texts = [*MANY, "\udc80", *MANY]
    with pytest.raises(InputError, match=f"text {len(MANY)} holds a lone surrogate, U\\+DC80"):
        faked(folder, ahead=40, parallel=2).encode(texts)


def test_what_can_be_refused_at_once_is_refused_before_anything_runs(folder: Path) -> None:
    model = faked(folder, ahead=40)
    wrong: list[object] = [*MANY, 7]
    with pytest.raises(InputError, match=f"text {len(MANY)} is int"):
        model.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="longer than 64 tokens"):
        model.encode([*MANY, "water " * 700], on_long="error")
    with pytest.raises(InputError, match="max_length"):
        model.encode(MANY, max_length=65)
    with pytest.raises(InputError, match="batch_tokens"):
        model.encode(MANY, batch_tokens=0)
    assert isinstance(model.engine, Ahead)
    assert not model.engine.rows


def test_steps_closed_early_end_all(folder: Path) -> None:
    model = faked(folder, ahead=40, parallel=2)
    steps = model.run(model.windows(MANY * 20))
    next(steps)
    assert any(thread.name.startswith("m3rt-tokens") for thread in threading.enumerate())
    steps.close()
    assert isinstance(model.engine, Ahead)
    assert len(model.engine.rows) < 20
    unused = model.windows(MANY)
    unused.close()


def test_one_batch_runs_in_the_caller_s_thread(folder: Path) -> None:
    model = faked(folder, ahead=10**6, parallel=3)
    model.encode(["a query"])
    assert isinstance(model.engine, Ahead)
    assert model.engine.threads == {threading.current_thread().name}
    model.encode(MANY)
    assert any(name.startswith("m3rt") for name in model.engine.threads)


# ------------------------------------------------------------------------------ halves


@pytest.mark.parametrize("exact", [True, False])
def test_every_half_becomes_the_float_that_numpy_makes(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3rt.halves.keeps_small", lambda: exact)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    out = np.empty(halves.shape, np.float32)
    assert not widen(halves, out)
    expected = halves.astype(np.float32)
    np.testing.assert_array_equal(out.view(np.int32), expected.view(np.int32))
    usual = np.flatnonzero(np.isfinite(halves).all(axis=1))
    assert len(usual) == 62 * 16  # all but one exponent of each sign
    some = np.empty((len(usual), 64), np.float32)
    assert widen(halves, some, usual)
    np.testing.assert_array_equal(some.view(np.int32), expected[usual].view(np.int32))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("width", [1, 48, 1024, BLOCK + 1])
def test_one_bad_half_is_found_wherever_it_is(bad: float, width: int) -> None:
    rows = 3 * BLOCK // width + 2
    halves = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float16)
    out = np.empty(halves.shape, np.float32)
    assert widen(halves, out)
    np.testing.assert_array_equal(out, halves.astype(np.float32))
    for place in (0, halves.size // 2, halves.size - 1):
        one = halves.copy()
        one.reshape(-1)[place] = bad
        assert not widen(one, out)
        np.testing.assert_array_equal(out, one.astype(np.float32))
    order = np.random.default_rng(1).permutation(rows)[: rows // 2]
    taken = np.empty((len(order), width), np.float32)
    assert widen(halves, taken, order)
    np.testing.assert_array_equal(taken, halves[order].astype(np.float32))
    nothing = np.empty((0, width), np.float32)
    assert widen(halves[:0], nothing)


def test_vectors_that_the_engine_checked_are_not_summed_again() -> None:
    tokens = ragged([np.array([0, 5, 2], np.int32)], np.int32)
    batch = Batch(tokens, np.array([0]), 3)
    bad = np.full((3, 2), np.nan, np.float32)
    with pytest.raises(EngineError, match="colbert"):
        check_finite(batch, Raw(colbert=[bad]))
    check_finite(batch, Raw(colbert=[bad], finite=Heads.COLBERT))
    again = patched(
        Raw(colbert=[bad], finite=Heads.COLBERT), batch, Raw(colbert=[bad]), batch, np.array([0])
    )
    assert again.finite == Heads(0)  # of a replacement, nothing is known


# ------------------------------------------------------------------------------ lexical weights


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), max_size=8))
def test_lexical_weights_are_the_greatest_of_each_id(texts: list[list[int]]) -> None:
    ids = ragged([np.array(text, np.int32) for text in texts], np.int32)
    values = np.random.default_rng(len(ids.values)).integers(-1, 3, len(ids.values))
    weights: Floats = (values / 4).astype(np.float32)
    found = lexical(ids, weights, (0, 2))
    starts = offsets(ids.lengths)
    for i, text in enumerate(texts):
        expected: dict[int, float] = {}
        for token, weight in zip(text, weights[starts[i] : starts[i + 1]].tolist(), strict=True):
            if weight > 0 and token not in (0, 2):
                expected[token] = max(weight, expected.get(token, 0))
        assert found[i] == expected
        assert list(found[i]) == sorted(expected)
