"""The GPU engines on a random full-size checkpoint: parity with the checkpoint, and speed.

    python -m benchmarks.gpu OUT                               on a GPU machine
    python -m benchmarks.gpu OUT --engines cpu-padded --tiny   anywhere, to see that it runs

OUT/gpu.json holds the machine, and for each engine that can run there what its build says, the
parity figures, and tokens/s over length, beside torch's encoder (scaled-dot-product attention,
dense vectors only) on the same device. It is written after each engine; one that cannot run, or
fails, is there with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
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
from m3rt import artifact, build, export, parity
from m3rt import engines as m3rt_engines
from m3rt.engines.trt.backend import EAGER
from m3rt.types import Heads, Tokens, ragged

SPECS = (
    *("cuda", "tensorrt:fp16", "tensorrt:int8", "tensorrt:fp8", "tensorrt:bf16"),
    *("tensorrt-rtx:fp16", "tensorrt-rtx:int8", "tensorrt-rtx:fp8", "tensorrt-rtx:bf16"),
)
LENGTHS = (16, 128, 512, 2048, 8192)
TOKENS = 16384  # of one step

Ids = np.ndarray[Any, np.dtype[np.int64]]  # (n, length)


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


def ids_of(length: int, budget: int) -> Ids:
    """Return random ids (n, length) of about so many tokens in all."""
    ids = np.random.default_rng(length).integers(4, 700, (max(1, budget // length), length))
    ids[:, 0], ids[:, -1] = 0, 2
    return ids


def ours(model: m3rt.M3, ids: Ids, heads: Heads) -> float:
    """Return tokens/s of m3rt, post-processing included, tokenising not."""
    rows = [row.astype(np.int32) for row in ids]
    tokens = Tokens(ragged(rows, np.int32), np.zeros(len(rows), np.bool_))
    return rate(lambda: model.encode_tokens(tokens, heads), ids.size)


@torch.inference_mode()
def theirs(checkpoint: Path, ids: Ids, dtype: torch.dtype) -> float:
    """Return tokens/s of torch, from ids on the host to dense vectors on the host."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = XLMRobertaModel.from_pretrained(checkpoint, add_pooling_layer=False, dtype=dtype)
    model.to(device).eval()

    def run() -> Any:
        hidden = model(torch.from_numpy(ids).to(device)).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(hidden, dim=-1).float().cpu()

    return rate(run, ids.size)


def measured(path: Path, spec: str, texts: Mapping[int, Ids]) -> dict[str, Any]:
    """Build an engine if need be, compare it with the checkpoint, and measure its speed."""
    found: dict[str, Any] = {}
    began = time.perf_counter()
    if spec.startswith("tensorrt"):
        _, made = build.run(path, spec)
        found["build"] = dataclasses.asdict(made.manifest.builds[spec])
        found["build_seconds"] = round(time.perf_counter() - began, 1)
    began = time.perf_counter()
    model = m3rt.load(path, spec)
    found["load_seconds"] = round(time.perf_counter() - began, 2)
    found["parity"] = parity.verify(artifact.read(path), spec)
    found["tokens_per_second"] = {
        length: {"all heads": ours(model, ids, Heads.ALL), "dense": ours(model, ids, Heads.DENSE)}
        for length, ids in texts.items()
    }
    return found


def main(
    out: Annotated[Path, typer.Argument(help="Folder for gpu.json.")],
    engines: Annotated[str, typer.Option(help="Engines, joined by commas.")] = ",".join(SPECS),
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network, short texts.")] = False,
) -> None:
    """Measure the engines on this machine."""
    lengths, budget = (LENGTHS[:2], 256) if tiny else (LENGTHS, TOKENS)
    texts = {length: ids_of(length, budget) for length in lengths}
    found: dict[str, Any] = {"machine": machine.describe(), "engines": {}}
    if torch.cuda.is_available():
        found["machine"]["gpu"] = torch.cuda.get_device_name()
    out.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        (out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")

    os.environ[EAGER] = "1"
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make(Path(folder) / "checkpoint", TINY if tiny else Shape())
        recipe = export.Recipe(max_length=300 if tiny else None)
        path = export.run(str(checkpoint), Path(folder) / "model", recipe).path
        for spec in engines.split(","):
            probe = m3rt_engines.probe(spec.partition(":")[0])
            try:
                found["engines"][spec] = (
                    measured(path, spec, texts) if probe.ready else {"cannot run": probe.detail}
                )
            except m3rt.M3Error as error:  # the others are still of interest
                found["engines"][spec] = {"failed": str(error)}
            keep()
        found["torch"] = {
            length: {
                "float32, dense": theirs(checkpoint, ids, torch.float32),
                "float16, dense": theirs(checkpoint, ids, torch.float16),
            }
            for length, ids in texts.items()
        }
        keep()
    print(json.dumps(found, indent=2))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
