"""How many of an encoder's products fp8 may have before its dense vectors move, and what that buys.

    python -m benchmarks.fp8 --json benchmarks/results/fp8.json

The best case for W8A8 in E4M3: a scale for each token and one for each output channel, both from
the values themselves, sums in float32. Every linear layer of the encoder is rounded alone; then all
are, and layers go back to float32, the most harmful for their operations first, until the worst
dense cosine reaches the goal. The speed is a bound: products of fp8 take half the time of those of
float16, nothing else changes, and rounding costs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModel, AutoTokenizer

from benchmarks import machine
from m3rt import sample

GOAL = 0.999  # the worst dense cosine
LARGEST = 448.0  # of E4M3
# Of a step of 512-token texts in float16 on an H200, by arithmetic: 0.765 of 1.18 µs a token.
PRODUCTS = 0.65
SMALL = Path(__file__).parent / "small" / "checkpoint"


class Rounded(torch.nn.Module):
    """A linear layer whose input and weight can be rounded."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.exact, self.bias = layer.weight, layer.bias
        self.weight = rounded(layer.weight)
        self.on = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply, and add the bias."""
        if not self.on:
            return torch.nn.functional.linear(x, self.exact, self.bias)
        return torch.nn.functional.linear(rounded(x), self.weight, self.bias)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round rows to E4M3, each with a scale of its own."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def replace(module: torch.nn.Module) -> list[Rounded]:
    """Replace every linear layer; return the new ones."""
    found = []
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear):
            new = Rounded(child)
            setattr(module, name, new)
            found.append(new)
        else:
            found += replace(child)
    return found


@torch.inference_mode()
def vectors(model: Any, texts: list[Any], mean: bool) -> torch.Tensor:
    """Return unit vectors, one text at a time."""
    found = []
    for text in texts:
        hidden = model(**text).last_hidden_state[0]
        found.append(torch.nn.functional.normalize(hidden.mean(0) if mean else hidden[0], dim=0))
    return torch.stack(found)


def measure(path: Path, mean: bool) -> dict[str, Any]:
    """Measure one encoder."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    texts = [
        tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        for part in sample.texts()
        for text in part
    ]
    expected = vectors(model, texts, mean)
    layers = replace(model.encoder)
    sizes = [layer.exact.numel() for layer in layers]

    def cosines() -> torch.Tensor:
        return (vectors(model, texts, mean) * expected).sum(-1)

    harm = []
    for layer in layers:
        layer.on = True
        harm.append(float(1 - cosines().mean()))
        layer.on = False
    for layer in layers:
        layer.on = True
    steps = []
    for i in [-1, *sorted(range(len(layers)), key=lambda i: -harm[i] / sizes[i])]:
        if i >= 0:
            layers[i].on = False
        found = cosines()
        share = sum(size for size, layer in zip(sizes, layers, strict=True) if layer.on) / sum(
            sizes
        )
        steps.append(
            {
                "share_in_fp8": round(share, 4),
                "worst_cosine": round(float(found.min()), 6),
                "mean_cosine": round(float(found.mean()), 6),
                "faster_by_at_most": round(1 / (1 - PRODUCTS * share / 2), 3),
            }
        )
        if steps[-1]["worst_cosine"] >= GOAL:
            break
    return {"texts": len(texts), "layers": len(layers), "all": steps[0], "at_goal": steps[-1]}


def main(
    json_file: Annotated[Path, typer.Option("--json", help="File for the result.")],
    minilm: Annotated[Path | None, typer.Option(help="all-MiniLM-L6-v2, a directory.")] = None,
) -> None:
    """Measure the trained encoders that are here."""
    found: dict[str, Any] = {"machine": machine.describe(), "goal": GOAL, "encoders": {}}
    found["encoders"]["benchmarks/small"] = measure(SMALL, mean=False)
    if minilm is not None:
        found["encoders"]["all-MiniLM-L6-v2"] = measure(minilm, mean=True)
    json_file.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found["encoders"], indent=2))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
