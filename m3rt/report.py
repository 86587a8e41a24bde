"""A result as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from m3rt import plots, tables
from m3rt.comparison import Comparison
from m3rt.plots import Axis, Series
from m3rt.result import Result
from m3rt.tables import Sheet

Draw = Callable[[str, Axis, Axis, Sequence[Series]], str]
WRAPPED = ' class="wide"'
WIDE = 40  # characters of a cell that may be broken
LEAST_ERROR = 1e-16  # a cosine may come out as 1 exactly, which a logarithm does not take

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --soft: #57606a; --line: #d8dee4;
  --s0: #0969b8; --s1: #c2410c; --s2: #047857; --s3: #a21caf; --s4: #8a6100; --s5: #0e7490;
  --s6: #be123c; --s7: #57606a; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --text: #e6e9ed; --soft: #9aa4af;
  --line: #343b43; --s0: #6cb2f5; --s1: #fb923c; --s2: #34d399; --s3: #e58cf0; --s4: #eab308;
  --s5: #22d3ee; --s6: #fb7185; --s7: #b1bac4; } }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 0.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; }
.key { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; font-size: 0.9rem; }
.key span { display: inline-flex; align-items: center; gap: 0.35rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.key svg { width: 1rem; }
svg text { fill: var(--soft); }
svg g text { fill: currentColor; }
svg .axis { fill: var(--text); }
.grid, .tick { stroke: var(--line); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
td.wide { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
.number { text-align: right; }
""" + "".join(f".s{i} {{ color: var(--s{i}); }}\n" for i in range(plots.SERIES))


def page(result: Result, comparison: Comparison | None = None) -> str:
    """Return the page of a benchmark; it is well-formed XML, too."""
    name = result.model.path.rstrip("/").rpartition("/")[2] or "model"
    sheets = tables.sheets(result, comparison)
    return document(f"m3rt bench: {name}", tables.about(result), figures(result), sheets)


def document(
    title: str,
    about: Sequence[tuple[str, str]],
    figures: Sequence[str],
    sheets: Sequence[Sheet],
) -> str:
    """Return a page: names and values, then figures, then tables."""
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in about if text)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<dl>{facts}</dl>\n"
        + "".join(figures)
        + "".join(map(table, sheets))
        + "</body></html>\n"
    )


def figures(result: Result) -> list[str]:
    """Draw what there is to draw."""
    return [throughput(result), latency(result), accuracy(result)]


def throughput(result: Result) -> str:
    """Draw tokens a second over the length of texts."""
    series = [
        Series(
            run.engine,
            tuple(
                (
                    one.length,
                    one.tokens_per_second.median,
                    f"{run.engine}: {tables.number(one.tokens_per_second.median)} tokens/s, "
                    f"{one.texts} texts of {one.length} tokens",
                )
                for one in run.lengths
            ),
        )
        for run in result.engines
    ]
    x = plots.points("tokens of each text", [x for one in series for x, _, _ in one.points])
    y = plots.linear("tokens/s", [y for one in series for _, y, _ in one.points])
    return figure("throughput over length", plots.lines, x, y, series)


def latency(result: Result) -> str:
    """Draw the time of a call over the texts in it."""
    series = [
        Series(
            run.engine,
            tuple(
                (
                    one.texts,
                    one.milliseconds.median,
                    f"{run.engine}: {tables.number(one.milliseconds.median)} ms, "
                    f"{one.texts} texts of {one.length} tokens",
                )
                for one in run.batches
            ),
        )
        for run in result.engines
    ]
    x = plots.points("texts in one call", [x for one in series for x, _, _ in one.points])
    y = plots.decades("ms", [y for one in series for _, y, _ in one.points])
    return figure("latency over batch", plots.lines, x, y, series)


def accuracy(result: Result) -> str:
    """Draw how far the worst dense vector is from the checkpoint's, over speed on one mix."""
    mix = result.mixes[0].name
    series = []
    for run in result.engines:
        cosine = (run.accuracy or {}).get("dense", {}).get("cosine_min")
        rates = [one.tokens_per_second.median for one in run.mixes if one.mix == mix]
        points = []
        if cosine is not None and rates:
            text = f"{run.engine}: {tables.number(rates[0])} tokens/s, cosine {cosine:.9f}"
            points.append((rates[0], max(1 - cosine, LEAST_ERROR), text))
        series.append(Series(run.engine, tuple(points)))
    x = plots.linear(f"tokens/s, {mix}", [x for one in series for x, _, _ in one.points])
    y = plots.decades("1 - dense cosine", [y for one in series for _, y, _ in one.points])
    return figure("accuracy against speed: low and right is good", plots.scatter, x, y, series)


def figure(title: str, draw: Draw, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Return a plot with its title and legend; nothing if there are no points."""
    if not any(one.points for one in series):
        return ""
    return (
        f"<h2>{escape(title)}</h2>\n<figure><div class='key'>{plots.key(series)}</div>"
        f"{draw(title, x, y, series)}</figure>\n"
    )


def table(sheet: Sheet) -> str:
    """Return a table under its title."""
    kinds = [' class="number"' if number else "" for number in sheet.numbers]
    head = "".join(
        f'<th scope="col"{kind}>{escape(column)}</th>'
        for kind, column in zip(kinds, sheet.columns, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{WRAPPED if len(cell) > WIDE else kind}>{escape(cell)}</td>"
            for kind, cell in zip(kinds, row, strict=True)
        )
        + "</tr>\n"
        for row in sheet.rows
    )
    return (
        f"<h2>{escape(sheet.title)}</h2>\n<div class='table'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>\n"
    )
