"""What a machine with a GPU measures: m3rt's engines and their peers, in parts of bounded time.

    benchmarks/gpu/run OUT                      on a machine with a GPU, some nine minutes a call
    benchmarks/gpu/run OUT --parts latency      some of it
    benchmarks/gpu/run OUT --tiny               anywhere, to see that it runs

OUT/gpu.json is written after every figure. A later call with the same OUT, or with the result in
it, goes on where the last one stopped. See docs/gpu.md.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu import model, texts, turns
from benchmarks.gpu.contenders import BASE, Entry, entries
from benchmarks.gpu.nvml import open_nvml
from benchmarks.gpu.parts import NAMES, measures
from benchmarks.gpu.record import Record
from benchmarks.gpu.session import Deadline, OutOfTimeError, Session
from benchmarks.gpu.table import markdown
from benchmarks.gpu.texts import TINY, Scale
from benchmarks.peers.course import Course, without_paths
from benchmarks.peers.process import ROOT
from m3rt import EngineError, artifact
from m3rt.engines.unpadded import kernels
from m3rt.tokenizer import Tokenizer

TINY_BASE = "m3rt cpu:fp32"
START = 25.0  # seconds that loading a runtime of the full size may take


def say(text: str) -> None:
    """Tell what happens, on standard error."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)  # noqa: T201


def machine(record: Record, deadline: Deadline, tiny: bool) -> None:
    """Measure the machine, at the start of every call: its clocks may differ from the last one's.

    Raises:
        OutOfTimeError: the time is over.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.machine", *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=deadline.require(1)
        )
    except subprocess.TimeoutExpired as error:
        raise OutOfTimeError("while the machine was measured") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        record.about["machine_error"] = without_paths(lines[-1])
    else:
        found = json.loads(done.stdout.splitlines()[-1])
        record.about["machine"] = found["machine"]
        record.about.setdefault("rates", []).append(found["rates"])
    record.write()


def prepare(record: Record, deadline: Deadline, work: Path, data: Path | None, tiny: bool) -> None:
    """Make the checkpoint, the model directory and the texts, where they are not there.

    Raises:
        OutOfTimeError: the time is over.
        typer.Exit: a step failed; without it nothing can be measured.
    """
    tokenizer = model.tokenizer_in(data)
    steps = {
        "checkpoint": ["--tokenizer", str(tokenizer)] if tokenizer else [],
        "export": [],
    }
    for step, options in steps.items():
        if (work / ("model" if step == "export" else step)).exists():
            continue
        say(step)
        arguments = [step, *options, *(["--tiny"] if tiny else [])]
        if not note(record, step, model.step(arguments, work, deadline.require(5))):
            raise typer.Exit(1)
    if not texts.file(work, "mixed").exists() or "texts" not in record.about:
        say("texts")
        own = Tokenizer.from_file(work / "model" / "tokenizer.json")
        record.about["network"] = network(work)
        record.about["tokenizer"] = "BGE-M3's" if tokenizer else "small"
        record.about["texts"] = texts.write(TINY if tiny else Scale(), own, data, work)
        record.write()


def network(work: Path) -> dict[str, int]:
    """Return the sizes of the network that its operations depend on."""
    manifest = artifact.read(work / "model").manifest
    config = json.loads((work / "checkpoint" / "config.json").read_text("utf-8"))
    return {
        "hidden": manifest.hidden,
        "layers": manifest.layers,
        "ffn": config["intermediate_size"],
        "colbert": manifest.colbert_dim or 0,
    }


def note(record: Record, step: str, found: dict[str, Any]) -> bool:
    """Write what a step took; whether it was done.

    Raises:
        OutOfTimeError: it was ended because the time is over.
    """
    if found.pop("late", False):
        raise OutOfTimeError(f"in the middle of: {step}")
    record.about.setdefault("preparation", {})[step] = found
    record.write()
    if "error" in found:
        say(f"    {found['error']}")
    return "error" not in found


def built(entry: Entry, record: Record, deadline: Deadline, work: Path) -> None:
    """Build what an entry runs, if it is not there; that it cannot be is its result.

    Raises:
        OutOfTimeError: the time is over.
    """
    row = record.row(entry.name)
    step = f"build {entry.spec}"
    if entry.spec is None or "error" in row:
        return
    done = record.about.get("preparation", {}).get(step)
    there = entry.spec in artifact.read(work / "model").manifest.builds
    if not there and (done is None or "error" in done):
        say(step)
        arguments = ["build", "--engine", entry.spec]
        done = model.step(arguments, work, deadline.require(5))
        note(record, step, done)
    if done is not None and "error" in done:
        row["error"] = done["error"]
        record.write()


def tell_kernels(record: Record, deadline: Deadline, work: Path) -> None:
    """Note which kernels the attention of m3rt's own engine ran in: by speed alone, who knows.

    Raises:
        OutOfTimeError: the time is over.
    """
    if "error" in record.row(BASE) or "kernels" in record.about:
        return
    say("kernels")
    found: dict[str, Any]
    try:
        found = {"ran": kernels.ask(work / "model", kernels.LENGTHS, patience=deadline.require(5))}
        found["slow"] = kernels.slow(found["ran"])
    except EngineError as error:
        found = {"error": without_paths(str(error))}
    record.about["kernels"] = found
    record.write()


def measure(
    chosen: Sequence[Entry],
    parts: Sequence[str],
    session: Session,
    record: Record,
    scale: Scale,
    base: str,
) -> None:
    """Measure everything of some contenders, the most important first.

    Raises:
        OutOfTimeError: the time is over.
    """
    first = True
    for one in measures(scale):
        if one.part in parts:
            say(one.key)
            turns.rounds(one, chosen, session, record, scale, base)
        if first and "parity" in parts:
            say("parity")
            turns.compare(chosen, session, record)
        first = False


def main(
    out: Annotated[Path, typer.Argument(help="Folder for gpu.json.")],
    parts: Annotated[str, typer.Option(help="Parts, joined by commas.")] = ",".join(NAMES),
    seconds: Annotated[float, typer.Option(help="Time for this call.")] = 530.0,
    only: Annotated[str, typer.Option(help="Beginnings of contenders' names, commas.")] = "",
    work: Annotated[Path | None, typer.Option(help="Keeps model and texts; 8 GB.")] = None,
    data: Annotated[Path | None, typer.Option(help="Real tokenizer and texts.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="What failed, too.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network on a CPU.")] = False,
) -> None:
    """Measure the engines and their peers on this machine."""
    deadline = Deadline(seconds)
    out, work = out.resolve(), (work or out / "work").resolve()
    stay_in(work / "home")
    wanted = parts.split(",")
    if unknown := sorted(set(wanted) - set(NAMES)):
        raise typer.BadParameter(f"no parts {', '.join(unknown)}; there are {', '.join(NAMES)}")
    begins = tuple(only.split(","))
    chosen = [entry for entry in entries(tiny) if entry.name.startswith(begins)]
    nvml = open_nvml()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    record = Record(out / "gpu.json", boot, (nvml.describe()["gpu"] if nvml else None))
    if retry:
        record.forget_errors()
    for entry in chosen:
        contender = entry.contender
        record.row(entry.name, precision=contender.precision, heads=list(contender.heads))
    record.write()
    try:
        if "machine" in wanted:
            machine(record, deadline, tiny)
        prepare(record, deadline, work, data, tiny)
        everything(chosen, wanted, record, deadline, work, tiny)
        say("all is measured")
    except OutOfTimeError as error:
        say(f"the time is over ({error}): call it again to go on")
    (out / "gpu.md").write_text(markdown(record.found) + "\n", "utf-8")


def stay_in(home: Path) -> None:
    """Let libraries keep their caches, and whatever else they write at home, in this folder.

    ONNX Runtime writes an identifier of the device there, torch what it compiles.
    """
    os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())  # packages may be at home
    home.mkdir(parents=True, exist_ok=True)
    os.environ |= dict.fromkeys(("HOME", "TMPDIR"), str(home))
    os.environ |= {"XDG_CACHE_HOME": str(home / ".cache")}
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    os.environ |= {name: str(home / folder) for name, folder in caches.items()}


def everything(
    chosen: Sequence[Entry],
    parts: Sequence[str],
    record: Record,
    deadline: Deadline,
    work: Path,
    tiny: bool,
) -> None:
    """Build and measure, wave after wave.

    Raises:
        OutOfTimeError: the time is over.
    """
    course = Course(work, work, texts.file(work, "parity"), 0, {})
    scale, base = (TINY, TINY_BASE) if tiny else (Scale(), BASE)
    nvml = open_nvml()
    for wave in sorted({entry.wave for entry in chosen}):
        now = [entry for entry in chosen if entry.wave == wave]
        for entry in now:
            built(entry, record, deadline, work)
        if any(entry.name == BASE for entry in now):
            tell_kernels(record, deadline, work)
        with Session(course, deadline, nvml, 0.0 if tiny else START) as session:
            measure(now, parts, session, record, scale, base)


if __name__ == "__main__":
    typer.run(main)
