"""Building TensorRT-RTX engines of the full-size model on a CPU: time, memory, size, kernels.

    python -m benchmarks.tensorrt --data SHARED_DATA --work FOLDER --json RESULT.json

On random weights of BGE-M3's shape and its real tokenizer; made and exported where FOLDER does not
have them yet (12 GiB of memory, 6 GB of disk, some fifteen minutes on two cores). Each engine is
built in a process of its own, from the exported graph to the plan, with the default profiles:
memory is that process's peak. The scales of int8 and fp8 come from a few texts, which is enough
for that and for nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from m3rt import artifact, parity
from m3rt.artifact import Artifact
from m3rt.doctor import version
from m3rt.export import quantize, typed
from m3rt.export.quantize import Recipe
from m3rt.parity import Reference
from m3rt.trial import EIGHT_BITS

CASES = (
    ("fp16", "sm86,sm89,sm120"),
    ("bf16", "sm86,sm89,sm120"),
    ("int8", "sm86"),
    ("int8", "sm86,sm89,sm120"),
    ("fp8", "sm89"),
    ("fp8", "sm120"),
)
WHOLE = ("tensorrt-rtx:fp16", "sm89")  # with its certificate
TEXTS = 12  # to choose scales with, of at most so many tokens
LENGTH = 64
BARS = Progress(disable=True)
GB = 1e9


def recipe(made: Artifact, precision: str, work: Path) -> Recipe:
    """Return how to quantise; decided once, for it is no part of what is measured here."""
    ids = Reference.read(made.path / parity.REFERENCE).ids
    few = ids.take([i for i, length in enumerate(ids.lengths) if length <= LENGTH][:TEXTS])
    grid = quantize.grid("typed", precision)
    key = quantize.key_of(made, grid, few)
    found = Recipe.read(work, grid, key)
    if found is None:
        found = quantize.decide(made, grid, few, BARS)
        found.save(work, key)
    return found


def measured(model: Path, work: Path, precision: str, target: str) -> dict[str, Any]:
    """Build one engine, in this process."""
    import tensorrt_rtx as trt

    from m3rt.engines.trt import builder, kernels
    from m3rt.engines.trt.shaping import Shaping, parse_target, resolve

    made = artifact.read(model)
    how = recipe(made, precision, work) if precision in EIGHT_BITS else None
    began = time.perf_counter()
    graph = typed.write(made, precision, how, (), BARS)
    written = time.perf_counter()
    profiles = resolve(Shaping(), made.manifest.max_length)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        plan = Path(folder) / "plan"
        built = builder.build(trt, graph, profiles, parse_target(target), plan, None, BARS)
        seconds = time.perf_counter() - written
        most = peak()
        size, found = plan.stat().st_size, kernels.read(plan)
    assert found is not None
    layers = made.manifest.layers
    return {
        "graph_seconds": round(written - began, 1),
        "build_seconds": round(seconds, 1),
        "peak_bytes": most,
        "plan_bytes": size,
        "weight_bytes": built.weights,
        "profiles": [str(profile) for profile in profiles],
        "activation_bytes": list(built.memory),
        "fused_attentions": found.attentions,
        "expected_attentions": layers * len(profiles),
        "accumulators": sorted(found.accumulators),
        "kernels_a_pass": found.launches / len(profiles),
        "products": sorted({f"{'x'.join(p.inputs)}->{p.output}" for p in found.products}),
        "faults": list(kernels.faults(found, layers, len(profiles), precision, ())),
    }


def whole(model: Path, spec: str, target: str) -> dict[str, Any]:
    """Run m3rt build as a user would, certificate included."""
    command = [sys.executable, "-m", "m3rt.cli", "build", str(model), "--engine", spec]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--target", target, "--force"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"m3rt build {spec} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "engine": spec,
        "target": target,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_bytes": used.ru_maxrss * 1024,
        "dense_cosine": artifact.read(model).manifest.builds[spec].parity["dense"]["cosine_min"],
    }


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status["VmHWM"].split()[0]) * 1024


def main(
    data: Annotated[Path, typer.Option(help="Shared data: tokenizer, config.")],
    work: Annotated[Path, typer.Option(help="Keeps checkpoint and model: 6 GB.")],
    result: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
    only: Annotated[str | None, typer.Option(help="PRECISION:TARGET, in this process.")] = None,
) -> None:
    """Measure every build."""
    if only:
        precision, _, target = only.partition(":")
        print(json.dumps(measured(work / "model", work, precision, target)))  # noqa: T201
        return
    # they bring torch, whose memory is no part of a build
    from benchmarks import machine
    from benchmarks.footprint import full_size

    model = full_size(data, work)
    for precision in EIGHT_BITS:
        recipe(artifact.read(model), precision, work)
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "tensorrt_rtx": version("tensorrt-rtx"),
        "builds": {},
    }
    for precision, target in CASES:
        case = f"{precision}:{target}"
        command = [sys.executable, "-m", "benchmarks.tensorrt", "--only", case]
        command += ["--data", str(data), "--work", str(work)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found["builds"][case] = json.loads(done.stdout)
    found["whole"] = whole(model, *WHOLE)
    if result:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(markdown(found))  # noqa: T201


def markdown(found: dict[str, Any]) -> str:
    """Return the table of a result, as docs/tensorrt.md has it."""
    rows = [
        "| precision | for | build | peak memory | plan | weights | activations, 16384 tokens "
        "| kernels a pass | attention fused |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case, row in found["builds"].items():
        precision, _, target = case.partition(":")
        seconds = row["graph_seconds"] + row["build_seconds"]
        rows.append(
            f"| {precision} | {target.replace(',', ', ')} | {seconds:.0f} s "
            f"| {row['peak_bytes'] / GB:.2f} GB | {row['plan_bytes'] / 1e6:.0f} MB "
            f"| {row['weight_bytes'] / 1e6:.0f} MB | {max(row['activation_bytes']) / 1e6:.0f} MB "
            f"| {row['kernels_a_pass']:.0f} "
            f"| {row['fused_attentions']} of {row['expected_attentions']} |"
        )
    one = found["whole"]
    said = (
        f"The whole of `m3rt build` for `{one['engine']}`, with its certificate, took "
        f"{one['seconds']:.0f} s and {one['peak_bytes'] / GB:.1f} GB: the certificate needs the "
        "weights in float32."
    )
    return "\n".join([*rows, "", said])


if __name__ == "__main__":
    typer.run(main)
