"""How the command line speaks: results to stdout, everything said to people to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from m3rt.artifact import Artifact, Build
from m3rt.types import Heads

if TYPE_CHECKING:
    from m3rt.doctor import Report
    from m3rt.nvidia import Driver
    from m3rt.reranker import Reranker
    from m3rt.runtime import M3
    from m3rt.tables import Sheet

# markup off: brackets, as in m3rt[cpu], are not rich's
PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
# the one figure of each head that says most, and what it is called
TELLING = {
    "dense": ("dense cosine", "cosine_min"),
    "colbert": ("ColBERT cosine", "cosine_min"),
    "sparse": ("sparse top 10", "top10_equal"),
    "score": ("score error", "error_max"),
}
people = Console(stderr=True, **PLAIN)


class Results(Console):
    """Stdout; a reader that went away is for the command line to handle."""

    def on_broken_pipe(self) -> None:
        """Let the error pass."""
        raise  # rich calls this while it handles the error


def say(text: str) -> None:
    """Tell people one line."""
    people.print(text, soft_wrap=True)


def say_json(message: Any) -> None:
    """Tell programs one line, where people would be told one."""
    sys.stderr.write(json.dumps(message) + "\n")


def ended(model: M3 | Reranker, began: float) -> dict[str, Any]:
    """Return what the summary of a run says of its engine and time."""
    return {
        "recomputed": model.recomputed,
        "engine": model.engine.name,
        "why": model.why,
        "seconds": round(time.monotonic() - began, 3),
    }


def say_engine(asked: str, name: str, why: str) -> None:
    """Tell people at a terminal which engine auto is, and why."""
    if asked == "auto" and sys.stderr.isatty():
        say(f"engine: {name} ({why})")


def say_recomputed(count: int, done: int, what: str, fallback: str | None) -> None:
    """Tell people what the fallback was needed for."""
    if count:
        say(f"{count} of {done} {what} gave NaN or Inf, and were computed again by {fallback}")


def show(*tables: Table) -> None:
    """Print results; in a pipe, a row is never broken."""
    console = Results(width=None if sys.stdout.isatty() else 10_000, **PLAIN)
    for table in tables:
        console.print(table)
    sys.stdout.flush()


def show_json(result: Any) -> None:
    """Print a result as JSON."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()


def progress(shown: bool = True) -> Progress:
    """Return a bar for stderr, which shows only on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=people,
        disable=not (shown and people.is_terminal),
        redirect_stdout=False,  # rich would send what goes to stdout to stderr
    )


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Give the function that tells what is being done, where its end is not known."""
    with progress() as bar:
        task = bar.add_task("", total=None)
        yield lambda step: bar.update(task, description=step)


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Return names and values; a value that is None or empty is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, ""):
            table.add_row(name, str(value))
    return table


def titled(title: str, *columns: str) -> Table:
    """Return an empty table without frames."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def sheet(found: Sheet) -> Table:
    """Return a table of a benchmark."""
    table = titled(found.title)
    for name, number in zip(found.columns, found.numbers, strict=True):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in found.rows:
        table.add_row(*row)
    return table


def parity(figures: Mapping[str, Any]) -> Table:
    """Return the table of how far an exported model is from its checkpoint."""
    texts = ", ".join(f"{figures[key]} {key}" for key in ("texts", "tokens") if key in figures)
    verdict = "ok" if figures.get("ok") else "out of tolerance"
    table = titled(f"parity: {verdict} ({texts})", "head", "figure", "value", "tolerance")
    tolerances = figures.get("tolerances", {})
    for head in (Heads.ALL | Heads.SCORE).names:
        for name, value in figures.get(head, {}).items():
            table.add_row(head, name, figure(value), figure(tolerance(tolerances, head, name)))
    return table


def tolerance(tolerances: Mapping[str, Any], head: str, name: str) -> Any:
    """Find the tolerance of a figure: dense_cosine is that of cosine_min, a mean has none."""
    stem, _, extreme = name.rpartition("_")
    if extreme not in ("min", "max"):
        return tolerances.get(f"{head}_{name}", "")
    return tolerances.get(f"{head}_{stem}", tolerances.get(stem, ""))


def figure(value: Any) -> str:
    """Write one figure; a float with enough digits to tell a cosine from one."""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def described(artifact: Artifact) -> dict[str, Any]:
    """Return a model directory as JSON has it."""
    return {"path": str(artifact.path)} | dataclasses.asdict(artifact.manifest)


def inspected(artifact: Artifact, engine: str) -> list[Table]:
    """Return a model directory as people read it."""
    manifest = artifact.manifest
    source = manifest.source
    about = facts(
        [
            ("model", artifact.path),
            ("size", decimal(sum(file.bytes for file in manifest.files.values()))),
            ("checkpoint", source.checkpoint),
            ("revision", source.revision),
            ("architecture", manifest.architecture),
            ("heads", ", ".join(manifest.heads)),
            ("pooling", manifest.pooling),
            ("CLS tokens", f"every {n} tokens" if (n := manifest.cls_interval) else None),
            ("layers", manifest.layers),
            ("hidden size", manifest.hidden),
            ("ColBERT width", manifest.colbert_dim),
            ("vocabulary", manifest.vocab),
            ("longest text", f"{manifest.max_length} tokens"),
            ("graphs", ", ".join(f"{form} ({file})" for form, file in manifest.graphs.items())),
            ("made with", ", ".join(f"{name} {v}" for name, v in manifest.versions.items())),
            ("engine", engine),
        ]
    )
    files = titled("files", "name", "size", "sha256")
    for name, file in manifest.files.items():
        files.add_row(name, decimal(file.bytes), file.sha256[:12])
    shown = [head for head in TELLING if head in manifest.heads]
    columns = (*(TELLING[head][0] for head in shown), "top 10 kept", "layers raised")
    builds = titled("builds", "engine", "size", *columns)
    for name, build in manifest.builds.items():
        size = sum(manifest.files[file].bytes for file in build.files)
        raised = len(build.recipe.get("recovery", {}).get("raised", ()))
        builds.add_row(name, decimal(size), *map(figure, worst(build, shown)), str(raised or ""))
    tables = [about, files]
    if manifest.builds:
        tables.append(builds)
    if manifest.parity:
        tables.append(parity(manifest.parity))
    return tables


def worst(build: Build, heads: Iterable[str]) -> tuple[Any, ...]:
    """Return the one figure of each head that says most, and the worst overlap of a ranking.

    A figure that there is not is "".
    """
    certificate = build.certificate
    figures = certificate.figures if certificate else build.parity
    of_heads = certificate.figures.values() if certificate else ()
    overlaps = [one["top10_overlap"] for one in of_heads if "top10_overlap" in one]
    return (
        *(figures.get(head, {}).get(TELLING[head][1], "") for head in heads),
        min(overlaps, default=""),
    )


def devices(driver: Driver) -> str:
    """Return the GPUs of a machine, one a line, or why there is none."""
    found = [
        f"{gpu.index}: {gpu.name}, compute capability {'.'.join(map(str, gpu.capability))}, "
        f"{decimal(gpu.memory)}"
        for gpu in driver.gpus
    ]
    version = f"driver for CUDA {driver.cuda}" if driver.cuda else ""
    return "\n".join(filter(None, [*found, driver.why, version]))


def examined(report: Report) -> list[Table]:
    """Return doctor's report as people read it."""
    machine = facts(
        [
            ("cpu", report.cpu.model),
            ("cores", report.cpu.cores),
            ("flags", " ".join(report.cpu.flags)),
            ("memory", decimal(report.memory) if report.memory else None),
            ("nvidia", devices(report.nvidia)),
        ]
    )
    packages = titled("packages", "name", "version")
    for name, version in report.packages.items():
        packages.add_row(name, version or "not installed")
    engines = titled("engines", "name", "can run", "detail")
    for probe in report.engines:
        engines.add_row(probe.engine, "yes" if probe.ready else "no", probe.detail)
    auto = facts([("auto", f"{report.auto}: {report.why}" if report.auto else report.why)])
    return [machine, packages, engines, auto]
