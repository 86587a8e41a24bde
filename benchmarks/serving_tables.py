"""The result of serving.py as tables."""

from __future__ import annotations

from typing import Any

from m3rt.tables import Sheet, number

BULK_TEXTS = 32  # of each bulk request


def sheets(found: dict[str, Any]) -> list[Sheet]:
    """Return the result as tables."""
    overheads = tuple(
        (
            ", ".join(one["heads"]),
            *(f"{one[name]['p50']:.2f}" for name in ("direct_ms", "served_ms")),
            f"{one['overhead_ms']['median_of_differences']:.2f}",
            f"{one['overhead_ms']['p99']:.2f}",
        )
        for one in found["overhead"]
    )
    loads = tuple(
        (
            f"{run['load']:g}x",
            number(run["rate"]),
            number(run["throughput"]),
            f"{part['goodput_of_capacity']:.0%}",
            f"{run['shed_share']:.0%}",
            *(number(run["latency"][p]) if run["latency"] else "-" for p in ("p50", "p99")),
            str(run["wrong"]),
            grown(part["memory"]),
        )
        for part in (*found["steady"], *found["overload"])
        for run in (part["run"],)
    )
    engine = found["engine_ms"]
    own = f"{number(engine['p50'])} and {number(engine['p99'])} ms"
    beside = tuple(
        (
            name.replace("_", " "),
            *(number(run["latency"][p]) if run["latency"] else "-" for p in ("p50", "p99")),
            f"{run['good_share']:.1%}",
            number(one["beside"]["throughput"] * BULK_TEXTS) if one["beside"] else "-",
        )
        for name in ("alone", "bulk", "same_lane")
        for one in (found["lanes"][name],)
        for run in (one["interactive"],)
    )
    slo = f"{found['settings']['slo_ms']:g} ms"
    return [
        Sheet(
            "one query, ms",
            ("heads", "direct, p50", "served, p50", "more, median", "more, p99"),
            overheads,
        ),
        Sheet(
            f"load: good within {slo}; the engine alone has a p50 and p99 of {own}",
            (
                *("of capacity", "offered/s", "answered/s", "goodput of capacity", "shed"),
                *("p50, ms", "p99, ms", "wrong", "memory grew, MB"),
            ),
            loads,
        ),
        Sheet(
            "interactive requests, and what is beside them",
            ("beside", "p50, ms", "p99, ms", "good", "texts/s beside"),
            beside,
        ),
    ]


def grown(memory: dict[str, int] | None) -> str:
    """Write how much memory a server took more."""
    if memory is None:
        return "-"
    return f"{(memory['peak_bytes'] - memory['before_bytes']) / 1e6:.0f}"


def markdown(found: dict[str, Any]) -> str:
    """Return the result as tables for a document."""
    parts = []
    for sheet in sheets(found):
        lines = ["| " + " | ".join(sheet.columns) + " |", "|---" * len(sheet.columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in sheet.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
