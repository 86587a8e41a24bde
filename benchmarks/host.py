"""What the host spends on a token beside the engine, by stage; and beside another tree's.

    python -m benchmarks.host --data SHARED_DATA --json RESULT.json [--before TREE]

With an engine that has its results at once: vectors of BGE-M3's width in float16, as a GPU leaves
them, which are made float32 in the way of the TensorRT engine. Texts are SciFact's abstracts and
XQuAD's questions, each once. TREE is another checkout, measured in turn with this one, each time
in a process of its own; the least of the rounds counts. Processor time is of all threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import typer

from m3rt import M3
from m3rt.artifact import Manifest
from m3rt.engines.padding import pad
from m3rt.heads import finish, merge
from m3rt.plan import batches
from m3rt.tokenizer import Tokenizer
from m3rt.types import Batch, Heads, Limits, Raw, Tokens

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
TOKENS = 16384  # of a step
WIDTH = 1024  # of dense and ColBERT vectors
STEPS = 6  # run in full: their vectors take 400 MB
ROUNDS = 3
DOCUMENTS = 800
UNSCORED = (0, 1, 2, 3)
PLANNED = 400_000  # texts that are planned for queries: as many as a collection may have
LIMITS = Limits(TOKENS, 8192, pads=True, widths=tuple(range(8, 8193, 8)), slack=1.5, parallel=3)


class Ready:
    """An engine that has the results already, on a device's side of the copy."""

    name = "ready:fp16"
    limits = LIMITS

    def __init__(self) -> None:
        draw = np.random.default_rng(0).standard_normal
        places = 2 * TOKENS  # with padding
        self._colbert = (draw((places, WIDTH), np.float32) / 32).astype(np.float16)
        self._weights = np.maximum(draw(places, np.float32), 0)
        self._dense = draw((TOKENS, WIDTH), np.float32)

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Return as many of them as the batch has texts and tokens."""
        ids, mask = pad(batch, 1)
        n, width = ids.shape
        outputs = {
            "dense": self._dense[:n],
            "sparse": self._weights[: n * width].reshape(n, width),
            "colbert": self._colbert[: n * width].reshape(n, width, WIDTH),
        }
        return fetched(outputs, batch.tokens.starts, mask, heads)


def fetched(outputs: dict[str, Any], starts: Any, mask: Any, heads: Heads) -> Raw:
    """Return outputs without padding, by the code of the tree that is measured."""
    found: Raw
    try:
        unpadded = import_module("m3rt.engines.trt.rectangles").unpadded
    except ImportError:  # of a tree before it
        slot = SimpleNamespace(array=outputs.__getitem__)
        fetch = import_module("m3rt.engines.trt.engine").fetch
        found = fetch(slot, {name: name for name in outputs}, starts, mask, heads)
    else:
        found = unpadded(outputs, starts, mask)
    return found


def clocked(tokens: int, work: Callable[[], T], times: int = 3) -> tuple[T, dict[str, float]]:
    """Return what work gives, and the microseconds a token that it takes; the least of some."""
    walls, cpus = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        found = work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return found, {"cpu": 1e6 * min(cpus) / tokens, "wall": 1e6 * min(walls) / tokens}


def stages(model: M3, texts: list[str], repeat: int) -> dict[str, dict[str, float]]:
    """Measure each stage by itself, and some steps as encode does them."""
    engine = model.engine
    tokens, tokenise = clocked(1, lambda: model.tokenize(texts), 1)  # it caches
    count = len(tokens.ids.values)
    spent = {"tokenise": {name: value / count for name, value in tokenise.items()}}
    rows = np.tile(np.arange(len(texts)), repeat)
    many = tokens.ids.take(rows)
    _, spent["plan"] = clocked(len(many.values), lambda: sum(1 for _ in batches(many, LIMITS)))

    # every so many-th text: the same lengths, in few steps
    some = np.arange(0, len(texts), max(1, count // (STEPS * TOKENS)))
    part = Tokens(tokens.ids.take(some), tokens.truncated[some])
    size = len(part.ids.values)
    work = list(batches(part.ids, LIMITS))
    raws, spent["fetch"] = clocked(size, lambda: [engine.run(each, Heads.ALL) for each in work])
    done, spent["finish"] = clocked(
        size,
        lambda: [(each, finish(each, raw, UNSCORED)) for each, raw in zip(work, raws, strict=True)],
    )
    nothing = model.encode([])
    _, spent["merge"] = clocked(size, lambda: merge(part, done, nothing))
    _, spent["encode_tokens"] = clocked(size, lambda: model.encode_tokens(part))
    return spent


def query(model: M3, text: str, rounds: int = 300) -> float:
    """Return the median of a query's latency beside the engine's, in microseconds."""
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        model.encode([text], Heads.DENSE)
        spent.append(time.perf_counter() - began)
    return 1e6 * float(np.median(spent))


def measured(data: Path) -> dict[str, Any]:
    """Measure once, in this process."""
    manifest = SimpleNamespace(
        hidden=WIDTH,
        unscored_ids=UNSCORED,
        cls_interval=None,
        max_length=8192,
        head_flags=Heads.ALL,
    )
    tokenizer = Tokenizer.from_file(data / "tokenizer" / "tokenizer.json")
    model = M3(cast(Manifest, manifest), tokenizer, Ready())
    corpus = (data / "ir" / "scifact" / "corpus.jsonl").read_text("utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in corpus][:DOCUMENTS]
    questions = [
        qa["question"]
        for file in sorted((data / "ir" / "xquad").glob("xquad.*.json"))
        for article in json.loads(file.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    return {
        "documents": stages(model, documents, 1),
        "queries": stages(model, questions, PLANNED // len(questions)),
        "query_us": query(model, questions[0]),
    }


def least(results: list[Any]) -> Any:
    """Return the least of each figure."""
    if isinstance(results[0], dict):
        return {name: least([result[name] for result in results]) for name in results[0]}
    return round(min(results), 4)


def ratios(before: Any, now: Any) -> Any:
    """Return how many times less each figure is now."""
    if isinstance(now, dict):
        return {name: ratios(before[name], now[name]) for name in now}
    return round(before / now, 2)


def markdown(result: dict[str, Any]) -> str:
    """Return the processor time as a table: now, and how many times less than before."""
    names = list(result["now"]["documents"])
    lines = ["| µs of processor time a token | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for texts in ("documents", "queries"):
        now, less = result["now"][texts], result["times_less"][texts]
        cells = (f"{now[name]['cpu']:.2g} (/ {less[name]['cpu']:.2g})" for name in names)
        lines.append(f"| {texts} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def of_tree(tree: Path, data: Path) -> dict[str, Any]:
    """Measure a tree's code by this file, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--data", str(data), "--once"]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(
    data: Annotated[Path, typer.Option(help="The shared data.")],
    out: Annotated[Path | None, typer.Option("--json")] = None,
    before: Annotated[Path | None, typer.Option(help="Another checkout.")] = None,
    rounds: int = ROUNDS,
    once: Annotated[bool, typer.Option("--once", help="In this process.")] = False,
) -> None:
    """Measure, and write the result."""
    if once:
        typer.echo(json.dumps(measured(data)))
        return
    from benchmarks import machine

    trees = {"now": ROOT} | ({"before": before} if before else {})
    found: dict[str, list[Any]] = {name: [] for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            found[name].append(of_tree(tree, data))
    load = os.getloadavg()[0]  # before this adds its own
    result = {"machine": machine.describe(), "rounds": rounds, "load_before": round(load, 1)}
    result |= {name: least(results) for name, results in found.items()}
    if before:
        result["times_less"] = ratios(result["before"], result["now"])
    text = json.dumps(result, indent=1)
    if out:
        out.write_text(text + "\n")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
