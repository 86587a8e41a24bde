"""m3rt and its peers on the same texts, in turn, each in an environment and process of its own.

    python -m benchmarks.race --data SHARED_DATA --work FOLDER --json RESULT.json

The network is of BGE-M3's full size with random weights, the texts are those of mixed.py. Nothing
else may run meanwhile. Those with a batch size to choose try a few, and their default, once; then
come the rounds. In each, every contender in turn is started, encodes all texts twice, of which
the second counts, and a query of 16 tokens and a text of 512 alone. Loading is not counted.
Figures are medians over the rounds. The result is written after every turn, and --only replaces
the rows of the contenders that it names: each row says which run it is of, and only rows of one
run are put in a ratio.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks import footprint, machine
from benchmarks.mixed import mixed_set
from benchmarks.peers import accuracy
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.course import Course, command, log, saved, without_paths
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.table import markdown
from m3rt.tokenizer import Tokenizer

REFERENCES = ("FlagEmbedding fp32", "m3rt cpu:fp32")  # the first that ran is compared with
SINGLE = {16: 10, 512: 3}  # tokens of a text alone, and how often it is timed in a round
PASSES = 2  # over the texts in a turn, of which the last counts: the first meets new shapes
PATIENCE = 3600.0  # seconds, the most for loading, and for making files


def prepare(contender: Contender, course: Course) -> None:
    """Install a contender and make the files that it needs.

    Raises:
        PeerError: either failed.
    """
    with Worker([*command(contender, course), "--prepare"], log(contender, course)) as worker:
        worker.finish(PATIENCE)


def trial(contender: Contender, course: Course, row: dict[str, Any]) -> None:
    """Time each batch size once, and choose the fastest."""
    default = contender.default_batch
    sizes = sorted({*contender.batches, *([] if default is None else [default])})
    with Worker(command(contender, course), log(contender, course)) as worker:
        worker.answer(PATIENCE)
        seconds = {
            size: worker.ask(contender.patience, do="encode", batch=size)["seconds"]
            for size in sizes
        }
    row["trial"] = {str(size): round(spent, 2) for size, spent in seconds.items()}
    row["batch"] = min(seconds, key=lambda size: seconds[size])
    if default is not None:
        row["default_batch"] = default
        row["default_tokens_per_second"] = round(course.tokens / seconds[default], 1)


def lap(contender: Contender, course: Course, row: dict[str, Any]) -> None:
    """Run a contender's turn of one round, and add its figures to the row."""
    with Worker(command(contender, course), log(contender, course)) as worker:
        ready = worker.answer(PATIENCE)
        row["versions"] = ready["versions"]
        request: dict[str, Any] = {"do": "encode", "batch": row.get("batch")}
        spent = [worker.ask(contender.patience, **request)["seconds"] for _ in range(PASSES)]
        output = saved(contender.name, course)
        if "seconds" not in row:
            output.parent.mkdir(parents=True, exist_ok=True)
            worker.ask(contender.patience, do="save", path=str(output))
        for tokens, times in SINGLE.items():
            request = {"do": "latency", "text": course.single[tokens], "n": times}
            found = worker.ask(contender.patience, **request)["seconds"]
            row.setdefault("single_ms", {}).setdefault(str(tokens), []).extend(
                round(1000 * value, 2) for value in found
            )
    row.setdefault("first_seconds", []).append(round(spent[0], 2))
    row.setdefault("seconds", []).append(round(spent[-1], 2))
    row.setdefault("load_seconds", []).append(round(ready["ready"], 2))
    row["peak_bytes"] = max(row.get("peak_bytes", 0), worker.peak)
    row["tokens_per_second"] = round(course.tokens / median(row["seconds"]), 1)
    row["median_ms"] = {key: median(values) for key, values in row["single_ms"].items()}


def judge(row: dict[str, Any], name: str, course: Course) -> None:
    """Add how far a contender's outputs are from the reference's."""
    for reference in REFERENCES:
        if saved(reference, course).exists() and saved(name, course).exists():
            row["reference"] = reference
            row["accuracy"] = accuracy.compare(
                accuracy.read(saved(reference, course)), accuracy.read(saved(name, course))
            )
            return


def race(
    contenders: Iterable[Contender], course: Course, rounds: int, result: Path
) -> dict[str, Any]:
    """Run contenders in turn; write the result after every turn, and return it."""
    contenders = tuple(contenders)
    found = read(result)
    name, run = begin(len(json.loads(course.texts.read_text("utf-8"))), course.tokens, rounds)
    found["runs"][name] = run
    rows = found["rows"]

    def turn(contender: Contender, step: str) -> None:
        if "error" in rows[contender.name]:
            return
        say(f"{step}: {contender.name}")
        try:
            if step == "prepare":
                prepare(contender, course)
            elif step == "trial":
                trial(contender, course, rows[contender.name])
            else:
                lap(contender, course, rows[contender.name])
        except PeerError as error:
            say(f"    {error}")
            rows[contender.name] |= {"error": without_paths(str(error))}
        write(found, result)

    for contender in contenders:
        rows[contender.name] = {
            "run": name,
            "precision": contender.precision,
            "heads": list(contender.heads),
        }
        saved(contender.name, course).unlink(missing_ok=True)  # another run's, of other texts maybe
        turn(contender, "prepare")
    run["peaks"]["before"] = machine.peaks()
    for contender in contenders:
        if contender.batches:
            turn(contender, "trial")
    for i in range(rounds):
        for contender in contenders:
            turn(contender, f"round {i + 1}")
    run["peaks"]["after"] = machine.peaks()
    for contender in contenders:
        judge(rows[contender.name], contender.name, course)
    write(found, result)
    return read(result)


def begin(texts: int, tokens: int, rounds: int) -> tuple[str, dict[str, Any]]:
    """Return the name of a run that starts now, and what is known of it."""
    started = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return f"{started} {boot}", {
        "started": started,
        "boot": boot,  # the machine's start: clocks and neighbours may differ in another
        "load_before": round(os.getloadavg()[0], 2),
        "machine": machine.describe(),
        "texts": texts,
        "tokens": tokens,
        "rounds": rounds,
        "peaks": {},
    }


def read(result: Path) -> dict[str, Any]:
    """Read a result, or begin one."""
    if not result.exists():
        return {"runs": {}, "rows": {}}
    found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return found


def write(found: Mapping[str, Any], result: Path) -> None:
    """Write a result, without runs that no row is of, in the order of the contenders."""
    used = {row["run"] for row in found["rows"].values()}
    order = {contender.name: i for i, contender in enumerate(CONTENDERS)}
    names = sorted(found["rows"], key=lambda name: order.get(name, len(order)))
    whole = {
        "runs": {name: run for name, run in found["runs"].items() if name in used},
        "rows": {name: found["rows"][name] for name in names},
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    part = result.with_name(f".{result.name}.part")
    part.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
    part.replace(result)


def say(text: str) -> None:
    """Tell what happens, on standard error."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)  # noqa: T201


def exactly(tokens: int, tokenizer: Tokenizer, words: list[str]) -> str:
    """Return a text of just so many tokens, special tokens included, that begins with words."""

    def length(text: str) -> int:
        return int(tokenizer.lengths([text])[0])

    low, high = 0, len(words)  # the most words that fit
    while low < high:
        middle = (low + high + 1) // 2
        fits = length(" ".join(words[:middle])) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    text = " ".join(words[:low])
    while length(text) < tokens:
        text = f"{text} a".strip()  # one token
    assert length(text) == tokens
    return text


def lay_out(texts: list[str], work: Path, data: Path) -> Course:
    """Write the texts where workers read them."""
    tokenizer = Tokenizer.from_file(work / "model" / "tokenizer.json")
    file = work / "texts.json"
    file.write_text(json.dumps(texts), "utf-8")
    words = max(texts, key=len).split() * 3
    return Course(
        work=work,
        data=data,
        texts=file,
        tokens=int(tokenizer.lengths(texts).sum()),
        single={tokens: exactly(tokens, tokenizer, words) for tokens in SINGLE},
    )


def main(
    data: Annotated[Path, typer.Option(help="Shared data: tokenizer, config, ir.")],
    work: Annotated[Path, typer.Option(help="Keeps checkpoint, model and environments: 30 GB.")],
    result: Annotated[Path, typer.Option("--json", help="File to write, or to bring up to date.")],
    only: Annotated[str, typer.Option(help="Beginnings of names, with commas; none: all.")] = "",
    rounds: int = 3,
) -> None:
    """Race m3rt and its peers."""
    work, data = work.resolve(), data.resolve()
    footprint.prepare(data, work)
    names = tuple(name.strip() for name in only.split(","))
    chosen = [contender for contender in CONTENDERS if contender.name.startswith(names)]
    if not chosen:
        raise typer.BadParameter(f"no contender begins with {only}")
    found = race(chosen, lay_out(mixed_set(data), work, data), rounds, result)
    print(markdown(found))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
