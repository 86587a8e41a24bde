"""README's table of a race's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASES = ("m3rt openvino:bf16", "m3rt cpu:fp32")  # the first that ran is what others are beside
INT8 = ("m3rt openvino:int8", "m3rt cpu:int8")
GFLOP_PER_TOKEN = 0.604  # of the trunk's linear layers: 24 layers of 12 h² weights, h = 1024
NEAR_LOSSLESS = 5e-4  # the worst 1 - cosine of a dense vector under the same accuracy
PRECISIONS = ("fp32", "bf16", "int8")
COLUMNS = (
    *("heads", "tokens/s", "{base} is faster by", "of the peak", "16 tokens", "512 tokens"),
    *("memory", "dense 1 - cos", "ColBERT 1 - cos", "same top 10"),
)
Row = Mapping[str, Any]


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table of the run that m3rt's fastest near-lossless engine is of.

    A row of another run stands in it without a ratio.
    """
    rows: dict[str, Row] = {n: row for n, row in found["rows"].items() if "error" not in row}
    if not rows:
        return failures(found)
    base = next((name for name in BASES if name in rows), next(iter(rows)))
    run = found["runs"][rows[base]["run"]]
    titles = [title.format(base=base) for title in COLUMNS]
    head = f"{run['texts']} texts, {run['tokens']} tokens"
    lines = [f"| {head} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in sorted(rows, key=lambda name: -rows[name]["tokens_per_second"]):
        lines.append(line(found, name, base))
    return "\n".join(
        [*lines, "", notes(found, base), *([f"\n{f}"] if (f := failures(found)) else [])]
    )


def line(found: Mapping[str, Any], name: str, base: str) -> str:
    """Return a contender's row."""
    row = found["rows"][name]
    rate = row["tokens_per_second"]
    speed = f"{rate:.0f}"
    if row.get("default_batch") not in (None, row.get("batch")):
        speed += (
            f" ({row['default_tokens_per_second']:.0f} at its default of {row['default_batch']})"
        )
    title = name + (f", batch {row['batch']}" if row.get("batch") else "")
    figures = row.get("accuracy", {})
    itself = row.get("reference") == name
    cells = (
        title + ("" if same_run(found, name, base) else " (another run)"),
        "three" if len(row["heads"]) == 3 else " and ".join(row["heads"]),
        speed,
        times(found, base, name),
        f"{share(found, name):.0%}",
        *(f"{row['median_ms'][tokens]:.0f} ms" for tokens in ("16", "512")),
        f"{row['peak_bytes'] / (1 << 30):.1f} GiB",
        *("reference" if itself else distance(figures, head) for head in ("dense", "colbert")),
        "reference" if itself else same_top(figures),
    )
    return f"| {' | '.join(cells)} |"


def same_run(found: Mapping[str, Any], *names: str) -> bool:
    """Whether all rows are there and of one run."""
    rows = [found["rows"].get(name, {"error": "absent"}) for name in names]
    return not any("error" in row for row in rows) and len({row["run"] for row in rows}) == 1


def ratio(found: Mapping[str, Any], name: str, other: str) -> float | None:
    """Return how many times faster the one is than the other; None if they never met."""
    if not same_run(found, name, other):
        return None
    rows = found["rows"]
    return float(rows[name]["tokens_per_second"] / rows[other]["tokens_per_second"])


def times(found: Mapping[str, Any], name: str, other: str) -> str:
    """Write a ratio."""
    value = ratio(found, name, other)
    return "" if value is None else f"{value:.2f}"


def peak(found: Mapping[str, Any], run: str, precision: str) -> float:
    """Return the machine's best rate in a run, GFLOP/s."""
    return float(max(rates[precision] for rates in found["runs"][run]["peaks"].values()))


def share(found: Mapping[str, Any], name: str) -> float:
    """Return how much of the machine's rate in its precision a contender's linear layers reach."""
    row = found["rows"][name]
    most = peak(found, row["run"], row["precision"])
    return float(row["tokens_per_second"] * GFLOP_PER_TOKEN / most)


def distance(figures: Mapping[str, Any], head: str) -> str:
    """Write the worst 1 - cosine of a head."""
    if "cosine_min" not in figures.get(head, {}):
        return ""
    return f"{max(0.0, 1 - figures[head]['cosine_min']):.0e}"


def same_top(figures: Mapping[str, Any]) -> str:
    """Write in how many texts the ten heaviest tokens are the same."""
    return f"{figures['sparse']['top10_equal']:.0%}" if "sparse" in figures else ""


def fastest_peer(found: Mapping[str, Any], base: str, heads: int = 1) -> str | None:
    """Return the fastest of the other runtimes in the base's run that is as accurate."""
    names = [
        name
        for name, row in found["rows"].items()
        if not name.startswith("m3rt")
        and same_run(found, name, base)
        and len(row["heads"]) >= heads
        and 1 - row.get("accuracy", {}).get("dense", {}).get("cosine_min", 0.0) <= NEAR_LOSSLESS
    ]
    return max(names, key=lambda name: found["rows"][name]["tokens_per_second"], default=None)


def notes(found: Mapping[str, Any], base: str) -> str:
    """Return what the table was measured on, and the ratios that matter."""
    run = found["runs"][found["rows"][base]["run"]]
    rates = ", ".join(
        f"{precision} {' / '.join(f'{rate[precision]:.0f}' for rate in run['peaks'].values())}"
        for precision in PRECISIONS
    )
    bf16 = peak(found, found["rows"][base]["run"], "bf16")
    reached = found["rows"][base]["tokens_per_second"] * GFLOP_PER_TOKEN / bf16
    said = [
        f"{run['machine']['cpu']}, {run['machine']['cores']} cores; matrix products of torch "
        f"before / after the race, GFLOP/s: {rates}. The peak is the better of both in a row's own "
        f"precision; {base} is at {reached:.0%} of bf16's."
    ]
    for heads, what in ((3, "with three heads"), (1, "of any")):
        peer = fastest_peer(found, base, heads)
        if peer is not None:
            said.append(
                f"The fastest peer of the same accuracy {what} is {peer}: {base} is faster by "
                f"{times(found, base, peer)}."
            )
    said += [
        f"{name} is faster than {base} by {times(found, name, base)}."
        for name in INT8
        if same_run(found, name, base)
    ]
    versions: dict[str, str] = {}
    for name, row in found["rows"].items():
        for package, version in row.get("versions", {}).items():
            known = versions.setdefault(package, version)
            if known != version:
                versions[f"{package} in {name.rsplit(' ', 1)[0]}"] = version
    listed = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    said.append(
        f"Medians of {run['rounds']} rounds, all in turn, each alone in its own process and "
        "environment, on random weights of the full size; a query of 16 tokens and a text of 512 "
        "alone with every head; 1 - cos is the worst over texts or tokens, same top 10 the share "
        f"of texts whose ten heaviest tokens are the reference's. {run['started'][:10]}; {listed}."
    )
    return " ".join(said)


def failures(found: Mapping[str, Any]) -> str:
    """Return who could not run, and why."""
    rows = found["rows"].items()
    lines = [f"{name} ({row['error']})" for name, row in rows if "error" in row]
    return f"Could not run here: {'; '.join(lines)}." if lines else ""
