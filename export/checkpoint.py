"""Reading an M3 checkpoint: the trunk, both head files, the tokenizer.

A checkpoint is a directory laid out as BAAI/bge-m3 is (config.json, model.safetensors or
pytorch_model.bin, sparse_linear.pt, colbert_linear.pt, tokenizer files), or the hub id of one.
FlagEmbedding gives random heads, with one line in the log, where a head file is missing; here
that is an error.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from m3rt.errors import CheckpointError, InputError
from m3rt.types import Heads

TRUNKS = ("xlm-roberta", "roberta", "bert")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
MODULES = {"Transformer", "Pooling", "Normalize"}  # of sentence-transformers
HEAD_FILES = {Heads.SPARSE: "sparse_linear.pt", Heads.COLBERT: "colbert_linear.pt"}
PATTERNS = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.pt", "*.model", "*.txt"]

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Trunk:
    """Sizes and constants of an encoder, from config.json."""

    architecture: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int
    types: int
    epsilon: float
    pad_id: int

    @property
    def from_pad(self) -> bool:
        """Whether positions count from the padding id, as in RoBERTa, or from 0, as in BERT."""
        return self.architecture != "bert"

    @property
    def max_length(self) -> int:
        """Most tokens of one text, special tokens included."""
        return self.positions - (self.pad_id + 1 if self.from_pad else 0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk; weights are read on demand."""

    path: Path
    name: str  # as the user gave it
    revision: str | None
    trunk: Trunk
    heads: Heads
    pooling: str  # cls or mean
    max_length: int

    @property
    def weight_files(self) -> list[Path]:
        """Every file that weights are read from."""
        trunk = shards(self.path)
        return trunk + [self.path / HEAD_FILES[head] for head in self.heads & ~Heads.DENSE]


def resolve(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Return the directory of a checkpoint, and its commit if it is a hub id.

    The hub's cache answers when the hub does not.

    Raises:
        CheckpointError: no such directory, and nothing of that name on the hub or in its cache.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"{name} is a directory: --revision is for hub ids")
        return path, None
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{name} is no directory; expected a checkpoint's, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=PATTERNS)
    except Exception as error:  # no network has many exceptions; the cache answers for all of them
        try:
            found = snapshot_download(name, revision=revision, local_files_only=True)
        except Exception:
            at = f" at revision {revision}" if revision else ""
            raise CheckpointError(
                f"{name} is no directory, and the hub and its cache have no {name}{at}: {error}"
            ) from error
    return Path(found), Path(found).name


def read(
    name: str,
    heads: Heads | None = None,
    pooling: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
) -> Checkpoint:
    """Find a checkpoint and read all but its weights.

    Args:
        name: a directory or a hub id.
        heads: to export; None is all three.
        pooling: cls or mean; None reads sentence-transformers' 1_Pooling, else cls.
        revision: branch, tag or commit of a hub id.
        max_length: lowers the model's own.

    Raises:
        CheckpointError: a file is missing or unreadable, or the architecture is not supported.
        InputError: an option does not fit the checkpoint.
    """
    path, commit = resolve(name, revision)
    trunk = read_trunk(path)
    heads = Heads.ALL if heads is None else heads
    pooling = pooling or declared_pooling(path) or "cls"
    if pooling not in ("cls", "mean"):
        raise InputError(f"pooling is {pooling!r}, expected cls or mean")
    for head in heads & ~Heads.DENSE:
        file = path / HEAD_FILES[head]
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: the {head.names[0]} head cannot be exported. If this "
                "checkpoint has only a dense head, pass --heads dense"
            )
    longest = min(trunk.max_length, 8192) if max_length is None else max_length
    if not 3 <= longest <= trunk.max_length:
        raise InputError(
            f"max_length is {longest}, expected 3 to {trunk.max_length} (position embeddings)"
        )
    return Checkpoint(path, name, commit, trunk, heads, pooling, longest)


def read_trunk(path: Path) -> Trunk:
    """Read config.json."""
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {path} is not a checkpoint")
    config = read_json(file)
    try:
        kind = config["model_type"]
        if kind not in TRUNKS:
            raise CheckpointError(f"{file}: model_type is {kind!r}, expected {', '.join(TRUNKS)}")
        for key, expected in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if config.get(key, expected) != expected:
                raise CheckpointError(f"{file}: {key} is {config[key]!r}, expected {expected!r}")
        trunk = Trunk(
            architecture=kind,
            vocab=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            ffn=config["intermediate_size"],
            positions=config["max_position_embeddings"],
            types=config["type_vocab_size"],
            epsilon=config.get("layer_norm_eps", 1e-12),
            pad_id=config["pad_token_id"],
        )
        sizes = (trunk.vocab, trunk.hidden, trunk.layers, trunk.heads, trunk.ffn, trunk.types)
        if min(sizes) < 1 or trunk.pad_id < 0 or trunk.max_length < 3 or trunk.epsilon <= 0:
            raise ValueError(f"a size is too small: {trunk}")
        if trunk.hidden % trunk.heads:
            raise ValueError(f"hidden_size {trunk.hidden} is no multiple of {trunk.heads} heads")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}") from error
    return trunk


def declared_pooling(path: Path) -> str | None:
    """Return the pooling that sentence-transformers' files declare, if they are there.

    Raises:
        CheckpointError: they declare another, or a step that m3rt does not have.
    """
    modules, file = path / "modules.json", path / "1_Pooling" / "config.json"
    steps = read_json(modules) if modules.is_file() else []
    kinds = {str(step["type"]).rpartition(".")[2] for step in steps}
    if unknown := kinds - MODULES:
        raise CheckpointError(
            f"{modules} has {', '.join(sorted(unknown))}, which m3rt cannot export; to export "
            "the encoder without it, pass --pooling"
        )
    if not file.is_file():
        return None
    declared = read_json(file)
    if "pooling_mode" in declared:  # one name in new versions, one flag per mode in old ones
        modes = [declared["pooling_mode"]]
    else:
        on = [key for key in declared if key.startswith("pooling_mode_") and declared[key]]
        modes = [POOLINGS.get(key, key) for key in on]
    if len(modes) != 1 or modes[0] not in POOLINGS.values():
        raise CheckpointError(f"{file}: pooling is {modes}, expected cls or mean")
    return str(modes[0])


def read_weights(checkpoint: Checkpoint) -> State:
    """Return trunk and heads as float32, under the names of export.model.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or holds NaN or Inf.
    """
    state: State = {}
    for file in shards(checkpoint.path):
        for name, value in load(file).items():
            # a classification or language model keeps its encoder under a prefix
            for prefix in ("roberta.", "bert.", "model."):
                name = name.removeprefix(prefix)
            if name.startswith(("embeddings.", "encoder.")) and not name.endswith("_ids"):
                state[name] = value
    for head in checkpoint.heads & ~Heads.DENSE:
        file = checkpoint.path / HEAD_FILES[head]
        for name, value in load(file).items():
            state[f"{file.stem}.{name}"] = value
    if not state:
        raise CheckpointError(f"{checkpoint.path} holds no encoder weights")
    for name, value in state.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{name} is {value.dtype}, expected floating point")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} holds NaN or Inf: the checkpoint is damaged")
        state[name] = value.float()
    return state


def shards(path: Path) -> list[Path]:
    """Return the files of the trunk's weights."""
    for name in WEIGHTS:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            table = read_json(index)
            try:
                return [path / file for file in sorted(set(table["weight_map"].values()))]
            except (KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} is damaged: {error!r}") from error
    raise CheckpointError(f"{path} has neither {' nor '.join(WEIGHTS)}")


def load(file: Path) -> State:
    """Read one file of tensors, without running code from it."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # files from before torch 1.6 are no zip archives and cannot be mapped
        mapped = zipfile.is_zipfile(file)
        state = dict(torch.load(file, map_location="cpu", weights_only=True, mmap=mapped))
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("expected names and tensors")
        return state
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # pickle.UnpicklingError and what it wraps
        raise CheckpointError(f"{file} is not a file of tensors: {error}") from error


def read_json(file: Path) -> Any:
    """Read a JSON file of a checkpoint."""
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
