"""A server's benchmark as tables of text and as plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.filesize import decimal

from m3rt import plots, report
from m3rt.loads import STAGES, Latencies, LoadResult, Run
from m3rt.plots import Series
from m3rt.tables import NONE, Sheet, number, percent

PARTS = ("wait", *STAGES, "rest")
LEAST_MS = 1e-3  # what a logarithm is taken of
Y = Callable[[Run], float | None]


def sheets(result: LoadResult) -> list[Sheet]:
    """Return every table that has a row; what matters most comes first."""
    found = [
        rates(result),
        latency(result),
        endings(result),
        lanes(result),
        split(result),
        client(result),
        wrong(result),
        capacity(result),
        texts(result),
    ]
    return [sheet for sheet in found if sheet.rows]


def offered(run: Run) -> str:
    """Name a rate."""
    return f"{number(run.rate)}" + (f" ({run.load:g}x)" if run.load is not None else "")


def rates(result: LoadResult) -> Sheet:
    """Return what was asked and what was answered."""
    rows = tuple(
        (
            offered(run),
            number(run.arrivals),
            number(run.throughput),
            number(run.goodput),
            percent(run.good_share),
            percent(run.shed_share),
            number(run.texts_per_second),
            NONE if run.tokens_per_second is None else number(run.tokens_per_second),
            *quantiles(run.latency, short=True),
            NONE if run.wrong is None else str(run.wrong),
        )
        for run in result.runs
    )
    columns = (
        *("offered/s", "arrived/s", "answered/s", "goodput/s", "good", "shed", "texts/s"),
        *("tokens/s", "p50", "p99", "wrong"),
    )
    objective = f"good: right, within {result.settings.slo_ms:g} ms"
    return Sheet(f"load, {objective}", columns, rows)


def latency(result: LoadResult) -> Sheet:
    """Return the latency of answers and of refusals."""
    alone = [("alone", "answers", result.alone)] if result.alone else []
    kinds = [
        *alone,
        *((offered(run), "answers", run.latency) for run in result.runs),
        *((offered(run), "refusals", run.refusals) for run in result.runs),
    ]
    rows = tuple((name, what, *quantiles(found)) for name, what, found in kinds if found)
    columns = ("offered/s", "of", "p50", "p90", "p99", "p99.9", "max", "measured")
    return Sheet("latency from the arrival, ms", columns, rows)


def quantiles(found: Latencies | None, short: bool = False) -> tuple[str, ...]:
    """Write percentiles."""
    if found is None:
        return (NONE,) * (2 if short else 6)
    if short:
        return number(found.p50), number(found.p99)
    p999 = NONE if found.p999 is None else number(found.p999)
    return (*map(number, (found.p50, found.p90, found.p99)), p999, number(found.max), str(found.n))


def endings(result: LoadResult) -> Sheet:
    """Return how requests ended."""
    names = list(dict.fromkeys(name for run in result.runs for name in run.outcomes))
    rows = tuple(
        (offered(run), *(str(run.outcomes.get(name, 0)) for name in names)) for run in result.runs
    )
    return Sheet("ended", ("offered/s", *names), rows)


def lanes(result: LoadResult) -> Sheet:
    """Return each lane at each rate."""
    rows = tuple(
        (
            offered(run),
            lane.lane,
            str(lane.texts),
            number(lane.goodput),
            *quantiles(lane.latency),
            ", ".join(f"{count} x {name}" for name, count in lane.outcomes.items()),
        )
        for run in result.runs
        for lane in run.lanes
    )
    columns = (
        *("offered/s", "lane", "texts", "goodput/s", "p50", "p90", "p99", "p99.9", "max"),
        *("measured", "ended"),
    )
    return Sheet("lanes, latency in ms", columns, rows)


def split(result: LoadResult) -> Sheet:
    """Return where the time went."""
    rows = tuple(
        (offered(run), percentile, *(part(found, name) for name in PARTS))
        for run in result.runs
        if run.split
        for percentile, found in (("p50", run.split.p50), ("p99", run.split.p99))
    )
    return Sheet("where the time went, ms: of each part by itself", ("offered/s", "", *PARTS), rows)


def part(found: Mapping[str, float], name: str) -> str:
    """Write one part of the time."""
    return number(found[name]) if name in found else NONE


def client(result: LoadResult) -> Sheet:
    """Return what the client did: where it was late or had no connection, it was too slow."""
    rows = tuple(
        (
            offered(run),
            *(quantiles(run.late, short=True)),
            str(run.opened),
            str(run.waited),
            str(run.again),
            number(run.client_cpu),
            decimal(run.sent_bytes),
            decimal(run.received_bytes),
        )
        for run in result.runs
    )
    columns = (
        *("offered/s", "late, p50 ms", "late, p99 ms", "connections", "waited", "sent again"),
        *("processors", "sent", "received"),
    )
    return Sheet("the client", columns, rows)


def wrong(result: LoadResult) -> Sheet:
    """Return how answers differed."""
    rows = tuple((offered(run), text) for run in result.runs for text in run.wrong_examples)
    return Sheet("wrong answers, for example", ("offered/s", "found"), rows)


def capacity(result: LoadResult) -> Sheet:
    """Return the closed loop."""
    stages = result.capacity.stages if result.capacity else ()
    rows = tuple(
        (str(stage.concurrency), number(stage.throughput), *quantiles(stage.latency))
        for stage in stages
    )
    columns = ("at once", "answered/s", "p50", "p90", "p99", "p99.9", "max", "measured")
    return Sheet("capacity: so many requests at once, latency in ms", columns, rows)


def texts(result: LoadResult) -> Sheet:
    """Return what was sent."""
    rows = tuple(
        (mix.name, str(mix.texts), str(mix.tokens), *map(str, mix.quantiles.values()))
        for mix in result.mixes
    )
    names = next((tuple(mix.quantiles) for mix in result.mixes), ())
    about = ", about" if result.estimated else ""
    return Sheet(f"texts, lengths in tokens{about}", ("mix", "texts", "tokens", *names), rows)


def about(result: LoadResult) -> list[tuple[str, str]]:
    """Return what a reader must know of server, machine and settings."""
    settings, machine, told = result.settings, result.machine, result.about or {}
    lanes = f"{settings.bulk:.0%} bulk, of {settings.bulk_texts} texts" if settings.bulk else ""
    deadline = "" if settings.deadline_ms is None else f"{settings.deadline_ms:g} ms"
    checked = f"every answer, cosine at least {settings.check_cosine:.7g}"
    best = result.capacity
    return [
        ("server", result.server),
        ("model", str(told.get("model_id", ""))),
        ("version", str(told.get("version", ""))),
        ("measured", result.created),
        ("client", f"{machine.cpu.model}, {machine.cpu.cores} cores"),
        ("heads", ", ".join(settings.heads)),
        ("form", settings.form),
        ("texts", f"{settings.texts} in a request; {settings.distinct} differ, at most"),
        ("lanes", lanes),
        ("deadline", deadline),
        ("checked", checked if settings.check else ""),
        ("each rate", f"{settings.warm_up:g} s, then {settings.seconds:g} s measured"),
        (
            "capacity",
            f"{number(best.rate)} answers/s, {best.concurrency} at once" if best else "",
        ),
    ]


def figures(runs: Sequence[Run], slo_ms: float) -> list[str]:
    """Draw latency and goodput over the rate."""
    at = [float(f"{run.rate:.3g}") for run in runs]  # as the axis names them
    x = plots.points("requests offered a second", at)
    percentiles: dict[str, Y] = {
        "p50": lambda run: run.latency.p50 if run.latency else None,
        "p90": lambda run: run.latency.p90 if run.latency else None,
        "p99": lambda run: run.latency.p99 if run.latency else None,
        "p99.9": lambda run: run.latency.p999 if run.latency else None,
    }
    of_latency = [curve(runs, name, "ms", of, LEAST_MS) for name, of in percentiles.items()]
    y = plots.decades("ms", [y for one in of_latency for _, y, _ in one.points])
    rates: dict[str, Y] = {
        "goodput": lambda run: run.goodput,
        "answered": lambda run: run.throughput,
    }
    of_rates = [curve(runs, name, "a second", of) for name, of in rates.items()]
    up = plots.linear("answers a second", [y for one in of_rates for _, y, _ in one.points])
    slo = f"goodput (within {slo_ms:g} ms) against offered load"
    return [
        report.figure("latency of answers over offered load", plots.lines, x, y, of_latency),
        report.figure(slo, plots.lines, x, up, of_rates),
    ]


def curve(runs: Sequence[Run], name: str, unit: str, of: Y, least: float = 0.0) -> Series:
    """Return a figure over the rate."""
    points = []
    for run in sorted(runs, key=lambda run: run.rate):
        if (value := of(run)) is not None:
            said = f"{name}: {number(value)} {unit} at {offered(run)}/s"
            points.append((run.rate, max(value, least), said))
    return Series(name, tuple(points))


def page(result: LoadResult) -> str:
    """Return the page of a server's benchmark; it is well-formed XML, too."""
    title = f"m3rt bench: {result.server}"
    return report.document(
        title, about(result), figures(result.runs, result.settings.slo_ms), sheets(result)
    )
