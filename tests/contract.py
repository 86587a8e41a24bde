"""What every engine must do, whatever it runs on. A new engine adds a line to test_engines.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from m3rt import Embeddings, Heads
from m3rt.engines.ort import Packed
from m3rt.runtime import M3
from m3rt.types import Batch, Limits, ragged

TEXTS = (
    "The capital of France is Paris, and the Seine flows through it.",
    "巴黎",
    "",
    "Wann fährt der Zug nach Berlin ab? " * 12,
    "a",
    "भारत",
    "The capital of France is Paris, and the Seine flows through it.",
    "<s> literal </s> <pad> specials <unk> <mask>",
    "water " * 700,
)


def check(model: M3, tolerance: float, apart: float = 1e-6) -> None:
    """Run the contract.

    Args:
        model: with all three heads.
        tolerance: largest difference between a text alone and in a batch; 0 means bit-equal.
        apart: largest difference between heads computed together and apart: for some, the last
            layer runs on fewer rows, by other kernels.
    """
    apart = max(tolerance, apart)
    whole = model.encode(TEXTS)
    alone = [model.encode([text]) for text in TEXTS]
    for i, one in enumerate(alone):
        same(whole, i, one, 0, tolerance)  # batch = single, and order kept
    for batch_tokens in (1, 64, 10**6):  # however it is cut into steps
        other = model.encode(TEXTS, batch_tokens=batch_tokens)
        for i in range(len(TEXTS)):
            same(whole, i, other, i, tolerance)
    backwards = model.encode(TEXTS[::-1])
    for i in range(len(TEXTS)):
        same(whole, i, backwards, len(TEXTS) - 1 - i, tolerance)
    for heads in (Heads.DENSE, Heads.SPARSE, Heads.COLBERT, Heads.DENSE | Heads.COLBERT):
        some = model.encode(TEXTS, heads)  # only the heads asked for, with the same values
        assert (some.dense is not None) == (Heads.DENSE in heads)
        assert (some.sparse is not None) == (Heads.SPARSE in heads)
        assert (some.colbert is not None) == (Heads.COLBERT in heads)
        for i in range(len(TEXTS)):
            same(some, i, whole, i, apart)
    shapes(model, whole, TEXTS)
    shapes(model, model.encode([]), [])


def shapes(model: M3, found: Embeddings, texts: Sequence[str]) -> None:
    """Shapes, dtypes, unit lengths and the rules of the sparse output."""
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    assert found.dense.shape == (len(texts), model.manifest.hidden)
    assert len(found) == len(found.sparse) == len(found.colbert) == len(texts)
    np.testing.assert_allclose(np.linalg.norm(found.dense, axis=1), 1, atol=1e-3)
    for i, rows in enumerate(found.colbert):
        assert rows.shape == (
            found.n_tokens[i] - cls_tokens(model, int(found.n_tokens[i])),
            model.manifest.colbert_dim,
        )
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
        ids, weights = found.sparse.ids[i], found.sparse.weights[i]
        assert (np.diff(ids) > 0).all()
        assert (weights > 0).all()
        assert not set(ids.tolist()) & set(model.manifest.unscored_ids)
    arrays = [found.dense, found.sparse.weights.values, *found.colbert]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def cls_tokens(model: M3, n_tokens: int) -> int:
    """How many of a text's tokens are CLS tokens that have no ColBERT row."""
    interval = model.manifest.cls_interval
    return 1 if interval is None else -(-max(1, n_tokens - 2) // (interval + 1))


def batch_of(*lengths: int) -> Batch:
    """Texts of any tokens."""
    rows = [np.array([0, *[5] * (length - 2), 2], np.int32) for length in lengths]
    return Batch(ragged(rows, np.int32), np.arange(len(lengths)), max(lengths))


def rows_computed(graph: Path, batch: Batch, heads: Heads, folder: Path) -> dict[str, int]:
    """Rows of each linear layer's output in a packed graph, from ONNX Runtime's own profile."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options)
    limits = Limits(64, 64, pads=False)
    Packed("cpu:fp32", session, limits, Heads.ALL).run(batch, heads)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return {
        event["name"]: next(iter(event["args"]["output_type_shape"][0].values()))[0]
        for event in events
        if event["cat"] == "Node" and event["args"].get("op_name") == "MatMul"
    }


def same(a: Embeddings, i: int, b: Embeddings, j: int, tolerance: float) -> None:
    """Text i of one result equals text j of another, in every head that both have."""
    assert a.n_tokens[i] == b.n_tokens[j]
    if a.dense is not None and b.dense is not None:
        np.testing.assert_allclose(a.dense[i], b.dense[j], rtol=0, atol=tolerance)
    if a.colbert is not None and b.colbert is not None:
        np.testing.assert_allclose(a.colbert[i], b.colbert[j], rtol=0, atol=tolerance)
    if a.sparse is not None and b.sparse is not None:
        left, right = a.sparse[i], b.sparse[j]
        for key in left.keys() | right.keys():
            assert abs(left.get(key, 0) - right.get(key, 0)) <= tolerance
