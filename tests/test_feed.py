"""Inputs of the unpadded graphs: each array against its meaning, told one text at a time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from subprocess import run

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

from m3rt.engines.unpadded import feed
from m3rt.engines.unpadded.feed import Feed, Positions
from m3rt.export import functions
from m3rt.types import Batch, Heads, ragged

PAD = 1
ROBERTA, BERT = Positions(True, PAD, 20), Positions(False, 0, 6)
EMBEDDER = [Heads(value) for value in range(1, Heads.ALL.value + 1)]
# a model's heads, and those wanted of it
HEADS = [
    *itertools.product([Heads.ALL], EMBEDDER),
    *itertools.product([Heads.DENSE | Heads.SPARSE], (Heads.DENSE, Heads.SPARSE)),
    (Heads.DENSE, Heads.DENSE),
    (Heads.SCORE, Heads.SCORE),
]
TEXT = st.lists(st.integers(0, 9), min_size=2, max_size=9)
TEXTS = st.lists(TEXT, min_size=1, max_size=6)
RULES = st.sampled_from([ROBERTA, BERT])


def batch_of(texts: Sequence[Sequence[int]]) -> Batch:
    rows = [np.array(text, np.int32) for text in texts]
    width = max(map(len, texts))
    return Batch(ragged(rows, np.int32), np.arange(len(texts)), width)


def positions_of(text: Sequence[int], rule: Positions) -> list[int]:
    if not rule.from_pad:
        return [min(place, rule.last) for place in range(len(text))]
    found, next_one = [], rule.pad_id + 1
    for token in text:
        found.append(rule.pad_id if token == rule.pad_id else next_one)
        next_one += token != rule.pad_id
    return found


def joined(texts: Sequence[Sequence[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(texts))


def check_form(found: Feed, model: Heads) -> None:
    """Types, contiguity, and which inputs there are."""
    names = {"input_ids", "positions", "rows"}
    names |= {"first"} if model & (Heads.DENSE | Heads.SCORE) else set()
    names |= {f"{head}_rows" for head in (model & (Heads.SPARSE | Heads.COLBERT)).names}
    own = {"cu_seqlens", "token_offset"} if "cu_seqlens" in found.arrays else {"lengths", "grid"}
    assert found.arrays.keys() == names | own
    for name, array in found.arrays.items():
        assert array.dtype == (np.int64 if name == "grid" else np.int32), name
        assert array.flags.c_contiguous, name
        assert array.size, name  # CUDA launches no kernel over nothing


def check_rows(
    found: Feed, model: Heads, heads: Heads, tokens: list[int], first: list[int]
) -> None:
    """What a head reads, as places among all tokens; ``first`` of the batch's own texts."""
    rows = found.arrays["rows"]
    every = bool(heads & (Heads.SPARSE | Heads.COLBERT))
    assert len(rows) == (len(tokens) if every else found.texts)
    if "first" in found.arrays:
        places = rows[found.arrays["first"]]
        assert len(places) == found.texts
        assert places[: len(first)].tolist() == first
    for head, count in ((Heads.SPARSE, found.sparse), (Heads.COLBERT, found.colbert)):
        if head not in model:
            assert count == 0
            continue
        chosen = found.arrays[f"{head.names[0]}_rows"]
        assert len(chosen) == count
        if head in heads:
            assert rows[chosen].tolist() == tokens
        else:
            assert chosen.tolist() == [0]


@given(TEXTS, RULES, st.sampled_from(HEADS))
@settings(deadline=None)
def test_texts_stand_end_to_end(
    texts: list[list[int]], rule: Positions, heads: tuple[Heads, Heads]
) -> None:
    model, wanted = heads
    found = feed.varlen(batch_of(texts), wanted, model, rule)
    check_form(found, model)
    ends = list(itertools.accumulate(map(len, texts), initial=0))
    assert found.arrays["input_ids"].tolist() == joined(texts)
    assert found.arrays["positions"].tolist() == joined([positions_of(t, rule) for t in texts])
    assert found.arrays["cu_seqlens"].tolist() == ends
    assert (found.texts, found.width) == (len(texts), max(map(len, texts)))
    check_rows(found, model, wanted, list(range(ends[-1])), ends[:-1])
    check_offsets(found, [len(text) for text in texts])


def check_offsets(found: Feed, lengths: list[int]) -> None:
    grid = found.arrays["token_offset"]
    assert grid.shape == (len(lengths), found.width)
    cells = [(i, j) for i in range(len(lengths)) for j in range(found.width)]
    real = [i * found.width + j for i, j in cells if j < lengths[i]]
    padding = [i * found.width + j for i, j in cells if j >= lengths[i]]
    assert grid.ravel().tolist() == real + padding


@given(TEXTS, RULES, st.sampled_from(HEADS), st.integers(0, 9), st.integers(0, 3))
@settings(deadline=None)
def test_padding_is_one_more_text(
    texts: list[list[int]], rule: Positions, heads: tuple[Heads, Heads], more: int, empty: int
) -> None:
    model, wanted = heads
    count, n = len(joined(texts)), len(texts)
    n_padded = n + bool(more) + empty
    batch = batch_of(texts)
    found = feed.varlen(batch, wanted, model, rule, tokens=count + more, texts=n_padded)
    alone = feed.varlen(batch, wanted, model, rule)
    check_form(found, model)
    added = [rule.pad_id] * more
    lengths = [*map(len, texts), more, *[0] * n_padded][:n_padded]
    assert (found.texts, found.width) == (n_padded, count + more)
    assert found.arrays["input_ids"].tolist() == joined(texts) + added
    assert found.arrays["positions"][count:].tolist() == positions_of(added, rule)
    assert found.arrays["cu_seqlens"].tolist() == list(itertools.accumulate(lengths, initial=0))
    check_offsets(found, lengths)
    every = list(range(count + more))
    check_rows(found, model, wanted, every, alone.arrays["cu_seqlens"][:-1].tolist())
    for name in ("input_ids", "positions"):  # what the texts are given does not depend on it
        assert np.array_equal(found.arrays[name][:count], alone.arrays[name])
    for name in ("rows", "first"):  # places that there are
        if name in found.arrays:
            among = found.arrays["input_ids" if name == "rows" else "rows"]
            assert 0 <= found.arrays[name].min() <= found.arrays[name].max() < len(among)


def test_shapes_depend_on_tokens_texts_and_heads_alone() -> None:
    for model, wanted in HEADS:
        shapes = {
            tuple((name, array.shape) for name, array in found.arrays.items())
            for texts in ([[0, 2]], [[0, 3, 2], [0, 1, 1, 2]], [[0] * 12], [[0, 2]] * 6)
            for found in [feed.varlen(batch_of(texts), wanted, model, ROBERTA, 16, 8)]
        }
        assert len(shapes) == 1


@given(TEXTS, RULES, st.sampled_from(HEADS), st.integers(0, 4), st.integers(0, 3))
@settings(deadline=None)
def test_rectangles(
    texts: list[list[int]], rule: Positions, heads: tuple[Heads, Heads], wider: int, more: int
) -> None:
    model, wanted = heads
    n, width = len(texts), max(map(len, texts)) + wider
    found = feed.rectangles(batch_of(texts), wanted, model, rule, width, n + more)
    check_form(found, model)
    every = [*texts, *[[texts[0][0]]] * more]
    padded = [text + [rule.pad_id] * (width - len(text)) for text in every]
    assert found.arrays["input_ids"].tolist() == joined(padded)
    expected = joined([positions_of(text, rule) for text in padded])
    assert found.arrays["positions"].tolist() == expected
    assert found.arrays["lengths"].tolist() == [*map(len, texts), *[1] * more]
    assert found.arrays["grid"].tolist() == [n + more, width, -1]
    assert (found.texts, found.width) == (n + more, width)
    tokens = [i * width + j for i, text in enumerate(texts) for j in range(len(text))]
    check_rows(found, model, wanted, tokens, [i * width for i in range(n)])


def test_both_count_the_same_positions() -> None:
    batch = batch_of([[0, 5, 1, 2], [0, 2], [0, 1, 1, 7, 8, 2]])
    for rule in (ROBERTA, BERT):
        flat = feed.varlen(batch, Heads.ALL, Heads.ALL, rule).arrays
        grid = feed.rectangles(batch, Heads.ALL, Heads.ALL, rule, 7).arrays
        assert np.array_equal(grid["positions"][grid["rows"]], flat["positions"])
        assert np.array_equal(grid["input_ids"][grid["rows"]], flat["input_ids"])


@given(TEXTS, RULES)
@settings(deadline=None, max_examples=50)
def test_positions_are_those_of_the_exported_graph(texts: list[list[int]], rule: Positions) -> None:
    batch = batch_of(texts)
    inputs = {"ids": batch.tokens.values.astype(np.int64), "starts": batch.tokens.starts}
    (expected,) = evaluators()[rule.from_pad].run(None, inputs)
    assert np.array_equal(rule.of(batch.tokens.values, batch.tokens.starts), expected)


def evaluators() -> dict[bool, ReferenceEvaluator]:
    if not MADE:
        MADE.update({rule.from_pad: ReferenceEvaluator(exported(rule)) for rule in (ROBERTA, BERT)})
    return MADE


MADE: dict[bool, ReferenceEvaluator] = {}


def exported(rule: Positions) -> object:
    """The graph of a rule, as export.packing calls it."""
    kind = ir.TensorType(ir.DataType.INT64)
    ids = ir.Value(name="ids", shape=ir.Shape(["t"]), type=kind)
    starts = ir.Value(name="starts", shape=ir.Shape(["n + 1"]), type=kind)
    size = ir.node("Size", [ids])
    owner = ir.node("Owner", [size.outputs[0], starts], domain="m3rt", num_outputs=2)
    name = "PositionsFromPad" if rule.from_pad else "PositionsFromZero"
    how = {"pad_id": rule.pad_id, "last": rule.last}
    count = ir.node(name, [ids, *owner.outputs], how, domain="m3rt")
    count.outputs[0].name, count.outputs[0].type = "positions", kind
    nodes = [size, owner, count]
    imports = {"": 20, "m3rt": 1}
    graph = ir.Graph([ids, starts], count.outputs, nodes=nodes, opset_imports=imports, name="g")
    model = ir.Model(graph, ir_version=10)
    for text in functions.COMMON:
        function = functions.parse(text, 20)
        model.functions[function.identifier()] = function
    InlinePass()(model)
    return ir.serde.serialize_model(model)


def test_what_does_not_fit_is_refused() -> None:
    batch = batch_of([[0, 5, 2], [0, 2]])
    for tokens, texts in ((4, 8), (5, 1), (6, 2), (6, None)):
        with pytest.raises(ValueError, match="5 tokens in 2 texts do not fit"):
            feed.varlen(batch, Heads.ALL, Heads.ALL, ROBERTA, tokens, texts)
    for width, texts in ((2, 2), (3, 1)):
        with pytest.raises(ValueError, match="2 texts of up to 3 tokens do not fit"):
            feed.rectangles(batch, Heads.ALL, Heads.ALL, ROBERTA, width, texts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_outputs_are_converted_by_their_own_type(dtype: type[np.generic]) -> None:
    """Halves of 1.0 would be read out of the zeros below it, where a float32 is taken for two."""
    rows = np.ones((3, 4), dtype)
    found = feed.own({"colbert": rows}, batch_of([[1, 2], [3]]))
    assert found.colbert is not None
    assert [text.tolist() for text in found.colbert] == [[[1.0] * 4] * 2, [[1.0] * 4]]


def test_no_runtime_is_needed() -> None:
    code = (
        "import sys, m3rt.engines.unpadded.feed; sys.exit('onnxruntime' in sys.modules "
        "or 'onnx' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0
