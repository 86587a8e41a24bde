"""The real tokenizer, sparse head and hidden states, and numbers published for the real model.

Not checked here, since they need the real backbone: dense similarities and sums, the lexical
scores of passages (their weights are not printed), ColBERT scores, first values of vectors, the
weight of "Hi", and the MTEB results. The combinations of published component scores are checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3rt import M3, Embeddings, Heads, Sparse, artifact, score
from m3rt.artifact import Manifest, Source
from m3rt.export import model
from m3rt.export.checkpoint import Checkpoint, Trunk
from m3rt.score import Weights
from m3rt.tokenizer import Tokenizer
from m3rt.types import Batch, Limits, Raw, ragged

HEADS = Heads.DENSE | Heads.SPARSE
UNSCORED = (0, 1, 2, 3)
# SentencePiece, and XLM-R base, drop trailing blanks; BGE-M3's tokenizer.json leaves a "▁", id 6.
TRAILING = "   leading and   collapsed   spaces  "
FLAG_EMBEDDING = "FlagOpen/FlagEmbedding"


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """An engine that has the real hidden states of some texts, and the real heads."""

    states: Mapping[tuple[int, ...], torch.Tensor]  # ids to (1, t, 1024)
    heads: model.M3
    limits: Limits
    name: str = "recorded:fp32"

    @torch.no_grad()
    def run(self, batch: Batch, heads: Heads) -> Raw:
        dense, weights = [], []
        for ids in np.split(batch.tokens.values, batch.tokens.starts[1:-1]):
            hidden = self.states[tuple(ids.tolist())]
            one, per_token = self.heads(hidden, torch.ones(hidden.shape[:2], dtype=torch.int64))
            dense.append(one[0].numpy())
            weights.append(per_token[0].numpy())
        return Raw(np.stack(dense), np.concatenate(weights))


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Tokenizer:
    return Tokenizer.from_file(data / "tokenizer" / "tokenizer.json")


@pytest.fixture(scope="module")
def published(data: Path) -> Any:
    return load(data, "published_reference_values")


@pytest.fixture(scope="module")
def recorded(data: Path, tokenizer: Tokenizer) -> M3:
    """The real model for the texts whose hidden states are kept."""
    trunk = Trunk("xlm-roberta", 1, 1024, 0, 16, 1, 1, 1, 1e-5, 0)  # no layers
    heads = model.M3(Checkpoint(data, "bge-m3", None, trunk, HEADS, "cls", 8192), None)
    heads.add_module("embeddings", torch.nn.Identity())
    state = torch.load(data / "heads" / "sparse_linear.pt", weights_only=True)
    heads.sparse_linear.load_state_dict({name: value.float() for name, value in state.items()})
    states = {
        tuple(case["input_ids"]): torch.tensor(case["hidden"]).reshape(1, case["L"], 1024)
        for case in load(data, "bge_m3_golden")["cases"]
    }
    manifest = Manifest(
        source=Source("BAAI/bge-m3", None, {}),
        architecture="xlm-roberta",
        heads=HEADS.names,
        pooling="cls",
        hidden=1024,
        colbert_dim=None,
        layers=24,
        vocab=250002,
        max_length=8192,
        pad_id=1,
        unscored_ids=UNSCORED,
        graphs={},
        files={},
        versions={},
    )
    limits = Limits(max_tokens=20, max_length=8192, pads=False)  # several batches
    return M3(manifest, tokenizer, Recorded(states, heads, limits))


@pytest.fixture(scope="module")
def outputs(data: Path, recorded: M3) -> Embeddings:
    """Of every recorded text, in one request: batches are planned and merged."""
    return recorded.encode([case["text"] for case in load(data, "bge_m3_golden")["cases"]])


@pytest.mark.parametrize(
    "name",
    [
        "bge_m3_golden",
        "derived_bge_m3_sparse",
        "transformers_xlmr_expected_ids",
        "xlmr_encode_golden",
    ],
)
def test_token_ids(data: Path, tokenizer: Tokenizer, name: str) -> None:
    expected = {case["text"]: case["input_ids"] for case in load(data, name)["cases"]}
    if TRAILING in expected:
        expected[TRAILING] = [*expected[TRAILING][:-1], 6, 2]
    assert {text: encode(tokenizer, text) for text in expected} == expected


def test_published_token_ids(tokenizer: Tokenizer, published: Any) -> None:
    expected = published["input_ids"]
    assert {text: encode(tokenizer, text) for text in expected} == expected
    single = find(published, "vllm")["single_token"]
    assert encode(tokenizer, single["text"]) == [0, single["id"], 2]


def test_sparse_weights_from_real_hidden_states(data: Path, outputs: Embeddings) -> None:
    expected = load(data, "derived_bge_m3_sparse")["cases"]
    assert outputs.sparse is not None
    for i, case in enumerate(expected):
        weights = {int(token): weight for token, weight in case["lexical_weights"].items()}
        assert outputs.sparse[i] == pytest.approx(weights, abs=1e-5)
    assert len(outputs) == len(expected)


def test_dense_from_real_hidden_states(data: Path, outputs: Embeddings) -> None:
    expected = [case["embedding"] for case in load(data, "bge_m3_golden")["cases"]]
    assert outputs.dense is not None
    np.testing.assert_allclose(outputs.dense, expected, atol=2e-6)  # both rounded to 6 decimals


@pytest.mark.parametrize("place", [0, 1], ids=["README", "notebook"])
def test_published_lexical_weights(tokenizer: Tokenizer, published: Any, place: int) -> None:
    reference = find(published, FLAG_EMBEDDING, place)
    queries = published["texts"][reference["texts"].split()[0]]
    weights = reference["lexical_weights_decoded"]
    for text, expected in zip(queries, weights, strict=True):
        scored = [i for i in encode(tokenizer, text) if i not in UNSCORED]
        assert [tokenizer.decode([i]) for i in scored] == list(expected)
    left, right = (sparse(tokenizer, *pair) for pair in zip(queries, weights, strict=True))
    assert score.lexical(left, right) == find(published, FLAG_EMBEDDING)["lexical_score"]["q0_q1"]
    itself = sum(weight**2 for weight in weights[0].values())
    assert score.lexical(left, left) == pytest.approx(itself, rel=1e-6)


def test_pieces_tell_apart_what_decodes_alike(tokenizer: Tokenizer) -> None:
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    assert len(ids) == tokenizer.vocab_size
    assert tokenizer.decode([ids["▁the"]]) == tokenizer.decode([ids["the"]]) == "the"


def test_published_sparse_ids(tokenizer: Tokenizer, published: Any) -> None:
    cases = find(published, "Anush008/fastembed-rs", 0)["sparse"]
    for case in cases:
        ids = [i for i in encode(tokenizer, case["text"]) if i not in UNSCORED]
        assert list(dict.fromkeys(ids)) == [int(token) for token in case["weights"]]


def test_published_numbers_of_colbert_vectors(tokenizer: Tokenizer, published: Any) -> None:
    texts = published["texts"]
    shapes = find(published, FLAG_EMBEDDING, 1)["colbert_shapes"]
    expected = {texts["q_typo"][0]: shapes["q0"][0], texts["p"][0]: shapes["p0"][0]}
    fastembed = find(published, "Anush008/fastembed-rs", 2)
    expected |= zip(fastembed["texts"], fastembed["colbert_lens"], strict=True)
    assert {text: len(encode(tokenizer, text)) - 1 for text in expected} == expected


def test_published_combined_scores(published: Any) -> None:
    readme = find(published, FLAG_EMBEDDING, 0)["compute_score"]
    tables = [(readme["args"]["weights_for_different_modes"], readme)]
    for place in (4, 5):
        example = find(published, FLAG_EMBEDDING, place)
        tables += [(example["weights"], example[key]) for key in example if "pairs" in key]
    assert len(tables) == 5
    for weights, table in tables:
        for heads in ("sparse+dense", "colbert+sparse+dense"):
            scores = {head: np.array(table[head], np.float32) for head in heads.split("+")}
            combined = Weights(*weights).mean(scores)
            np.testing.assert_allclose(combined, table[heads], rtol=3e-7)


def test_published_sum_of_a_third_each(published: Any) -> None:
    notebook = find(published, FLAG_EMBEDDING, 1)
    for pair, expected in notebook["sum_one_third_each"].items():
        query, passage = (int(text[1:]) for text in pair.split("_"))
        scores = {
            "dense": np.array(notebook["dense_similarity"][query][passage], np.float32),
            "sparse": np.array(notebook["lexical_score"][pair], np.float32),
            "colbert": np.array(notebook["colbert_score"][pair], np.float32),
        }
        combined = Weights().mean(scores)
        assert combined == pytest.approx(expected, rel=3e-7)


def test_published_hashes(data: Path, published: Any) -> None:
    expected = published["official_file_hashes"]["files"]
    files = [file for file in data.glob("*/*") if file.name in expected]
    assert len(files) >= 3
    for file in files:
        assert artifact.describe(file) == artifact.File(*expected[file.name])


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer([text], 8192).ids[0].tolist()
    return ids


def sparse(tokenizer: Tokenizer, text: str, weights: Mapping[str, float]) -> Sparse:
    """Put printed weights, which follow the tokens of the text, under their ids."""
    ids = [i for i in encode(tokenizer, text) if i not in UNSCORED]
    pairs = sorted(zip(ids, weights.values(), strict=True))
    return Sparse(
        ragged([np.array([i for i, _ in pairs], np.int32)], np.int32),
        ragged([np.array([weight for _, weight in pairs], np.float32)], np.float32),
    )


def find(published: Any, source: str, place: int = 0) -> Any:
    """Return a reference of this source, counted in the order of the file."""
    return [entry for entry in published["references"] if entry["source"].startswith(source)][place]


def load(data: Path, name: str) -> Any:
    return json.loads((data / "fixtures" / f"{name}.json").read_text("utf-8"))
