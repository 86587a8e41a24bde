"""The exported model equals FlagEmbedding itself on the same checkpoint, text for text."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import m3rt
from m3rt.export import samples
from tests.oracle import Oracle

SHORT = [*samples.sentences(), *samples.EDGES, *samples.sentences()[:9], "word " * 300]
LONG = ["eins zwei drei vier fünf sechs sieben acht neun zehn " * 1200]  # more than 8192 tokens


@pytest.mark.parametrize("name", ["checkpoint", "odd_checkpoint", "real_checkpoint"])
@pytest.mark.parametrize(("texts", "batch_size"), [(SHORT, 16), (LONG, 1)], ids=["short", "long"])
def test_every_head_of_every_text(
    name: str, texts: list[str], batch_size: int, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    model = m3rt.load(request.getfixturevalue(name.replace("checkpoint", "model_dir")), "cpu")
    longest = model.max_length
    expected = Oracle(folder).encode(texts, max_length=longest, batch_size=batch_size)
    found = model.encode(texts, max_length=longest)
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    if texts is LONG:
        assert found.truncated.all()
        assert found.n_tokens.tolist() == [longest]
    assert cosines(found.dense, expected.dense).min() >= 0.999999
    for i, text in enumerate(texts):
        assert found.colbert[i].shape == expected.colbert[i].shape, text[:80]
        assert cosines(found.colbert[i], expected.colbert[i]).min() >= 0.99999, text[:80]
        ours, theirs = found.sparse[i], expected.lexical[i]
        for key in ours.keys() | theirs.keys():
            error = abs(ours.get(key, 0) - theirs.get(key, 0))
            # a weight at the edge of zero may be on one side only
            assert error <= (1e-5 if key in ours and key in theirs else 1e-6), (text[:80], key)


def test_scores_of_pairs(checkpoint: Path, model_dir: Path) -> None:
    pairs = list(pairwise(samples.sentences()[:24]))
    weights = [0.4, 0.2, 0.4]
    found = m3rt.BGEM3FlagModel(model_dir, engine="cpu").compute_score(
        pairs, weights_for_different_modes=weights
    )
    # one pair at a time: in a batch FlagEmbedding lets padding score
    expected = Oracle(checkpoint).flag.compute_score(
        pairs, batch_size=1, weights_for_different_modes=weights
    )
    assert isinstance(found, dict)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)


def cosines(
    a: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    b: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    product: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (a64 * b64).sum(axis=1) / norms
    return product
