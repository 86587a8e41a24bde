"""What the CPU engines' settings rest on: each choice beside its alternatives.

    python -m benchmarks.choices --data SHARED_DATA --model MODEL --json RESULT.json

Tokens in a step, streams, the fill of attention's rectangles, and the rounding of the number of
rows, on the mixed set of benchmarks.mixed with all heads. Every figure is a median over
rounds in which the alternatives take turns. MODEL is built for openvino:bf16, openvino:int8 and
cpu:int8; the full-size one takes ten minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

import m3rt
from benchmarks import machine
from benchmarks.mixed import mixed_set
from m3rt.engines import ov
from m3rt.plan import batches
from m3rt.types import Heads, Limits, Ragged, Tokens, ragged

SPECS = ("openvino:bf16", "openvino:int8", "cpu:int8")
STEPS = (128, 256, 512, 1024, 2048)


def in_turn(runs: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return the median tokens/s of each run, after a round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            tokens = run()
            if i:
                rates[name].append(tokens / (time.perf_counter() - began))
    return {name: round(median(found), 1) for name, found in rates.items()}


def with_limits(model: m3rt.M3, tokens: Ragged[np.int32], **changes: Any) -> Callable[[], int]:
    """Run the tokens with other limits than the engine's own."""
    limits: Limits = dataclasses.replace(model.engine.limits, **changes)

    def run() -> int:
        for batch in batches(tokens, limits):
            model.engine.run(batch, Heads.ALL)
        return len(tokens.values)

    return run


def whole(model: m3rt.M3, tokens: Tokens) -> Callable[[], int]:
    """Run the tokens as encode does."""

    def run() -> int:
        model.encode_tokens(tokens)
        return len(tokens.ids.values)

    return run


def fresh(model: m3rt.M3, rows: int) -> Callable[[], int]:
    """Run single texts of lengths that have not been seen, rounded up to multiples of rows."""
    lengths = iter(np.random.default_rng(rows).permutation(np.arange(300, 500)))

    def run() -> int:
        before, ov.ROWS = ov.ROWS, rows
        try:
            total = 0
            for _ in range(6):
                length = int(next(lengths))
                ids = ragged([np.arange(5, 5 + length, dtype=np.int32)], np.int32)
                model.encode_tokens(Tokens(ids, np.zeros(1, np.bool_)))
                total += length
            return total
        finally:
            ov.ROWS = before

    return run


def measure(path: Path, spec: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Measure the choices of one engine."""
    model = m3rt.load(path, spec)
    tokens = model.tokenize(texts)
    found: dict[str, Any] = {
        "tokens_in_a_step": in_turn(
            {str(n): with_limits(model, tokens.ids, max_tokens=n) for n in STEPS}, rounds
        ),
    }
    if spec.startswith("openvino"):
        found["slack"] = in_turn(
            {str(s): with_limits(model, tokens.ids, slack=s) for s in (math.inf, 2.0, 1.5, 1.2)},
            rounds,
        )
        found["rows_rounded_to"] = in_turn(
            {str(rows): fresh(model, rows) for rows in (1, 16, 32)}, rounds
        )
    found["streams"] = in_turn(
        {"1": whole(model, tokens), "2": whole(m3rt.load(path, spec, streams=2), tokens)},
        rounds,
    )
    return found


def main(
    data: Annotated[Path, typer.Option(help="Shared data: ir.")],
    model: Annotated[Path, typer.Option(help="Model directory, built.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    rounds: int = 3,
    specs: Annotated[str, typer.Option(help="Engines.")] = ",".join(SPECS),
) -> None:
    """Measure what the engines' settings rest on."""
    texts = mixed_set(data)
    found: dict[str, Any] = {"machine": machine.describe(), "rounds": rounds, "engines": {}}
    for spec in specs.split(","):
        found["engines"][spec] = measure(model, spec, texts, rounds)
        gc.collect()
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found["engines"], indent=2))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
