"""A result of ``m3rt eval`` as tables of text, and as a page."""

from __future__ import annotations

from statistics import fmean

from m3rt import plots, report, tables
from m3rt.evaluation import Evaluation
from m3rt.plots import Series
from m3rt.protocol import MODES
from m3rt.quality import Quality
from m3rt.score import Weights
from m3rt.tables import NONE, Sheet

AVERAGE = "average"


def sheets(quality: Quality) -> list[Sheet]:
    """Return every table that has a row; what matters most comes first."""
    found = [
        failures(quality),
        retrieval(quality),
        differences(quality),
        speed(quality),
        effort(quality),
    ]
    return [sheet for sheet in found if sheet.rows]


def failures(quality: Quality) -> Sheet:
    """Return the engines that could not run."""
    rows = tuple(quality.failures.items())
    return Sheet("not evaluated", ("engine", "why"), rows)


def measures(quality: Quality) -> tuple[str, ...]:
    """Return the measures of all data sets, in order."""
    return tuple(dict.fromkeys(name for one in quality.evaluations for name in one.measures))


def retrieval(quality: Quality) -> Sheet:
    """Return the means of every engine on every data set, and over all of them."""
    names = measures(quality)
    rows = [
        (one.dataset, one.engine, result.mode, *(value(result.means.get(name)) for name in names))
        for one in quality.evaluations
        for result in one.modes
    ]
    if len(quality.datasets) > 1:
        rows += [
            (AVERAGE, engine, mode, *map(value, means))
            for engine in quality.engines
            for mode in MODES
            if any(means := [quality.average(engine, mode, name) for name in names])
        ]
    return Sheet("retrieval", ("data set", "engine", "mode", *names), tuple(rows))


def differences(quality: Quality) -> Sheet:
    """Return how engines differ from the first, and whether by chance."""
    rows = tuple(
        (
            one.dataset,
            one.mode,
            one.measure,
            one.engine,
            value(one.before),
            value(one.now),
            signed(one.difference),
            NONE if one.percent is None else f"{one.percent:+.2f} %",
            NONE if one.low is None else f"{signed(one.low)} to {signed(one.high)}",
            NONE if one.p is None else f"{one.p:.4f}",
            f"{one.better} / {one.worse}",
        )
        for one in quality.differences
    )
    columns = (
        *("data set", "mode", "measure", "engine", "before", "now", "difference", "relative"),
        *("95 % confidence", "p", "better / worse"),
    )
    baseline = quality.differences[0].baseline if quality.differences else ""
    title = f"against {baseline}: p of the paired randomisation test, two-sided, query by query"
    return Sheet(title, columns, rows)


def effort(quality: Quality) -> Sheet:
    """Return what was encoded and searched."""
    rows = tuple(
        (
            one.dataset,
            one.engine,
            str(one.queries.texts),
            str(one.documents.texts),
            str(one.queries.tokens + one.documents.tokens),
            f"{one.queries.truncated} + {one.documents.truncated}",
            tables.number(one.encode_seconds),
            tables.number(one.search_seconds),
            tables.number(rate(one)),
        )
        for one in quality.evaluations
    )
    columns = (
        *("data set", "engine", "queries", "documents", "tokens", "truncated", "encode, s"),
        *("search, s", "tokens/s"),
    )
    return Sheet("work; truncated are queries + documents", columns, rows)


def speed(quality: Quality) -> Sheet:
    """Return the quality of engines beside their speed in m3rt bench."""
    known = {one.engine: one for one in quality.speeds}
    name = next(iter(measures(quality)), "")
    rows = tuple(
        (
            engine,
            known[engine].mix,
            tables.number(known[engine].tokens_per_second),
            mode,
            name,
            value(mean),
        )
        for engine in quality.engines
        if engine in known
        for mode in MODES
        if (mean := quality.average(engine, mode, name)) is not None
    )
    columns = ("engine", "mix", "tokens/s", "mode", "measure", "mean over data sets")
    return Sheet("quality against speed", columns, rows)


def about(quality: Quality) -> list[tuple[str, str]]:
    """Return what a reader must know of model and protocol."""
    first = quality.evaluations[0] if quality.evaluations else None
    if first is None:
        return [("model", quality.model), ("evaluated", quality.created)]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    return [
        ("model", f"{quality.model} ({first.checkpoint})"),
        ("evaluated", quality.created),
        *(("protocol", one) for one in dict.fromkeys(map(protocol, quality.evaluations))),
        ("versions", versions),
    ]


def protocol(one: Evaluation) -> str:
    """Write how a data set was searched."""
    how = one.protocol
    return (
        f"{one.layout}: dense+sparse {weights(how.mixture.both, 2)}, all "
        f"{weights(how.mixture.all, 3)}; colbert and all re-rank the first {how.depth} of dense; "
        f"at most {how.query_max_length} tokens of a query, {how.max_length} of a document"
    )


def weights(of: Weights, heads: int) -> str:
    """Write the weights of the first heads."""
    return " : ".join(f"{one:g}" for one in (of.dense, of.sparse, of.colbert)[:heads])


def page(quality: Quality) -> str:
    """Return the report; it is well-formed XML, too."""
    name = quality.model.rstrip("/").rpartition("/")[2] or "model"
    return report.document(f"m3rt eval: {name}", about(quality), figures(quality), sheets(quality))


def figures(quality: Quality) -> list[str]:
    """Draw the measure that counts over speed, a plot for each mode."""
    mix = f", {quality.speeds[0].mix}" if quality.speeds else " of this evaluation"
    name = next(iter(measures(quality)), "")
    drawn = []
    for mode in MODES:
        series = []
        for engine in quality.engines:
            across, mean = pace(quality, engine), quality.average(engine, mode, name)
            points = []
            if across is not None and mean is not None:
                title = f"{engine}: {tables.number(across)} tokens/s, {name} {value(mean)}"
                points.append((across, mean, title))
            series.append(Series(engine, tuple(points)))
        x = plots.linear(f"tokens/s{mix}", [x for one in series for x, _, _ in one.points])
        y = plots.around(name, [y for one in series for _, y, _ in one.points])
        title = f"{name} of {mode} against speed: high and right is good"
        drawn.append(report.figure(title, plots.scatter, x, y, series))
    return drawn


def pace(quality: Quality, engine: str) -> float | None:
    """Return an engine's tokens a second: the benchmark's, or without one, those seen here."""
    if quality.speeds:
        return next((s.tokens_per_second for s in quality.speeds if s.engine == engine), None)
    return fmean(rate(one) for one in quality.evaluations if one.engine == engine)


def rate(one: Evaluation) -> float:
    """Return the tokens encoded a second."""
    return (one.queries.tokens + one.documents.tokens) / max(one.encode_seconds, 1e-9)


def value(mean: float | None) -> str:
    """Write a measure."""
    return NONE if mean is None else f"{mean:.4f}"


def signed(number: float | None) -> str:
    """Write a difference of two measures."""
    return NONE if number is None else f"{number:+.4f}"
