"""Train the small M3, with one command, on two cores.

python -m benchmarks.small.train --data SHARED_DATA --out OUT
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Annotated

import tokenizers
import torch
import typer
from safetensors.torch import save_file
from torch.nn.utils import parametrize

from benchmarks.small import texts, tokenizer
from benchmarks.small.network import TEMPERATURE, Network, loss

VOCAB, HIDDEN, LAYERS, HEADS, FFN = 14000, 128, 4, 4, 512
RATE = 6e-4
WARM = 0.03  # of the steps
LENGTH = {"abstract": 224, "long": 2048}  # most tokens of a passage
# with so few sentences a language most translations cannot be known: that must teach no doubt
FAINT = {"translation": (0.1, 0.3)}  # temperature and weight of the loss
CLOSING = 2  # </s>
EVERY = 50  # steps between lines of the log


def ids_of(backend: tokenizers.Tokenizer, lines: list[str], length: int) -> list[list[int]]:
    """Return the ids of texts, cut to a length."""
    rows = [found.ids for found in backend.encode_batch(lines)]
    return [row if len(row) <= length else [*row[: length - 1], CLOSING] for row in rows]


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: up, then down to nothing."""
    warm = WARM * steps
    return min((step + 1) / warm, (steps - step) / (steps - warm))


def train(data: Path, out: Path, steps: int, seed: int, vocab: int = VOCAB) -> Network:
    """Train, and write the checkpoint."""
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    source = texts.read(data)
    backend = tokenizer.train(source.lines(), vocab, out)
    sampler = texts.Sampler(source, seed)
    shifts = random.Random(seed)
    network = Network(vocab, HIDDEN, LAYERS, HEADS, FFN).train()
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.98),  # most words are rare: their second moment must not stay behind
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    began = time.monotonic()
    seen: dict[str, list[float]] = {}
    for step in range(steps):
        kind, pairs = sampler.batch()
        length = LENGTH.get(kind, 128)
        queries = ids_of(backend, [query for query, _ in pairs], 48)
        passages = ids_of(backend, [passage for _, passage in pairs], length)
        # so that late positions are met, too
        shift = shifts.randint(0, 8190 - length) if shifts.random() < 0.3 else 0
        temperature, weight = FAINT.get(kind, (TEMPERATURE, 1.0))
        with parametrize.cached():
            value, parts = loss(network(queries), network(passages, shift), temperature)
        optimizer.zero_grad()
        torch.autograd.backward(value * weight)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for name, part in parts.items():
            seen.setdefault(f"{kind} {name}", []).append(part)
        if (step + 1) % EVERY == 0:
            means = "  ".join(f"{k} {sum(v) / len(v):.2f}" for k, v in sorted(seen.items()))
            typer.echo(f"{step + 1} of {steps}, {time.monotonic() - began:.0f} s  {means}")
            seen.clear()
    write(network.eval(), out)
    return network


def write(network: Network, out: Path) -> None:
    """Write weights in half precision, laid out as BAAI/bge-m3 is."""
    trunk = network.trunk
    state = {n: v for n, v in trunk.state_dict().items() if "parametrizations" not in n}
    state["embeddings.position_embeddings.weight"] = trunk.embeddings.position_embeddings.weight
    halves = {name: value.detach().half().contiguous() for name, value in state.items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    trunk.config.save_pretrained(out)
    for name in ("sparse_linear", "colbert_linear"):
        head = getattr(network, name)
        torch.save({k: v.half() for k, v in head.state_dict().items()}, out / f"{name}.pt")


def main(
    data: Annotated[Path, typer.Option(help="Directory of text/ and ir/.")] = Path(
        "../shared/data"
    ),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path(
        "benchmarks/small/checkpoint"
    ),
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Train the small M3."""
    train(data, out, steps, seed)


if __name__ == "__main__":
    typer.run(main)
