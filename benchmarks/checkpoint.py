"""Random M3 checkpoints of any size, laid out as BAAI/bge-m3 is, or BAAI/bge-reranker-v2-m3.

    python -m benchmarks.checkpoint OUT                      the full size, 568M parameters
    python -m benchmarks.checkpoint OUT --hidden 64 --layers 2 ...
    python -m benchmarks.checkpoint OUT --reranker

Weights are random (seeded): right for speed, memory and parity, useless for retrieval. The
tokenizer is the real one where there is one, else a small Unigram one trained on the sentences
of the parity gate.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tokenizers
import torch
import typer
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from m3rt.export.samples import sentences

SPREAD = 3.0  # of a reranker's scores, about
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a checkpoint; the defaults are BGE-M3's."""

    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    ffn: int = 4096
    colbert_dim: int | None = None  # None: the hidden size
    positions: int = 8194


TINY = Shape(hidden=64, layers=2, heads=4, ffn=128)


def make(
    out: Path,
    shape: Shape = TINY,
    tokenizer_dir: Path | None = None,
    seed: int = 0,
    std: float = 0.02,
    position_std: float = 0.02,
    reranker: bool = False,
) -> Path:
    """Write a checkpoint directory.

    Args:
        out: directory to write; its files are replaced.
        shape: sizes.
        tokenizer_dir: holds tokenizer.json and its configs; None trains a small one.
        seed: of the weights.
        std: standard deviation of the weights of linear layers and embeddings.
        position_std: of the position embeddings; less lets vectors say more of the token.
        reranker: with a classifier of one label, in the place of the three heads.
    """
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is None:
        train_tokenizer(out)
    else:
        for file in tokenizer_dir.iterdir():
            if file.name.endswith(".json") and file.name != "config.json":
                shutil.copy(file, out / file.name)
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        initializer_range=std,
        architectures=["XLMRobertaModel"],
    )
    torch.manual_seed(seed)
    model: torch.nn.Module
    if reranker:
        config.architectures = ["XLMRobertaForSequenceClassification"]
        config.num_labels = 1
        model = XLMRobertaForSequenceClassification(config).eval()
    else:
        model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        # a fresh model has zero biases and unit gains, which would hide mistakes with them
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
            elif "LayerNorm.weight" in name:
                parameter.normal_(1, 0.1)
            elif "position_embeddings" in name:
                parameter.normal_(0, position_std)
            elif name.startswith("classifier"):
                # scores spread over some units, as those of trained weights do
                parameter.normal_(0, SPREAD / shape.hidden**0.5)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(out)
    if reranker:
        return out
    for name, width in (("sparse", 1), ("colbert", shape.colbert_dim or shape.hidden)):
        linear = torch.nn.Linear(shape.hidden, width)
        torch.save(linear.state_dict(), out / f"{name}_linear.pt")
    return out


def train_tokenizer(out: Path, vocab: int = 2000) -> None:
    """Train a Unigram tokenizer with XLM-R's special ids on the sentences of the parity gate."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab,
        special_tokens=[*SPECIALS, "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    state = json.loads(tokenizer.to_str())
    # <mask> stands last, as in XLM-R
    pieces = state["model"]["vocab"]
    state["model"]["vocab"] = [p for p in pieces if p[0] != "<mask>"] + [["<mask>", 0.0]]
    state["model"]["unk_id"] = 3
    state["added_tokens"] = [
        token
        | {"id": len(pieces) - 1 if token["content"] == "<mask>" else token["id"]}
        | {"lstrip": token["content"] == "<mask>"}
        for token in state["added_tokens"]
    ]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(out / "tokenizer.json"))
    names = {
        "bos": "<s>",
        "cls": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "sep": "</s>",
        "unk": "<unk>",
    }
    special = {f"{name}_token": token for name, token in names.items()} | {"mask_token": "<mask>"}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {**special, "tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 8192},
            indent=2,
        )
    )


def main(
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of tokenizer.json.")] = None,
    hidden: int = 1024,
    layers: int = 24,
    heads: int = 16,
    ffn: int = 4096,
    colbert_dim: int | None = None,
    seed: int = 0,
    reranker: bool = False,
) -> None:
    """Write a random checkpoint of BGE-M3's shape, or of another."""
    shape = Shape(hidden, layers, heads, ffn, colbert_dim)
    make(out, shape, tokenizer, seed, reranker=reranker)


if __name__ == "__main__":
    typer.run(main)
