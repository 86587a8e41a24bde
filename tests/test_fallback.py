"""Texts that give NaN or Inf on one engine, computed again by another."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import m3rt
from m3rt import Heads, artifact, cli, engines, steps
from m3rt.engines import ort
from m3rt.engines.fallback import Fallback
from m3rt.types import Batch, Bools, Engine, Limits, Raw, Tokens, ragged
from tests import contract
from tests.fake import FakeEngine

# the texts of contract.TEXTS that are ill, among them the empty one and the longest
ILL = (1, 2, 5, 8)


class Sick:
    """An engine that gives NaN or Inf for texts of some lengths."""

    def __init__(
        self, well: Engine, lengths: Collection[int], heads: Heads = Heads.ALL | Heads.SCORE
    ) -> None:
        self.name = "sick:fp16"
        self.limits = well.limits
        self.given: list[tuple[Raw, Raw]] = []  # what was given, and a copy
        self._well = well
        self._lengths = lengths
        self._heads = heads

    def run(self, batch: Batch, heads: Heads) -> Raw:
        raw = self._well.run(batch, heads)
        raw = spoiled(raw, batch, np.isin(batch.tokens.lengths, list(self._lengths)), self._heads)
        self.given.append((raw, copied(raw)))
        return raw


class Shifted(FakeEngine):
    """A well engine whose every value differs from FakeEngine's, and that counts its work."""

    name = "shifted:fp32"

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits)
        self.batches: list[Batch] = []

    def run(self, batch: Batch, heads: Heads) -> Raw:
        self.batches.append(batch)
        raw = super().run(batch, heads)
        return Raw(
            dense=None if raw.dense is None else raw.dense + 1,
            weights=None if raw.weights is None else raw.weights + 1,
            colbert=None if raw.colbert is None else [rows + 1 for rows in raw.colbert],
        )


def spoiled(raw: Raw, batch: Batch, ill: Bools, heads: Heads) -> Raw:
    """Put NaN or Inf in one place of each ill text's output of each of the heads."""
    raw, starts = copied(raw), batch.tokens.starts
    for place in np.flatnonzero(ill):
        if raw.dense is not None and Heads.DENSE in heads:
            raw.dense[place, -1] = np.nan
        if raw.weights is not None and Heads.SPARSE in heads:
            raw.weights[starts[place + 1] - 1] = np.inf
        if raw.colbert is not None and Heads.COLBERT in heads:
            raw.colbert[place][-1, 0] = -np.inf
        if raw.scores is not None and Heads.SCORE in heads:
            raw.scores[place] = np.nan
    return raw


def copied(raw: Raw) -> Raw:
    return Raw(
        dense=None if raw.dense is None else raw.dense.copy(),
        weights=None if raw.weights is None else raw.weights.copy(),
        colbert=None if raw.colbert is None else [rows.copy() for rows in raw.colbert],
        scores=None if raw.scores is None else raw.scores.copy(),
    )


def outputs(engine: Engine, tokens: Tokens, heads: Heads) -> dict[int, tuple[object, ...]]:
    """What an engine gives of each text."""
    found = dict[int, tuple[object, ...]]()
    for batch, raw in steps.run(engine, tokens, heads):
        starts = batch.tokens.starts
        for i, row in enumerate(batch.rows.tolist()):
            found[row] = (
                None if raw.dense is None else raw.dense[i].tolist(),
                None if raw.weights is None else raw.weights[starts[i] : starts[i + 1]].tolist(),
                None if raw.colbert is None else raw.colbert[i].tolist(),
            )
    return found


def of_lengths(lengths: list[int]) -> Tokens:
    """Texts that differ in every id."""
    ends = np.cumsum(lengths)
    rows = [np.arange(end - n, end, dtype=np.int32) for n, end in zip(lengths, ends, strict=True)]
    return Tokens(ragged(rows, np.int32), np.zeros(len(rows), np.bool_))


limits = st.builds(
    Limits,
    max_tokens=st.integers(1, 60),
    max_length=st.just(20),
    pads=st.booleans(),
    widths=st.sampled_from([(), (4, 20)]),
    parallel=st.integers(1, 3),
)
some_heads = st.sampled_from(
    [heads for n in range(1, 8) if (heads := Heads(n))],
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=30),
    st.sets(st.integers(1, 20)),
    some_heads,
    some_heads,
    limits,
    limits,
)
def test_ill_texts_come_from_the_second_engine_whole_and_the_others_from_the_first(
    lengths: list[int],
    ill: set[int],
    asked: Heads,
    spoiled: Heads,
    of_main: Limits,
    of_second: Limits,
) -> None:
    tokens = of_lengths(lengths)
    main, second = Sick(FakeEngine(of_main), ill, spoiled), Shifted(of_second)
    engine = Fallback(main, second.name, lambda: second)
    found = outputs(engine, tokens, asked)
    of = {
        False: outputs(FakeEngine(of_main), tokens, asked),
        True: outputs(Shifted(of_main), tokens, asked),
    }
    # a head that was not asked for cannot fail
    again = [n in ill and bool(asked & spoiled) for n in lengths]
    assert found == {row: of[bad][row] for row, bad in enumerate(again)}
    assert engine.recomputed == sum(again)
    ran = [row for batch in second.batches for row in batch.rows.tolist()]
    assert sorted(ran) == [row for row, bad in enumerate(again) if bad]
    for batch in second.batches:
        assert batch.tokens.lengths.tolist() == [lengths[row] for row in batch.rows]
        cost = batch.width * len(batch.rows) if of_second.pads else len(batch.tokens.values)
        assert cost <= of_second.max_tokens or len(batch.rows) == 1
    for raw, before in main.given:  # an engine may give its arrays to others, too
        np.testing.assert_equal(dataclasses.astuple(raw), dataclasses.astuple(before))


def lengths_of(model: m3rt.M3, rows: Collection[int]) -> set[int]:
    """The lengths of some of contract.TEXTS, which no other has."""
    lengths = model.tokenizer.lengths(contract.TEXTS)
    others = {int(lengths[row]) for row in range(len(contract.TEXTS)) if row not in rows}
    found = {int(lengths[row]) for row in rows}
    assert not found & others
    return found


@pytest.fixture(scope="module")
def ill(model: m3rt.M3) -> set[int]:
    """Lengths of the texts that are ill, the equal ones at 0 and 6 among them."""
    lengths = model.tokenizer.lengths(contract.TEXTS)
    return {int(lengths[row]) for row in ILL}


def rows_of(model: m3rt.M3, ill: set[int]) -> list[int]:
    lengths = model.tokenizer.lengths(contract.TEXTS).tolist()
    return [row for row, length in enumerate(lengths) if length in ill]


@pytest.mark.parametrize("streams", [1, 2])
def test_real_engines(
    streams: int, model: m3rt.M3, model_dir: Path, ill: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    # the second is exact whatever the batch, so its rows are known to the bit
    opened = artifact.read(model_dir)
    first = engines.load(opened, "openvino:fp32", streams)
    engine = Fallback(Sick(first, ill), "cpu:fp32", lambda: engines.load(opened, "cpu:fp32"))
    assert engine.limits == first.limits
    both = m3rt.M3(opened.manifest, model.tokenizer, engine)
    expected = [m3rt.M3(opened.manifest, model.tokenizer, first), model]
    rows = rows_of(model, ill)
    assert 0 < len(rows) < len(contract.TEXTS)
    with caplog.at_level(logging.WARNING, "m3rt"):
        found = both.encode(contract.TEXTS)
    of = [one.encode(contract.TEXTS) for one in expected]
    for i in range(len(contract.TEXTS)):
        contract.same(found, i, of[i in rows], i, 0 if i in rows else 1e-5)
    assert both.recomputed == len(rows)
    named = sorted(row for record in caplog.records for row in told(record))
    assert named == rows  # by their places in the request, not in the batch
    assert "sick:fp16 gave NaN or Inf for" in caplog.text
    assert "computed again by cpu:fp32" in caplog.text


def told(record: logging.LogRecord) -> list[int]:
    """The texts that a warning names."""
    numbers = record.getMessage().split("of the request: ")[1].split(";")[0]
    return list(map(int, numbers.split(", ")))


def test_threads_open_the_second_engine_once(model: m3rt.M3, ill: set[int]) -> None:
    opened = list[Engine]()

    def load() -> Engine:
        opened.append(model.engine)
        return model.engine

    engine = Fallback(Sick(model.engine, ill), "cpu:fp32", load)
    shared = m3rt.M3(model.manifest, model.tokenizer, engine)
    expected = model.encode(contract.TEXTS)
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            found = shared.encode(contract.TEXTS)
            for i in range(len(contract.TEXTS)):
                contract.same(found, i, expected, i, 0)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(opened) == 1
    assert shared.recomputed == 8 * len(rows_of(model, ill))


def test_the_second_engine_is_not_opened_in_vain(model: m3rt.M3) -> None:
    def load() -> Engine:
        raise AssertionError("nothing was ill")

    shared = m3rt.M3(model.manifest, model.tokenizer, Fallback(model.engine, "cpu:fp32", load))
    shared.encode(contract.TEXTS)
    assert shared.recomputed == 0


def test_what_the_second_engine_cannot_do_either_is_refused_as_ever(model: m3rt.M3) -> None:
    lengths = lengths_of(model, [8])
    sick = Sick(model.engine, lengths)
    engine = Fallback(sick, "sick:fp32", lambda: Sick(model.engine, lengths, Heads.SPARSE))
    shared = m3rt.M3(model.manifest, model.tokenizer, engine)
    with pytest.raises(m3rt.EngineError, match=r"the sparse output is NaN or Inf for 1 text.*: 8"):
        shared.encode(contract.TEXTS)
    with pytest.raises(m3rt.EngineError, match="the dense output is NaN or Inf"):
        m3rt.M3(model.manifest, model.tokenizer, sick).encode(contract.TEXTS)


def test_a_text_too_long_for_the_second_engine(model: m3rt.M3) -> None:
    short = Shifted(Limits(max_tokens=32, max_length=64, pads=False))
    engine = Fallback(Sick(model.engine, lengths_of(model, [8])), "shifted:fp32", lambda: short)
    shared = m3rt.M3(model.manifest, model.tokenizer, engine)
    message = r"NaN or Inf for text 8, which has \d+ tokens; the fallback shifted:fp32 takes .* 64"
    with pytest.raises(m3rt.EngineError, match=message):
        shared.encode(contract.TEXTS)
    assert short.batches == []


def test_a_second_engine_that_does_not_open_leaves_the_first(model: m3rt.M3, ill: set[int]) -> None:
    def load() -> Engine:
        raise m3rt.UnavailableError("no memory")

    shared = m3rt.M3(
        model.manifest, model.tokenizer, Fallback(Sick(model.engine, ill), "cpu:fp32", load)
    )
    for _ in range(2):  # the first failure holds no lock
        with pytest.raises(m3rt.UnavailableError, match="no memory"):
            shared.encode(contract.TEXTS)
    well = [text for i, text in enumerate(contract.TEXTS) if i not in rows_of(model, ill)]
    assert len(shared.encode(well)) == len(well)


def test_a_fallback_that_cannot_run_here_is_refused_at_once(model_dir: Path) -> None:
    if engines.probe("cuda").ready:
        pytest.skip("CUDA can run here")
    with pytest.raises(m3rt.UnavailableError, match="the fallback cuda:fp32 cannot run here: onnx"):
        m3rt.load(model_dir, "cpu", fallback="cuda")
    with pytest.raises(m3rt.InputError, match="no engine 'gpu'"):
        m3rt.load(model_dir, "cpu", fallback="gpu")
    with pytest.raises(m3rt.InputError, match="cpu has no precision 'fp16'"):
        m3rt.load(model_dir, "cpu", fallback="cpu:fp16")


def test_the_same_engine_is_no_fallback(model_dir: Path) -> None:
    assert not isinstance(m3rt.load(model_dir, "cpu", fallback="cpu:fp32").engine, Fallback)
    other = m3rt.load(model_dir, "cpu-padded", fallback="cpu").engine
    assert isinstance(other, Fallback)
    assert (other.name, other.second) == ("cpu-padded:fp32", "cpu:fp32")


@pytest.fixture
def padded_is_ill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let cpu-padded give NaN for texts of a length."""
    run = ort.Padded.run

    def ill(length: int) -> None:
        def spoil(self: ort.Padded, batch: Batch, heads: Heads) -> Raw:
            everything = Heads.ALL | Heads.SCORE
            return spoiled(
                run(self, batch, heads), batch, batch.tokens.lengths == length, everything
            )

        monkeypatch.setattr(ort.Padded, "run", spoil)

    return ill


def test_a_reranker(
    padded_is_ill: Callable[[int], None], reranker_dir: Path, reranker: m3rt.Reranker
) -> None:
    pairs = [("which river?", "the Seine"), ("a", "b"), ("which river?", "the Seine " * 9)]
    length = int(reranker.tokenize(pairs).ids.lengths[2])
    padded_is_ill(length)
    healed = m3rt.load_reranker(reranker_dir, "cpu-padded", fallback="cpu")
    found, expected = (one.score(pairs).scores for one in (healed, reranker))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[2] == expected[2]
    assert healed.recomputed == 1
    with pytest.raises(m3rt.EngineError, match=r"the score output is NaN or Inf for 1 text.*: 2"):
        m3rt.load_reranker(reranker_dir, "cpu-padded").score(pairs)


def test_encode(
    padded_is_ill: Callable[[int], None], model_dir: Path, model: m3rt.M3, tmp_path: Path
) -> None:
    texts = ["one", "two and more words", "three"]
    padded_is_ill(int(model.tokenizer.lengths(texts)[1]))
    stdin = "\n".join(texts)
    command = ["encode", str(model_dir), "--engine", "cpu-padded"]
    done = CliRunner().invoke(cli.app, [*command, "-o", str(tmp_path / "out.jsonl")], input=stdin)
    assert done.exit_code == m3rt.EngineError.exit_code
    done = CliRunner().invoke(cli.app, [*command, "--fallback", "cpu", "--json"], input=stdin)
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = model.encode(texts)
    assert expected.dense is not None
    assert np.float32(found[1]["dense"]).tolist() == expected.dense[1].tolist()
    summary = json.loads(done.stderr)  # and nothing else
    assert (summary["recomputed"], summary["texts"]) == (1, 3)
    assert (summary["engine"], summary["why"]) == (
        "cpu-padded:fp32",
        "asked for, in the best near-lossless precision it has here",
    )
    done = CliRunner().invoke(cli.app, [*command, "--fallback", "cpu"], input=stdin)
    assert "1 of 3 texts gave NaN or Inf, and were computed again by cpu\n" in done.stderr


def test_warnings_say_where_the_text_stands_in_the_file(
    padded_is_ill: Callable[[int], None],
    model_dir: Path,
    model: m3rt.M3,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [*["one"] * 1024, "one", "two and more words"]
    padded_is_ill(int(model.tokenizer.lengths(texts)[-1]))
    command = ["encode", str(model_dir), "--engine", "cpu-padded", "--fallback", "cpu"]
    done = CliRunner().invoke(cli.app, [*command, "--heads", "dense"], input="\n".join(texts))
    assert done.exit_code == 0, done.output
    assert caplog.messages == [
        "counting texts from 0 at line 1025: cpu-padded:fp32 gave NaN or Inf for 1 text(s) of the "
        "request: 1; computed again by cpu:fp32"
    ]


def test_rerank(
    padded_is_ill: Callable[[int], None], reranker_dir: Path, reranker: m3rt.Reranker
) -> None:
    pairs = [("river", "the Seine"), ("river", "a")]
    padded_is_ill(int(reranker.tokenize(pairs).ids.lengths[0]))
    stdin = json.dumps({"query": "river", "documents": ["the Seine", "a"]})
    command = ["rerank", str(reranker_dir), "--engine", "cpu-padded"]
    assert CliRunner().invoke(cli.app, command, input=stdin).exit_code == 8
    done = CliRunner().invoke(cli.app, [*command, "--fallback", "cpu", "--json"], input=stdin)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stderr)["recomputed"] == 1
    scores = {line["id"]: line["score"] for line in map(json.loads, done.stdout.splitlines())}
    assert np.float32(scores["0"]) == reranker.score(pairs).scores[0]
