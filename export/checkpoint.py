"""Reading an M3 checkpoint: the trunk, both head files, the tokenizer; or a reranker's.

A checkpoint is a directory laid out as BAAI/bge-m3 is (config.json, model.safetensors or
pytorch_model.bin, sparse_linear.pt, colbert_linear.pt, tokenizer files), or the hub id of one.
FlagEmbedding gives random heads, with one line in the log, where a head file is missing; here
that is an error.

A reranker is laid out as BAAI/bge-reranker-v2-m3 is: one checkpoint of transformers'
XLMRobertaForSequenceClassification, or Roberta's, with one label.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from m3rt import mcls
from m3rt.errors import CheckpointError, InputError
from m3rt.export import declared
from m3rt.export.declared import read_json
from m3rt.types import Heads, Pooling

TRUNKS = ("xlm-roberta", "roberta", "bert")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
RERANKERS = ("XLMRobertaForSequenceClassification", "RobertaForSequenceClassification")
LEAST_TEXT, LEAST_PAIR = 3, 6  # tokens: special ones, and one of each text
CLASSIFIER = "classifier."  # what the names of a reranker's own tensors begin with
HEAD_FILES = {Heads.SPARSE: "sparse_linear.pt", Heads.COLBERT: "colbert_linear.pt"}
PATTERNS = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.pt", "*.model", "*.txt"]

LONGEST = 8192  # tokens of a text, where nothing else is said

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
    pooling: str  # see m3rt.types.Pooling
    max_length: int
    lowercase: bool = False  # texts, before the tokenizer has its own way

    @property
    def cls_interval(self) -> int | None:
        """Tokens from one CLS token to the next, for mcls pooling."""
        return mcls.INTERVAL if self.pooling == Pooling.MCLS else None

    @property
    def weight_files(self) -> list[Path]:
        """Every file that weights are read from."""
        heads = [file for head, file in HEAD_FILES.items() if head in self.heads]
        return shards(self.path) + [self.path / file for file in heads]


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
        heads: to export; None is all three, or the score of a reranker.
        pooling: of m3rt.types.Pooling; None is what sentence-transformers' files say, else cls.
        revision: branch, tag or commit of a hub id.
        max_length: up to what the position embeddings hold; None is what sentence-transformers'
            files say, else as long as they do, at most 8192.

    Raises:
        CheckpointError: a file is missing or unreadable, or the architecture is not supported.
        InputError: an option does not fit the checkpoint.
    """
    path, commit = resolve(name, revision)
    fed = declared.encoder(path)
    trunk = read_trunk(path)
    if heads is None:
        classifies = any(name.endswith("ForSequenceClassification") for name in architectures(path))
        heads = Heads.SCORE if classifies else Heads.ALL
    if Heads.SCORE in heads:
        check_reranker(path, heads, pooling)
        pooling = "cls"  # whatever sentence-transformers' files declare
    pooling = pooling or declared.pooling(path) or "cls"
    if pooling not in list(Pooling):
        raise InputError(f"pooling is {pooling!r}, expected {', '.join(Pooling)}")
    for head, name_of_file in HEAD_FILES.items():
        file = path / name_of_file
        if head in heads and not file.is_file():
            raise CheckpointError(
                f"{file} is missing: the {head.names[0]} head cannot be exported. If this "
                "checkpoint has only a dense head, pass --heads dense"
            )
    own = min(trunk.max_length, fed.max_length or LONGEST, LONGEST)
    longest = own if max_length is None else max_length
    least = LEAST_PAIR if Heads.SCORE in heads else LEAST_TEXT
    if not least <= longest <= trunk.max_length:
        raise InputError(
            f"max_length is {longest}, expected {least} to {trunk.max_length} (position embeddings)"
        )
    return Checkpoint(path, name, commit, trunk, heads, pooling, longest, fed.lowercase)


def architectures(path: Path) -> list[str]:
    """Return the classes of transformers that config.json names."""
    config = read_json(path / "config.json")
    named = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in named] if isinstance(named, list) else []


def check_reranker(path: Path, heads: Heads, pooling: str | None) -> None:
    """Refuse a checkpoint or options that a score cannot be exported from."""
    if heads != Heads.SCORE:
        raise InputError(
            f"heads are {', '.join(heads.names)}: a score is a reranker's only head; pass score "
            "alone"
        )
    if pooling not in (None, "cls"):
        raise InputError(f"pooling is {pooling!r}: a reranker's score is of the first token, cls")
    file, found = path / "config.json", architectures(path)
    alone = "to export its encoder alone, pass --heads dense"
    if not set(found) & set(RERANKERS):
        raise CheckpointError(
            f"{file}: architectures is {found}, expected a reranker's, {' or '.join(RERANKERS)} "
            f"(BERT's needs a pooler and token types, which m3rt does not have); {alone}"
        )
    config = read_json(file)
    # transformers writes the labels' names, and takes two where there are none
    labels = config.get("num_labels") or len(config.get("id2label") or "01")
    if labels != 1:
        raise CheckpointError(f"{file}: the model has {labels} labels, a reranker has 1; {alone}")


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


def read_weights(checkpoint: Checkpoint) -> State:
    """Return trunk and heads as float32, under the names of export.model.

    What is neither is left out: a pooler, or a classifier that is not exported.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or holds NaN or Inf.
    """
    state: State = {}
    own = (CLASSIFIER,) if Heads.SCORE in checkpoint.heads else ()
    wanted = ("embeddings.", "encoder.", *own)
    for file in shards(checkpoint.path):
        for name, value in load(file).items():
            # a classification or language model keeps its encoder under a prefix
            for prefix in ("roberta.", "bert.", "model."):
                name = name.removeprefix(prefix)
            if name.startswith(wanted) and not name.endswith("_ids"):
                state[name] = value
    for head, name_of_file in HEAD_FILES.items():
        if head in checkpoint.heads:
            file = checkpoint.path / name_of_file
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
