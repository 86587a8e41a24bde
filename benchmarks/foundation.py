"""The full-size model, exported and compared with FlagEmbedding: parity, speed, memory.

    python -m benchmarks.foundation --data SHARED_DATA --work FOLDER --json RESULT.json

On random weights of BGE-M3's shape and its real tokenizer. Needs 16 GiB of memory, 8 GiB of disk
and, on two cores, half an hour. The mixed set is 48 XQuAD questions over the languages and 16
SciFact abstracts. Each round runs m3rt, then FlagEmbedding, in one process; ratios are of
medians. FlagEmbedding runs with its default batch size (256) once, and in every round with
smaller ones, of which the fastest counts as its best. Parts can be measured again one by one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from FlagEmbedding import BGEM3FlagModel

import m3rt
from benchmarks import machine
from benchmarks.checkpoint import Shape, make
from m3rt import parity
from m3rt.types import Ragged, Sparse, offsets

PARTS = ("export", "long", "race")
BATCH_SIZES = (1, 4, 8)
DEFAULT_BATCH_SIZE = 256
GIB = 1 << 30
GFLOP_PER_TOKEN = 0.604  # of the trunk's linear layers: 24 layers of 12 h² weights, h = 1024


def mixed_set(data: Path) -> list[str]:
    """Return 48 XQuAD questions, in turn from each language, and 16 SciFact abstracts."""
    by_language = []
    for file in sorted((data / "ir" / "xquad").glob("xquad.*.json")):
        articles = json.loads(file.read_text("utf-8"))["data"]
        by_language.append(
            [qa["question"] for a in articles for p in a["paragraphs"] for qa in p["qas"]]
        )
    in_turn = [question for row in zip(*by_language, strict=False) for question in row]
    corpus = (data / "ir" / "scifact" / "corpus.jsonl").read_text("utf-8").splitlines()[:16]
    return in_turn[:48] + [json.loads(line)["text"] for line in corpus]


def in_its_own_process(*arguments: str) -> dict[str, float]:
    """Run this interpreter; return its seconds and its peak resident memory."""
    before = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments[:4])} failed: {status}")
    return {
        "seconds": round(time.perf_counter() - before, 1),
        "peak_gib": round(usage.ru_maxrss * 1024 / GIB, 2),
    }


LONG = """
import sys, m3rt
model = m3rt.load(sys.argv[1], "cpu:fp32")
found = model.encode(["word " * 8190])
assert found.n_tokens[0] == 8192 and len(found.colbert[0]) == 8191
"""


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and what it returned."""
    before = time.perf_counter()
    found = run()
    return time.perf_counter() - before, found


def differences(ours: m3rt.Embeddings, theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the parity figures of every head."""
    assert ours.dense is not None
    assert ours.sparse is not None
    assert ours.colbert is not None
    rows = [sorted((int(k), float(w)) for k, w in d.items()) for d in theirs["lexical_weights"]]
    starts = offsets([len(row) for row in rows])
    keys = np.array([key for row in rows for key, _ in row], np.int32)
    weights = np.array([weight for row in rows for _, weight in row], np.float32)
    return {
        "dense": parity.cosines(theirs["dense_vecs"], ours.dense),
        "sparse": parity.sparse_figures(
            Sparse(Ragged(keys, starts), Ragged(weights, starts)), ours.sparse
        ),
        "colbert": parity.cosines(
            np.concatenate(theirs["colbert_vecs"]), np.concatenate(ours.colbert)
        ),
    }


def race(model: Path, checkpoint: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Run both on the same texts in turn."""
    ours = m3rt.load(model, "cpu:fp32")
    theirs = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")
    tokens = int(ours.tokenize(texts).ids.lengths.sum())

    def run_theirs(batch_size: int) -> dict[str, Any]:
        found: dict[str, Any] = theirs.encode(
            texts, batch_size, 8192, return_dense=True, return_sparse=True, return_colbert_vecs=True
        )
        return found

    rate = machine.matmul_rate()
    ours.encode(texts[:8])
    seconds: dict[str, list[float]] = {"m3rt": []}
    for i in range(rounds):
        spent, mine = timed(lambda: ours.encode(texts))
        seconds["m3rt"].append(spent)
        for size in (*BATCH_SIZES, *([DEFAULT_BATCH_SIZE] if i == 0 else [])):
            spent, other = timed(lambda size=size: run_theirs(size))  # type: ignore[misc]
            seconds.setdefault(f"FlagEmbedding, batch {size}", []).append(spent)
            print(f"round {i}, batch {size}: {spent:.1f} s", file=sys.stderr)  # noqa: T201
    rates = {name: round(tokens / median(values), 1) for name, values in seconds.items()}
    rate = max(rate, machine.matmul_rate())
    best = max(BATCH_SIZES, key=lambda size: rates[f"FlagEmbedding, batch {size}"])
    default = f"FlagEmbedding, batch {DEFAULT_BATCH_SIZE}"
    return {
        "texts": len(texts),
        "tokens": tokens,
        "rounds": rounds,
        "seconds": {name: [round(v, 2) for v in values] for name, values in seconds.items()},
        "tokens_per_second": rates,
        "ratio_to_default": round(rates["m3rt"] / rates[default], 2),
        "ratio_to_best": round(rates["m3rt"] / rates[f"FlagEmbedding, batch {best}"], 2),
        "best_batch_size": best,
        "matmul_gflops": round(rate, 1),
        "share_of_matmul_rate": round(rates["m3rt"] * GFLOP_PER_TOKEN / rate, 2),
        "parity": differences(mine, other),
    }


def main(
    data: Annotated[Path, typer.Option(help="Shared data: tokenizer, config, ir.")],
    result: Annotated[Path, typer.Option("--json", help="File to write, or to bring up to date.")],
    work: Annotated[Path, typer.Option(help="Keeps checkpoint and model: 5 GB.")],
    parts: Annotated[str, typer.Option(help="What to measure.")] = ",".join(PARTS),
    rounds: int = 3,
) -> None:
    """Export the full-size random model, and compare it with FlagEmbedding."""
    checkpoint, model = work / "checkpoint", work / "model"
    if not checkpoint.exists():
        configs = work / "tokenizer"
        configs.mkdir(parents=True)
        for file in [data / "tokenizer" / "tokenizer.json", *(data / "config").iterdir()]:
            (configs / file.name).symlink_to(file.resolve())
        make(checkpoint, Shape(), configs)
    found: dict[str, Any] = json.loads(result.read_text("utf-8")) if result.exists() else {}
    found["machine"] = machine.describe()
    wanted = parts.split(",")
    if "export" in wanted or not model.exists():
        arguments = ("export", str(checkpoint), str(model), "--force")
        found["export"] = in_its_own_process("-m", "m3rt.cli", *arguments)
        found["export"]["parity"] = dict(m3rt.load(model).manifest.parity)
    if "long" in wanted:
        found["long"] = in_its_own_process("-c", LONG, str(model)) | {"tokens": 8192}
    if "race" in wanted:
        found["race"] = race(model, checkpoint, mixed_set(data), rounds)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    if found.keys() >= set(PARTS):
        print(markdown(found))  # noqa: T201


def markdown(found: dict[str, Any]) -> str:
    """Return the README's table of a result."""
    about, race, parity = found["machine"], found["race"], found["race"]["parity"]
    rates = race["tokens_per_second"]
    rows = [f"| {name} | {rate:.0f} | {rates['m3rt'] / rate:.1f} |" for name, rate in rates.items()]
    return "\n".join(
        [
            f"| {race['texts']} texts, {race['tokens']} tokens, three heads, float32 | tokens/s "
            "| m3rt is faster by |",
            "|---|---|---|",
            *rows,
            "",
            f"{about['cpu']}, {about['cores']} cores, {race['matmul_gflops']:.0f} GFLOP/s in "
            f"float32 matrix products, which is {race['matmul_gflops'] / GFLOP_PER_TOKEN:.0f} "
            f"tokens/s for the linear layers alone; m3rt is at {race['share_of_matmul_rate']:.0%} "
            "of that, so that no float32 engine can be much faster here. "
            f"Medians of {race['rounds']} rounds, in turn, in "
            f"one process; FlagEmbedding {about['versions']['FlagEmbedding']} (its default is "
            f"batch {DEFAULT_BATCH_SIZE}, run once), ONNX Runtime "
            f"{about['versions']['onnxruntime']}, torch {about['versions']['torch']}. Between the "
            f"two: dense cosines are 1 within {1 - parity['dense']['cosine_min']:.0e}, ColBERT's "
            f"within {1 - parity['colbert']['cosine_min']:.0e}, "
            f"{parity['sparse']['keys_differ']} lexical keys differ, weights by at most "
            f"{parity['sparse']['weight_error_max']:.1g}.",
            "",
            f"Export: {found['export']['seconds']:.0f} s, most of it the checkpoint in torch on "
            f"the gate's texts; peak memory {found['export']['peak_gib']:.1f} GiB. Loading the "
            "model and running one text of 8192 tokens with all heads: "
            f"{found['long']['seconds']:.0f} s, {found['long']['peak_gib']:.1f} GiB.",
        ]
    )


if __name__ == "__main__":
    typer.run(main)
