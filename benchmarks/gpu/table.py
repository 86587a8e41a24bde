"""The tables of a result, as README has them.

python -m benchmarks.gpu.table gpu.json
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.gpu import shares
from benchmarks.gpu.contenders import BASE, REFERENCE
from benchmarks.peers.table import distance, same_top

MAIN = "rate: mixed, all"
LATENCY = "latency: length {}, all"
RATE = "rate: length {}, {}"
Found = Mapping[str, Any]


def markdown(found: Found) -> str:
    """Return all tables, and the notes that belong to them."""
    parts = [main_table(found), lengths(found, "all"), lengths(found, "dense")]
    parts += [paths(found), budgets(found), notes(found), failures(found)]
    return "\n\n".join(part for part in parts if part)


def main_table(found: Found) -> str:
    """Return the table of speed, latency, memory and accuracy, the fastest first."""
    names = [name for name in found["rows"] if figure(found, name, MAIN)]
    if not names:
        return ""
    base = BASE if BASE in names else names[0]
    about = latest(found)["texts"]["mixed"]
    rows = [
        [
            f"{about['texts']} texts, {about['tokens']} tokens",
            *("heads", "tokens/s", f"{base} is faster by", "of the products", "CPU µs a token"),
            *("16 tokens, p50 / p99", "512 tokens, p50 / p99", "GPU memory"),
            *("dense 1 - cos", "ColBERT 1 - cos", "sparse error", "same top 10"),
        ]
    ]
    for name in sorted(names, key=lambda name: -(rate(found, name, MAIN) or 0.0)):
        rows.append(main_row(found, name, base))
    return table(rows)


def main_row(found: Found, name: str, base: str) -> list[str]:
    """Return a contender's cells."""
    row, one = found["rows"][name], figure(found, name, MAIN)
    assert one is not None
    run, values = one
    accuracy = (figure(found, name, "parity") or ("", {}))[1].get("accuracy", {})
    sparse = accuracy.get("sparse", {}).get("weight_error_max")
    reference = name == REFERENCE
    used = [f["device_bytes"] for f in row["figures"][run].values() if f.get("device_bytes")]
    return [
        name + (f", batch {row['batch']}" if row.get("batch") else "") + other(found, run),
        "three" if len(row["heads"]) == 3 else " and ".join(row["heads"]),
        f"{rate(found, name, MAIN):,.0f}{default(found, name)}",
        times(found, base, name, MAIN),
        percent(shares.of_products(found, name, MAIN)),
        number(cpu(found, run, values, "mixed"), "{:.2f}"),
        *(latency(found, name, length) for length in (16, 512)),
        f"{max(used) / (1 << 30):.1f} GiB" if used else "",
        *("reference" if reference else distance(accuracy, head) for head in ("dense", "colbert")),
        number(sparse, "{:.0e}"),
        same_top(accuracy),
    ]


def lengths(found: Found, heads: str) -> str:
    """Return tokens/s over length, with the share of the device's products for the first row."""
    keys = keys_of(found, f", {heads}", "rate: length ")
    names = [
        name
        for name, row in found["rows"].items()
        if ", " not in name.removeprefix("torch SDPA") and any(figure(found, name, k) for k in keys)
    ]
    if not keys or not names:
        return ""
    what = "all heads" if heads == "all" else "dense alone"
    rows = [[f"tokens/s, {what}", *(key.split()[2].strip(",") for key in keys)]]
    for name in names:
        cells = [name]
        for key in keys:
            value, share = rate(found, name, key), shares.of_products(found, name, key)
            cells.append(
                error(found, name, key)
                if value is None
                else f"{value:,.0f}" + (f" ({share:.0%})" if share is not None else "")
            )
        rows.append(cells)
    return table(rows)


def paths(found: Found) -> str:
    """Return tokens/s of the forms of attention, over length."""
    names = [name for name in found["rows"] if name.endswith((" varlen", " rectangles"))]
    keys = [key for key in keys_of(found, ", all", "rate: length ") if any_of(found, names, key)]
    if not keys:
        return ""
    rows = [["tokens/s by attention", *(key.split()[2].strip(",") for key in keys)]]
    for name in names:
        rows.append([name, *(number(rate(found, name, key), "{:,.0f}") for key in keys)])
    return table(rows)


def budgets(found: Found) -> str:
    """Return tokens/s over the tokens of a step."""
    keys = [key for key in keys_of(found, "", "rate: ") if "steps of" in key]
    names = [name for name in found["rows"] if any_of(found, [name], *keys)]
    if not names:
        return ""
    sizes = sorted({int(key.split()[-1]) for key in keys})
    rows = [["tokens/s by tokens of a step", *map(str, sizes)]]
    for name in names:
        for texts in sorted({key.split()[1].strip(",") for key in keys}):
            cells = (rate(found, name, f"rate: {texts}, all, steps of {size}") for size in sizes)
            rows.append([f"{name}, {texts}", *(number(cell, "{:,.0f}") for cell in cells)])
    return table(rows)


def notes(found: Found) -> str:
    """Return what it was measured on."""
    run = latest(found)
    about = run.get("machine", {})
    rates = run.get("rates", [])
    if not about or not rates:
        return ""
    flops = ", ".join(f"{name} {shares.flops(run, name) / 1e12:.3g}" for name in rates[0]["flops"])
    copied = ", ".join(
        f"{name.replace('_', ' ')} {shares.copied(run, name) / 1e9:.3g}"
        for name in rates[0]["bytes_per_second"]
    )
    sent = shares.of_copies(found, BASE, MAIN)
    versions: dict[str, str] = {}
    for row in found["rows"].values():
        versions |= row.get("versions", {})
    listed = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    return (
        f"{about['gpu'] or about['cpu']}, driver {rates[0]['before'].get('driver', 'none')}, "
        f"{about['cores']} cores. Its own products of two random matrices of {rates[0]['size']} "
        f"squared, TFLOP/s: {flops}; its copies, GB/s: {copied}. The share of the products is that "
        "of a contender's own precision, with attention counted. From texts on the host to "
        "vectors on the host, medians of rounds in turn, each contender in a process of its own, "
        f"random weights, {run.get('tokenizer', 'small')} tokenizer"
        + ("" if sent is None else f"; copies to the host take {sent:.0%} of that rate")
        + attention(run)
        + ". 1 - cos is the worst over texts or tokens, against torch in fp32 on the same device. "
        f"{max(found['runs'])[:10]}; {listed}."
    )


def attention(run: Found) -> str:
    """Return which kernels m3rt's attention ran in."""
    told = run.get("kernels")
    if not told:
        return ""
    if "error" in told:
        return f"; which kernels {BASE} ran is not known ({told['error']})"
    ran = [
        f"{operator} in {kernel} ({count})"
        for operator, counts in told["ran"].items()
        for kernel, count in counts.items()
    ]
    return f"; {BASE} ran {', '.join(ran)}" + ("".join(f", SLOW: {one}" for one in told["slow"]))


def failures(found: Found) -> str:
    """Return who could not run, and why."""
    lines = [f"{name} ({row['error']})" for name, row in found["rows"].items() if "error" in row]
    return f"Could not run here: {'; '.join(lines)}." if lines else ""


def latest(found: Found) -> Found:
    """Return the run that started last, of those in which something was measured."""
    used = {run for row in found["rows"].values() for run in row.get("figures", {})}
    run: Found = found["runs"][max(used or found["runs"])]
    return run


def figure(found: Found, name: str, key: str) -> tuple[str, Found] | None:
    """Return the newest run in which a contender has a figure, and the figure."""
    figures = found["rows"].get(name, {}).get("figures", {})
    for run in sorted(figures, reverse=True):
        if figures[run].get(key, {}).get("rounds"):
            return run, figures[run][key]
    return None


def rate(found: Found, name: str, key: str) -> float | None:
    """Return tokens/s."""
    one = figure(found, name, key)
    if one is None or "seconds" not in one[1]:
        return None
    return float(tokens(found, one[0], key) / median(one[1]["seconds"]))


def tokens(found: Found, run: str, key: str) -> int:
    """Return the tokens of the texts that a figure is of."""
    return int(shares.texts_of(found, run, key)["tokens"])


def times(found: Found, name: str, other: str, key: str) -> str:
    """Write how many times faster one is, the median of the rounds of their newest common run."""
    figures = [found["rows"].get(one, {}).get("figures", {}) for one in (name, other)]
    for run in sorted(figures[0].keys() & figures[1].keys(), reverse=True):
        mine, theirs = (f[run].get(key, {}).get("seconds", []) for f in figures)
        if mine and theirs:
            return f"{median(b / a for a, b in zip(mine, theirs, strict=False)):.2f}"
    return ""


def latency(found: Found, name: str, length: int) -> str:
    """Write the median and the 99th percentile of one text's time."""
    one = figure(found, name, LATENCY.format(length))
    if one is None:
        return ""
    half, most = np.percentile(one[1]["ms"], (50, 99))
    return f"{half:.2f} / {most:.2f} ms"


def cpu(found: Found, run: str, values: Found, texts: str) -> float | None:
    """Return the microseconds of processors a token."""
    count = found["runs"][run]["texts"][texts]["tokens"]
    return 1e6 * median(values["cpu"]) / count if values.get("cpu") else None


def default(found: Found, name: str) -> str:
    """Write the rate at the batch size of a user who sets nothing."""
    row, trial = found["rows"][name], found["rows"][name].get("trial", {})
    size = str(row.get("default_batch", ""))
    one = figure(found, name, MAIN)
    if one is None or size not in trial or int(size) == row.get("batch"):
        return ""
    return f" ({tokens(found, one[0], MAIN) / trial[size]:,.0f} at its default of {size})"


def other(found: Found, run: str) -> str:
    """Mark a row of another run than the latest."""
    return "" if found["runs"][run] is latest(found) else " (another run)"


def error(found: Found, name: str, key: str) -> str:
    """Write why there is no figure."""
    for figures in found["rows"][name].get("figures", {}).values():
        if "error" in figures.get(key, {}):
            return "memory" if "memory" in figures[key]["error"] else "failed"
    return ""


def keys_of(found: Found, ends: str, begins: str) -> list[str]:
    """Return the keys of figures, those of lengths in their order."""
    keys = {
        key
        for row in found["rows"].values()
        for figures in row.get("figures", {}).values()
        for key in figures
        if key.startswith(begins) and key.endswith(ends)
    }
    numbers = {
        key: [int(w.strip(",")) for w in key.split() if w.strip(",").isdigit()] for key in keys
    }
    return sorted(keys, key=lambda key: (numbers[key], key))


def any_of(found: Found, names: Iterable[str], *keys: str) -> bool:
    """Whether one of these has one of these figures."""
    return any(figure(found, name, key) for name in names for key in keys)


def number(value: float | None, form: str) -> str:
    """Write a number, if there is one."""
    return "" if value is None else form.format(value)


def percent(value: float | None) -> str:
    """Write a share, if there is one."""
    return number(value, "{:.0%}")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first the titles."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


def main(result: Annotated[Path, typer.Argument(help="gpu.json")]) -> None:
    """Print the tables of a result."""
    print(markdown(json.loads(result.read_text("utf-8"))))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
