"""The full-size model's start, memory and size on disk, for every engine on a CPU.

    python -m benchmarks.footprint --data SHARED_DATA --work FOLDER --json RESULT.json

On random weights of BGE-M3's shape and its real tokenizer; made, exported and built where FOLDER
does not have them yet (12 GiB of memory, 9 GB of disk, half an hour on two cores). Each engine
runs in a process of its own: it loads, embeds a query, and then a text of 8192 tokens with all
heads. Files are in the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks import machine
from benchmarks.checkpoint import Shape, make
from m3rt import artifact, build, export

SPECS = ("cpu:fp32", "openvino:bf16", "openvino:int8", "cpu:int8")
GB = 1e9
MEASURE = """
import json, sys, time
import m3rt

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

began = time.perf_counter()
model = m3rt.load(sys.argv[1], sys.argv[2])
loaded = time.perf_counter()
model.encode(["Which river flows through Paris?"])
first = time.perf_counter()
result = {"load_seconds": loaded - began, "first_vector_seconds": first - began,
          "query_peak_bytes": peak()}
if sys.argv[3] == "long":
    found = model.encode(["word " * 8190])
    assert found.n_tokens[0] == 8192 and len(found.colbert[0]) == 8191
    result |= {"long_seconds": time.perf_counter() - first, "long_peak_bytes": peak()}
print(json.dumps(result))
"""


def measured(model: Path, spec: str, what: str) -> dict[str, float]:
    """Measure an engine once, in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(model), spec, what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def footprint(model: Path, spec: str, rounds: int) -> dict[str, Any]:
    """Return seconds, peak memory and size of one engine."""
    manifest = artifact.read(model).manifest
    starts = [measured(model, spec, "start") for _ in range(rounds)]
    entry = manifest.builds.get(spec)
    names = entry.files if entry else ("model.onnx.data", manifest.graphs["packed"])
    return {
        **measured(model, spec, "long"),
        "first_vector_seconds": [round(start["first_vector_seconds"], 2) for start in starts],
        "disk_bytes": sum(manifest.files[name].bytes for name in names),
        "parity": dict(entry.parity if entry else manifest.parity),
    }


def full_size(data: Path, work: Path) -> Path:
    """Return the full-size model directory, made and exported where it is not there."""
    checkpoint, model = work / "checkpoint", work / "model"
    if not checkpoint.exists():
        configs = work / "tokenizer"
        configs.mkdir(parents=True, exist_ok=True)
        for file in [data / "tokenizer" / "tokenizer.json", *(data / "config").iterdir()]:
            if not (configs / file.name).exists():
                (configs / file.name).symlink_to(file.resolve())
        make(checkpoint, Shape(), configs)
    if not model.exists():
        export.run(str(checkpoint), model)
    return model


def prepare(data: Path, work: Path) -> Path:
    """Return the full-size model directory, built for every engine."""
    model = full_size(data, work)
    for spec in SPECS:
        if spec != "cpu:fp32" and spec not in artifact.read(model).manifest.builds:
            build.run(model, spec)
    return model


def main(
    data: Annotated[Path, typer.Option(help="Shared data: tokenizer, config.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    work: Annotated[Path, typer.Option(help="Keeps checkpoint and model: 9 GB.")],
    rounds: int = 3,
) -> None:
    """Measure start, memory and size of every engine."""
    model = prepare(data, work)
    found = {
        "machine": machine.describe(),
        "engines": {spec: footprint(model, spec, rounds) for spec in SPECS},
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(markdown(found))  # noqa: T201


def markdown(found: dict[str, Any]) -> str:
    """Return the README's table of a result."""
    rows = [
        f"| `{spec}` | {row['disk_bytes'] / 1e6:.0f} MB | "
        f"{median(row['first_vector_seconds']):.1f} s | {row['query_peak_bytes'] / GB:.1f} GB | "
        f"{row['long_peak_bytes'] / GB:.1f} GB | {row['long_seconds']:.0f} s |"
        for spec, row in found["engines"].items()
    ]
    return "\n".join(
        [
            "| engine | weights on disk | load to first vector | peak memory, a query | "
            "peak memory, 8192 tokens | time, 8192 tokens |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


if __name__ == "__main__":
    typer.run(main)
