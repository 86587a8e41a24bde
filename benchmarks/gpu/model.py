"""The checkpoint, its export and the builds, each made once in a process of its own.

python -m benchmarks.gpu.model checkpoint WORK [--tokenizer DIR] [--tiny]
python -m benchmarks.gpu.model export WORK [--tiny]
python -m benchmarks.gpu.model build WORK --engine cuda:fp16
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.peers.course import without_paths
from benchmarks.peers.process import OFFLINE, ROOT, last_line

PROOF = 1024  # tokens of the longest text that the export is proven on


def tokenizer_in(data: Path | None) -> Path | None:
    """Return the folder of the real tokenizer; without one, a small one is trained."""
    folder = None if data is None else data / "tokenizer"
    return folder if folder and (folder / "tokenizer.json").is_file() else None


def step(arguments: list[str], work: Path, seconds: float) -> dict[str, Any]:
    """Run a step in a process of its own.

    Returns:
        seconds and cpu_seconds, peak_bytes, and error if it failed; late if it had no time.
    """
    log = work / "logs" / f"{'-'.join(arguments).replace(':', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.model", arguments[0], str(work)]
    began = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *arguments[1:]],
            stdin=subprocess.PIPE,  # it ends with its input: with this process
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | OFFLINE,
            start_new_session=True,  # so that ending it ends its children
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        _, status, used = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        assert process.stdin is not None
        process.stdin.close()
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_bytes": used.ru_maxrss << 10,
    }
    if late.is_set():
        found["late"] = True
    elif status:
        found["error"] = without_paths(last_line(log))
    return found


def make_checkpoint(work: Path, tokenizer: Path | None, tiny: bool) -> None:
    """Write the checkpoint; it appears when it is whole."""
    from benchmarks.checkpoint import TINY, Shape, make

    part = work / "checkpoint.part"
    shutil.rmtree(part, ignore_errors=True)
    configs = None
    if tokenizer:
        configs = work / "tokenizer"
        configs.mkdir(exist_ok=True)
        for file in [tokenizer / "tokenizer.json", *(tokenizer.parent / "config").glob("*.json")]:
            shutil.copy(file, configs / file.name)
    make(part, TINY if tiny else Shape(), configs)
    part.rename(work / "checkpoint")


def end_with_input() -> None:
    """End this process when the one that started it has ended."""
    sys.stdin.read()
    os._exit(1)


def main(
    what: Annotated[str, typer.Argument(help="checkpoint, export or build.")],
    work: Annotated[Path, typer.Argument(help="Folder of checkpoint and model.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of tokenizer.json.")] = None,
    engine: Annotated[str, typer.Option(help="To build.")] = "auto",
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network.")] = False,
) -> None:
    """Do one step."""
    from m3rt import M3Error, build, export

    threading.Thread(target=end_with_input, daemon=True).start()
    try:
        if what == "checkpoint":
            make_checkpoint(work, tokenizer, tiny)
        elif what == "export":
            # long texts are compared on the GPU: in float32 on processors they take a minute
            recipe = export.Recipe(max_length=300 if tiny else None, proof_length=PROOF)
            export.run(str(work / "checkpoint"), work / "model", recipe)
        else:
            build.run(work / "model", engine, force=True)
    except M3Error as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
