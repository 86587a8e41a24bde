"""The GPU engine on a random full-size checkpoint: parity with the checkpoint, and speed.

    python -m benchmarks.gpu OUT                              on a GPU machine
    python -m benchmarks.gpu OUT --engine cpu-padded --tiny   anywhere, to see that it runs

OUT/gpu.json holds the machine, the parity figures, and tokens/s over length beside torch's
encoder (scaled-dot-product attention, dense vectors only) on the same device.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import XLMRobertaModel

import m3rt
from benchmarks import machine
from benchmarks.checkpoint import TINY, Shape, make
from m3rt import artifact, export, parity
from m3rt.types import Heads, Tokens, ragged

LENGTHS = (16, 128, 512, 2048, 8192)
TOKENS = 16384  # of one step


def rate(run: Callable[[], Any], tokens: int, rounds: int = 5) -> float:
    """Return the median tokens/s of some rounds, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        before = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    return round(tokens / median(seconds[1:]), 1)


def ids_of(length: int, budget: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return random ids (n, length) of about so many tokens in all."""
    ids = np.random.default_rng(length).integers(4, 700, (max(1, budget // length), length))
    ids[:, 0], ids[:, -1] = 0, 2
    return ids


def ours(model: m3rt.M3, ids: np.ndarray[Any, np.dtype[np.int64]], heads: Heads) -> float:
    """Return tokens/s of m3rt, post-processing included, tokenising not."""
    rows = [row.astype(np.int32) for row in ids]
    tokens = Tokens(ragged(rows, np.int32), np.zeros(len(rows), np.bool_))
    return rate(lambda: model.encode_tokens(tokens, heads), ids.size)


@torch.inference_mode()
def theirs(checkpoint: Path, ids: np.ndarray[Any, np.dtype[np.int64]], dtype: torch.dtype) -> float:
    """Return tokens/s of torch, from ids on the host to dense vectors on the host."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = XLMRobertaModel.from_pretrained(checkpoint, add_pooling_layer=False, dtype=dtype)
    model.to(device).eval()

    def run() -> Any:
        hidden = model(torch.from_numpy(ids).to(device)).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(hidden, dim=-1).float().cpu()

    return rate(run, ids.size)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for gpu.json.")],
    engine: Annotated[str, typer.Option(help="The engine to measure.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network, short texts.")] = False,
) -> None:
    """Measure an engine on this machine."""
    lengths, budget = (LENGTHS[:2], 256) if tiny else (LENGTHS, TOKENS)
    found: dict[str, Any] = {"machine": machine.describe(), "engine": engine}
    if torch.cuda.is_available():
        found["machine"]["gpu"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make(Path(folder) / "checkpoint", TINY if tiny else Shape())
        recipe = export.Recipe(max_length=300 if tiny else None)
        made = export.run(str(checkpoint), Path(folder) / "model", recipe)
        found["parity"] = parity.verify(artifact.read(made.path), engine)
        model = m3rt.load(made.path, engine)
        found["tokens_per_second"] = {
            str(length): {
                "m3rt, all heads": ours(model, ids, Heads.ALL),
                "m3rt, dense": ours(model, ids, Heads.DENSE),
                "torch float32, dense": theirs(checkpoint, ids, torch.float32),
                "torch float16, dense": theirs(checkpoint, ids, torch.float16),
            }
            for length in lengths
            for ids in [ids_of(length, budget)]
        }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
