"""A benchmark's result as tables of text, for the terminal and for the report alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from m3rt import peak
from m3rt.comparison import Comparison
from m3rt.result import SERIAL, STAGES, EngineRun, Result
from m3rt.types import Heads

NONE = "-"
PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numbers(self) -> list[bool]:
        """Whether each column holds numbers, which stand at the right."""
        return [all(numeric(row[i]) for row in self.rows) for i in range(len(self.columns))]


def sheets(result: Result, comparison: Comparison | None = None) -> list[Sheet]:
    """Return every table that has a row; what matters most comes first."""
    found = [
        failures(result),
        speed(result),
        time_split(result),
        latency(result),
        over_length(result),
        over_batch(result),
        accuracy(result),
        start(result),
        mixes(result),
        machine_peak(result),
        *([of_comparison(comparison), otherwise(comparison)] if comparison else []),
    ]
    return [sheet for sheet in found if sheet.rows]


def failures(result: Result) -> Sheet:
    """Return what went wrong."""
    rows = tuple((run.engine, run.error) for run in result.engines if run.error)
    return Sheet("not measured, or not all of it", ("engine", "why"), rows)


def speed(result: Result) -> Sheet:
    """Return rates on each mix, and beside each how far the heads are from the checkpoint's."""
    columns = (
        *("engine", "mix", "tokens/s", "low", "high", "texts/s", "padding", "of peak"),
        *("memory", "dense", "ColBERT", "sparse"),
    )
    rows = tuple(
        (
            run.engine,
            mix.mix,
            number(mix.tokens_per_second.median),
            number(mix.tokens_per_second.low),
            number(mix.tokens_per_second.high),
            number(mix.texts_per_second.median),
            percent(mix.padding_share),
            percent(mix.peak_share),
            size(mix.peak_memory),
            *worst(run),
        )
        for run in result.engines
        for mix in run.mixes
    )
    return Sheet("speed, and the worst of each head against the checkpoint", columns, rows)


def worst(run: EngineRun) -> tuple[str, str, str]:
    """Return the least cosine of dense and ColBERT, and the greatest error of a lexical weight."""
    found = run.accuracy or {}
    return (
        cosine(found.get("dense", {}).get("cosine_min")),
        cosine(found.get("colbert", {}).get("cosine_min")),
        small(found.get("sparse", {}).get("weight_error_max")),
    )


def time_split(result: Result) -> Sheet:
    """Return where the time goes."""
    rows = tuple(
        (
            run.engine,
            mix.mix,
            *(number(mix.us_per_token[name]) for name in (*STAGES, *SERIAL)),
            number(mix.host_us_per_token),
        )
        for run in result.engines
        for mix in run.mixes
    )
    columns = ("engine", "mix", *STAGES[:3], "post-process", *SERIAL, "host")
    return Sheet("microseconds a token", columns, rows)


def latency(result: Result) -> Sheet:
    """Return the latency of one text."""
    rows = tuple(
        (run.engine, str(one.length), *map(number, (one.p50, one.p90, one.p99)), str(one.n))
        for run in result.engines
        for one in run.latency
    )
    columns = ("engine", "tokens", "p50", "p90", "p99", "measured")
    return Sheet("latency of one text, ms", columns, rows)


def over_length(result: Result) -> Sheet:
    """Return rates by length, one engine a row."""
    found = {
        run.engine: {one.length: number(one.tokens_per_second.median) for one in run.lengths}
        for run in result.engines
    }
    return crossed("tokens/s, texts of so many tokens", found)


def over_batch(result: Result) -> Sheet:
    """Return latency by texts in a call, one engine a row."""
    found = {
        run.engine: {one.texts: number(one.milliseconds.median) for one in run.batches}
        for run in result.engines
    }
    lengths = {one.length for run in result.engines for one in run.batches}
    tokens = ", ".join(map(str, sorted(lengths)))
    return crossed(f"ms a call, so many texts of {tokens} tokens", found)


def crossed(title: str, found: Mapping[str, Mapping[int, str]]) -> Sheet:
    """Return a table with a column for each number that any row has."""
    columns = sorted({column for row in found.values() for column in row})
    rows = tuple(
        (name, *(row.get(column, NONE) for column in columns)) for name, row in found.items() if row
    )
    return Sheet(title, ("engine", *map(str, columns)), rows)


def accuracy(result: Result) -> Sheet:
    """Return every figure of every head, an engine a column."""
    measured = [(run.engine, run.accuracy) for run in result.engines if run.accuracy]
    keys = {
        (head, name): None  # in the order of their first appearance
        for head in Heads.ALL.names
        for _, figures in measured
        for name in figures.get(head, {})
    }
    rows = tuple(
        (
            head,
            name.replace("_", " "),
            *(value(figures.get(head, {}).get(name)) for _, figures in measured),
        )
        for head, name in keys
    )
    texts = {f"{figures['texts']} texts, longest {figures['longest']}" for _, figures in measured}
    title = f"accuracy ({'; '.join(sorted(texts))} tokens)"
    return Sheet(title, ("head", "figure", *(engine for engine, _ in measured)), rows)


def start(result: Result) -> Sheet:
    """Return what starting takes."""
    rows = tuple(
        (run.engine, seconds(run.load_seconds), seconds(run.first_seconds), size(run.load_memory))
        for run in result.engines
        if run.load_seconds is not None
    )
    return Sheet("start", ("engine", "load, s", "first text, s", "memory"), rows)


def mixes(result: Result) -> Sheet:
    """Return what was encoded."""
    rows = tuple(
        (mix.name, str(mix.texts), str(mix.tokens), *map(str, mix.quantiles.values()))
        for mix in result.mixes
    )
    names = next((tuple(mix.quantiles) for mix in result.mixes), ())
    return Sheet("mixes, lengths in tokens", ("mix", "texts", "tokens", *names), rows)


def machine_peak(result: Result) -> Sheet:
    """Return the fastest product of each precision."""
    found = [peak.best(result.peak, precision) for precision in PRECISIONS]
    rows = tuple(
        (
            rate.precision,
            number(rate.flops / 1e9),
            rate.by,
            "{} x {} x {}".format(*rate.shape),
        )
        for rate in found
        if rate
    )
    columns = ("precision", "GFLOP/s", "library", "shape")
    return Sheet("the machine's peak in matrix products", columns, rows)


def of_comparison(comparison: Comparison) -> Sheet:
    """Return how a result differs from an earlier one."""
    rows = tuple(
        (c.engine, c.subject, c.figure, number(c.before), number(c.now), gain(c.gain))
        for c in comparison.changes
    )
    columns = ("engine", "of", "figure", "before", "now", "better by")
    return Sheet(f"against {comparison.before}: above 1 is better", columns, rows)


def otherwise(comparison: Comparison) -> Sheet:
    """Return why figures may differ without a reason in the code."""
    rows = tuple((text,) for text in comparison.warnings)
    return Sheet("what else changed since", ("",), rows)


def about(result: Result) -> list[tuple[str, str]]:
    """Return what a reader must know of model, machine and settings."""
    model, machine, settings = result.model, result.machine, result.settings
    versions = {name: v for name, v in machine.packages.items() if v and name in SHOWN}
    turns = "in turn" if result.interleaved else "one after another"
    busy = result.load_average is not None and result.load_average > machine.cpu.cores / 2
    return [
        ("model", f"{model.path} ({model.checkpoint})"),
        ("measured", result.created),
        ("cpu", f"{machine.cpu.model}, {machine.cpu.cores} cores, {' '.join(machine.cpu.flags)}"),
        ("gpu", ", ".join(map(str, machine.nvidia.gpus))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("heads", ", ".join(settings.heads)),
        ("engines", turns if len(result.engines) > 1 else ""),
        ("streams", str(settings.streams) if settings.streams > 1 else ""),
        ("devices", settings.devices or ""),
        ("load", f"{result.load_average:.1f}: this machine was busy" if busy else ""),
    ]


SHOWN = ("python", "m3rt", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino")


def number(found: float) -> str:
    """Write three digits, or all of a large number's whole part."""
    return f"{found:,.0f}" if abs(found) >= 100 else f"{found:.3g}"


def seconds(found: float | None) -> str:
    """Write seconds."""
    return NONE if found is None else f"{found:.2f}"


def percent(found: float | None) -> str:
    """Write a share."""
    return NONE if found is None else f"{found:.1%}"


def size(found: int | None) -> str:
    """Write bytes."""
    return NONE if found is None else decimal(found)


def cosine(found: float | None) -> str:
    """Write a cosine with the digits that differ from one."""
    return NONE if found is None else f"{found:.7f}"


def small(found: float | None) -> str:
    """Write an error."""
    return NONE if found is None else f"{found:.1e}"


def gain(found: float | None) -> str:
    """Write a ratio."""
    return NONE if found is None else f"{found:.2f}"


def value(found: Any) -> str:
    """Write a figure of any kind."""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if not isinstance(found, float):
        return NONE if found is None else str(found)
    return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.8g}"


def numeric(text: str) -> bool:
    """Whether a cell is a number, perhaps with a unit."""
    return text == NONE or text[:1].isdigit()
