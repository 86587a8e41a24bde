"""A model without a network, for tests: every output is a function of the token ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from m3rt import artifact
from m3rt.artifact import Artifact, Manifest, Source
from m3rt.runtime import M3
from m3rt.tokenizer import Tokenizer
from m3rt.types import Batch, Floats, Heads, Limits, Raw

WIDTH = 4  # of dense and ColBERT vectors


class FakeEngine:
    """Computes on packed tokens; depends on nothing but a text's own ids."""

    name = "fake:fp32"

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits(max_tokens=32, max_length=64, pads=False)

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for."""
        ids, starts = batch.tokens.values, batch.tokens.starts
        hidden = np.sin(ids[:, None] * np.arange(1, WIDTH + 1) + 1).astype(np.float32)
        hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
        return Raw(
            dense=unit(np.add.reduceat(hidden, starts[:-1])) if Heads.DENSE in heads else None,
            weights=np.maximum(np.cos(ids), 0).astype(np.float32)
            if Heads.SPARSE in heads
            else None,
            colbert=np.split(hidden, starts[1:-1]) if Heads.COLBERT in heads else None,
        )


def unit(rows: Floats) -> Floats:
    """Scale rows to length one."""
    scaled: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def write(folder: Path, heads: Heads = Heads.ALL) -> Artifact:
    """Make a model directory of a folder that holds tokenizer.json; it has no graph."""
    manifest = Manifest(
        source=Source("fake/m3", "0123abc", {}),
        architecture="xlm-roberta",
        heads=heads.names,
        pooling="cls",
        hidden=WIDTH,
        colbert_dim=WIDTH if Heads.COLBERT in heads else None,
        layers=1,
        vocab=Tokenizer.from_file(folder / "tokenizer.json").vocab_size,
        max_length=64,
        pad_id=1,
        unscored_ids=(0, 1, 2, 3),
        graphs={},
        files={"tokenizer.json": artifact.describe(folder / "tokenizer.json")},
        versions={"m3rt": "0"},
    )
    save(Artifact(folder, manifest))
    return Artifact(folder, manifest)


def save(model: Artifact) -> None:
    """Write the manifest."""
    (model.path / artifact.MANIFEST).write_text(artifact.dump(model.manifest))


def load(
    folder: str | Path,
    engine: str = "auto",
    *,
    fallback: str | None = None,
    devices: str | None = None,
) -> M3:
    """Stand in for m3rt.api.load."""
    model = artifact.read(folder)
    tokenizer = Tokenizer.from_file(model.path / "tokenizer.json")
    return M3(model.manifest, tokenizer, FakeEngine(), why="[no] network")


def with_parity(model: Artifact, ok: bool = True) -> Artifact:
    """Give a model figures of parity."""
    figures = {
        "texts": 3,
        "tokens": 40,
        "longest": 20,
        "dense": {"cosine_min": 0.9999991, "cosine_mean": 0.9999995},
        "tolerances": {"dense_cosine": 0.9999},
        "ok": ok,
        "engine": "fake",
    }
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, parity=figures))
