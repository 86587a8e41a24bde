"""The model directory is one that optimum loads as it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import m3rt
from m3rt.heads import lexical
from m3rt.types import Ragged
from tests.contract import TEXTS

optimum = pytest.importorskip("optimum.onnxruntime")
transformers = pytest.importorskip("transformers")


def test_optimum_gives_the_same_vectors(model_dir: Path, model: m3rt.M3) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    # its feature extraction knows one output alone, last_hidden_state
    network = optimum.ORTModelForCustomTasks.from_pretrained(model_dir)
    inputs = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="np")
    mask = inputs["attention_mask"].astype(bool)
    assert not mask.all()
    found = network(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    expected = model.encode(TEXTS)
    assert expected.dense is not None
    assert expected.sparse is not None
    assert expected.colbert is not None
    assert expected.n_tokens.tolist() == mask.sum(1).tolist()
    np.testing.assert_allclose(found["dense"], expected.dense, atol=2e-6)
    for i, rows in enumerate(expected.colbert):
        np.testing.assert_allclose(found["colbert"][i, 1:][mask[i, 1:]], rows, atol=2e-6)
    ids = Ragged(inputs["input_ids"][mask].astype(np.int32), np.append(0, mask.sum(1).cumsum()))
    sparse = lexical(ids, found["sparse"][mask], model.manifest.unscored_ids)
    for i in range(len(TEXTS)):
        weights = expected.sparse[i]
        assert sparse[i] == pytest.approx(weights, abs=2e-6)
    assert any(len(expected.sparse[i]) > 3 for i in range(len(TEXTS)))
