"""The stages of an export, in order. Weights are read once and freed between stages."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers import __version__ as transformers_version

from m3rt import __version__, artifact, parity
from m3rt.artifact import Artifact, File, Manifest, Source
from m3rt.doctor import version
from m3rt.errors import CheckpointError, ParityError, UnavailableError
from m3rt.export import Recipe, checkpoint, declared, graph, model, oracle, samples
from m3rt.export.checkpoint import Checkpoint, State
from m3rt.export.silence import silence
from m3rt.parity import Reference
from m3rt.tokenizer import Tokenizer
from m3rt.types import Heads, Ragged

SHORT = 1024  # tokens; longer texts add minutes in float32, and no other arithmetic

# From 5 on transformers makes XLM-R's tokenizer anew, with other rules for blanks, control
# characters and literal special tokens than tokenizer.json has, which 4 reads as it stands.
REBUILDS = int(transformers_version.partition(".")[0]) >= 5

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "onnx", "onnx-ir", "onnxscript"),
    *("onnxruntime", "onnxruntime-gpu", "openvino"),
)


def run(name: str, out: Path, recipe: Recipe, force: bool, progress: Progress | None) -> Artifact:
    """See m3rt.export.run."""
    parity.usable("cpu")  # now, rather than at the end of all the work
    bars = progress or Progress(disable=True)
    source = checkpoint.read(name, recipe.heads, recipe.pooling, recipe.revision, recipe.max_length)
    with artifact.staged(out, force) as part:
        write_config(source, part)
        unscored = write_tokenizer(source, part)
        tokenizer = Tokenizer.from_file(part / "tokenizer.json", source.cls_interval)
        longest = min(source.max_length, recipe.proof_length or source.max_length)
        ids = gate_ids(tokenizer, source.heads, longest)
        reference, graphs, colbert_dim = write_model(source, ids, part, bars)
        gc.collect()  # traced modules are cycles; the gate needs their memory
        manifest = Manifest(
            source=Source(
                # a directory by its name only: nothing written holds a path of this machine
                name if source.revision else source.path.resolve().name,
                source.revision,
                describe("hash the checkpoint", source.weight_files, bars),
            ),
            architecture=source.trunk.architecture,
            heads=source.heads.names,
            pooling=source.pooling,
            cls_interval=source.cls_interval,
            hidden=source.trunk.hidden,
            colbert_dim=colbert_dim,
            layers=source.trunk.layers,
            vocab=source.trunk.vocab,
            max_length=source.max_length,
            pad_id=source.trunk.pad_id,
            unscored_ids=unscored,
            graphs=graphs,
            files=describe("hash the model", sorted(part.iterdir()), bars),
            versions={"m3rt": __version__}
            | {library: found for library in LIBRARIES if (found := version(library))},
        )
        made = Artifact(part, manifest)
        figures = parity.gate(made, reference, "cpu:fp32", bars)
        figures["portable"] = parity.gate(made, reference, "cpu-padded:fp32", bars)
        with contextlib.suppress(UnavailableError):
            figures["grouped"] = parity.gate(made, reference, "openvino:fp32", bars, SHORT)
        manifest = dataclasses.replace(manifest, parity=figures)
        (part / artifact.MANIFEST).write_text(artifact.dump(manifest), "utf-8")
    return Artifact(out, manifest)


def verify(made: Artifact, against: str, engine: str, progress: Progress | None) -> dict[str, Any]:
    """See m3rt.export.verify."""
    bars = progress or Progress(disable=True)
    manifest = made.manifest
    source = checkpoint.read(against, manifest.head_flags, manifest.pooling)
    state = checkpoint.read_weights(source)
    check_same_shape(manifest, source, state)
    ids = gate_ids(Tokenizer.of(made), manifest.head_flags, manifest.max_length)
    return parity.gate(made, oracle.run(source, state, ids, bars), engine, bars)


def gate_ids(tokenizer: Tokenizer, heads: Heads, max_length: int) -> Ragged[np.int32]:
    """Return what the gate runs: texts, or pairs of texts for a reranker."""
    chosen = samples.pairs if Heads.SCORE in heads else samples.tokens
    return chosen(tokenizer, max_length)


def check_same_shape(manifest: Manifest, source: Checkpoint, state: State) -> None:
    """Refuse a checkpoint that cannot be the one a model was made from.

    Raises:
        ParityError: says what differs.
    """
    trunk = source.trunk
    for name, expected in (
        ("architecture", trunk.architecture),
        ("hidden", trunk.hidden),
        ("layers", trunk.layers),
        ("vocab", trunk.vocab),
        ("pad_id", trunk.pad_id),
        ("colbert_dim", colbert_dim(state)),
        ("cls_interval", source.cls_interval),
        ("max_length", min(manifest.max_length, trunk.max_length)),
    ):
        found = getattr(manifest, name)
        if found != expected:
            raise ParityError(
                f"the model was not made from {source.name}: its {name} is {found}, the "
                f"checkpoint's {expected}"
            )


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
    total = sum(tensor.nbytes for tensor in state.values())
    task = bars.add_task("write the graphs", total=total)
    graphs = graph.write(portable, source, part, lambda n: bars.advance(task, n))
    bars.update(task, completed=total)  # small tensors stand in the graph itself
    return reference, graphs, colbert_dim(state)


def colbert_dim(state: State) -> int | None:
    """Return the ColBERT width, if there is such a head."""
    bias = state.get("colbert_linear.bias")
    return None if bias is None else len(bias)


def write_config(source: Checkpoint, part: Path) -> None:
    """Write config.json without the name that old transformers noted: often a local path."""
    config = declared.read_json(source.path / "config.json")
    config.pop("_name_or_path", None)
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def write_tokenizer(source: Checkpoint, part: Path) -> tuple[int, ...]:
    """Write tokenizer.json as transformers 4 reads it, so that text gives the reference's ids.

    Returns:
        The special tokens' ids that get no lexical weight: FlagEmbedding's choice.
    """
    try:
        with silence():  # it warns of another model's regular expression
            tokenizer = reader(source.path).from_pretrained(source.path, use_fast=True)
    except Exception as error:  # many kinds, from several libraries
        raise CheckpointError(f"{source.path} has no usable tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{source.path}: its tokenizer has no tokenizer.json and cannot be converted to one"
        )
    if source.lowercase:
        lower_case(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(part)
    largest = max(tokenizer.get_vocab().values())  # added tokens among them
    if largest >= source.trunk.vocab:
        raise CheckpointError(
            f"{source.path}: the tokenizer has ids up to {largest}, the word embeddings "
            f"{source.trunk.vocab} rows: they do not belong together"
        )
    names = ("cls_token", "eos_token", "pad_token", "unk_token")
    special = tokenizer.special_tokens_map
    ids = {tokenizer.convert_tokens_to_ids(special[name]) for name in names if name in special}
    return tuple(sorted(ids))


def reader(path: Path) -> Any:
    """Return the class of transformers that reads a checkpoint's tokenizer as it stands."""
    own = REBUILDS and (path / "tokenizer.json").is_file()
    return PreTrainedTokenizerFast if own else AutoTokenizer


def lower_case(backend: Backend) -> None:
    """Let a tokenizer see texts in lower case, as sentence-transformers does for do_lower_case."""
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def describe(title: str, files: Sequence[Path], bars: Progress) -> dict[str, File]:
    """Measure and hash files, under their names."""
    task = bars.add_task(title, total=sum(file.stat().st_size for file in files))
    return {file.name: artifact.describe(file, lambda n: bars.advance(task, n)) for file in files}
