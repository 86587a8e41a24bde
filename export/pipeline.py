"""The stages of an export, in order. Weights are read once and freed between stages."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from transformers import AutoTokenizer

from m3rt import __version__, artifact, parity
from m3rt.artifact import Artifact, File, Manifest, Source
from m3rt.errors import CheckpointError
from m3rt.export import Recipe, checkpoint, graph, model, oracle, samples
from m3rt.export.checkpoint import Checkpoint
from m3rt.export.silence import silence
from m3rt.parity import Reference
from m3rt.tokenizer import Tokenizer
from m3rt.types import Ragged

LIBRARIES = ("torch", "transformers", "tokenizers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def run(
    name: str, out: Path, recipe: Recipe, force: bool, progress: Progress | None
) -> Artifact:
    """See m3rt.export.run."""
    bars = progress or Progress(disable=True)
    source = checkpoint.read(
        name, recipe.heads, recipe.pooling, recipe.revision, recipe.max_length
    )
    with artifact.staged(out, force) as part:
        shutil.copy(source.path / "config.json", part)
        unscored = write_tokenizer(source, part)
        tokenizer = Tokenizer.from_file(part / "tokenizer.json")
        ids = samples.tokens(tokenizer, source.max_length)
        reference, graphs, colbert_dim = write_model(source, ids, part, bars)
        gc.collect()  # traced modules are cycles; the gate needs their memory
        manifest = Manifest(
            source=Source(name, source.revision, describe(source.weight_files, bars)),
            architecture=source.trunk.architecture,
            heads=source.heads.names,
            pooling=source.pooling,
            hidden=source.trunk.hidden,
            colbert_dim=colbert_dim,
            layers=source.trunk.layers,
            vocab=source.trunk.vocab,
            max_length=source.max_length,
            pad_id=source.trunk.pad_id,
            unscored_ids=unscored,
            graphs=graphs,
            files=describe(sorted(part.iterdir()), bars),
            versions={"m3rt": __version__} | {name: version(name) for name in LIBRARIES},
        )
        figures = parity.gate(Artifact(part, manifest), reference, "cpu", bars)
        manifest = dataclasses.replace(manifest, parity=figures)
        (part / artifact.MANIFEST).write_text(artifact.dump(manifest), "utf-8")
    return Artifact(out, manifest)


def verify(
    made: Artifact, against: str, engine: str, progress: Progress | None
) -> dict[str, Any]:
    """See m3rt.export.verify."""
    bars = progress or Progress(disable=True)
    manifest = made.manifest
    source = checkpoint.read(
        against, manifest.head_flags, manifest.pooling, max_length=manifest.max_length
    )
    tokenizer = Tokenizer.from_file(made.path / "tokenizer.json")
    ids = samples.tokens(tokenizer, source.max_length)
    reference = oracle.run(source, checkpoint.read_weights(source), ids, bars)
    return parity.gate(made, reference, engine, bars)


def write_model(
    source: Checkpoint, ids: Ragged[np.int32], part: Path, bars: Progress
) -> tuple[Reference, dict[str, str], int | None]:
    """Run the checkpoint, then write its graphs; its weights are in memory only meanwhile.

    Returns:
        What the checkpoint gives for ids, the graphs written, and the ColBERT width.
    """
    task = bars.add_task("read the weights", total=None)
    state = checkpoint.read_weights(source)
    module = model.build(source, state)
    bars.update(task, total=1, completed=1)
    reference = oracle.run(source, state, ids, bars)
    reference.save(part / parity.REFERENCE)
    task = bars.add_task("trace the graph", total=None)
    portable = graph.trace(module)
    bars.update(task, total=1, completed=1)
    task = bars.add_task("write the graphs", total=sum(t.nbytes for t in state.values()))
    graphs = graph.write(portable, source, part, lambda n: bars.advance(task, n))
    colbert = state.get("colbert_linear.bias")
    return reference, graphs, None if colbert is None else len(colbert)


def write_tokenizer(source: Checkpoint, part: Path) -> tuple[int, ...]:
    """Write tokenizer.json as transformers reads it, so that text gives the reference's ids.

    Returns:
        The special tokens' ids that get no lexical weight: FlagEmbedding's choice.
    """
    try:
        with silence():  # it warns of another model's regular expression
            tokenizer = AutoTokenizer.from_pretrained(source.path, use_fast=True)
    except Exception as error:  # many kinds, from several libraries
        raise CheckpointError(f"{source.path} has no usable tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{source.path}: its tokenizer has no tokenizer.json and cannot be converted to one"
        )
    tokenizer.save_pretrained(part)
    if tokenizer.vocab_size > source.trunk.vocab:
        raise CheckpointError(
            f"{source.path}: the tokenizer has {tokenizer.vocab_size} ids, the word embeddings "
            f"{source.trunk.vocab}: they do not belong together"
        )
    names = ("cls_token", "eos_token", "pad_token", "unk_token")
    special = tokenizer.special_tokens_map
    ids = {tokenizer.convert_tokens_to_ids(special[name]) for name in names if name in special}
    return tuple(sorted(ids))


def describe(files: Sequence[Path], bars: Progress) -> dict[str, File]:
    """Measure and hash files, under their names."""
    task = bars.add_task("hash", total=sum(file.stat().st_size for file in files))
    return {file.name: artifact.describe(file, lambda n: bars.advance(task, n)) for file in files}
