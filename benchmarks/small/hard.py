"""The same function as a checkpoint's, with activations that are hard to round to int8.

    python -m benchmarks.small.hard CHECKPOINT OUT

Small networks have tame activations; large ones have channels that reach far beyond the others.
Two changes that the network undoes by itself make them so. Some channels of every value are scaled
up, and the projection that reads them down. And every LayerNorm but the last adds the same number
to all channels, which the next LayerNorm takes away, and the biases of the layers that read it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import typer
from safetensors.torch import load_file, save_file

SCALE = 64.0  # a power of two: no bit of a weight is lost
EVERY = 32  # one channel of so many
RAISED = 4.0  # what LayerNorm adds; its outputs have a standard deviation of about one


def harden(checkpoint: Path, out: Path) -> Path:
    """Write a checkpoint of the same function; weights become float32."""
    shutil.copytree(checkpoint, out)
    layers = json.loads((out / "config.json").read_text("utf-8"))["num_hidden_layers"]
    file = out / "model.safetensors"
    state = {name: value.float() for name, value in load_file(file).items()}
    for i in range(layers):
        name = f"encoder.layer.{i}.attention"
        for part in ("weight", "bias"):
            state[f"{name}.self.value.{part}"][::EVERY] *= SCALE
        state[f"{name}.output.dense.weight"][:, ::EVERY] /= SCALE
    raise_by(state, "embeddings.LayerNorm", readers(0))
    for i in range(layers):
        inner = f"encoder.layer.{i}.intermediate.dense"
        raise_by(state, f"encoder.layer.{i}.attention.output.LayerNorm", [inner])
        if i + 1 < layers:
            raise_by(state, f"encoder.layer.{i}.output.LayerNorm", readers(i + 1))
    save_file(state, file, metadata={"format": "pt"})
    return out


def readers(layer: int) -> list[str]:
    """Return the linear layers that read what flows into a layer."""
    return [f"encoder.layer.{layer}.attention.self.{name}" for name in ("query", "key", "value")]


def raise_by(state: dict[str, torch.Tensor], norm: str, linear: list[str]) -> None:
    """Let a LayerNorm add RAISED to all channels, and its readers take it away."""
    state[f"{norm}.bias"] += RAISED
    for name in linear:
        state[f"{name}.bias"] -= RAISED * state[f"{name}.weight"].sum(1)


if __name__ == "__main__":
    typer.run(harden)
