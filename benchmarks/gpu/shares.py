"""How much of what the device can do a figure is: of its own products, and of its own copies."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

HALF = 2  # bytes of a number that is copied to the host
EIGHT_BITS = ("int8", "fp8")  # no rate of products in these is measured
Found = Mapping[str, Any]


def flops(run: Found, precision: str) -> float:
    """Return the rate of products in a precision, FLOP/s: the better of a run's calls."""
    return float(max(rates["flops"][precision] for rates in run["rates"]))


def copied(run: Found, kind: str) -> float:
    """Return the rate of copies, bytes/s: the better of a run's calls."""
    return float(max(rates["bytes_per_second"][kind] for rates in run["rates"]))


def flop(about: Found, network: Found, colbert: bool) -> float:
    """Return the operations for a set of texts, padding not counted.

    A multiplication and an addition are two. Per layer and token 4 h² weights in attention and
    2 h ffn after it; per layer and pair of tokens of one text 2 h; h d for a ColBERT vector. For
    dense vectors alone all of the last layer counts, too, though an engine may leave most of it.
    """
    h, layers = network["hidden"], network["layers"]
    linear = layers * (4 * h * h + 2 * h * network["ffn"]) + (h * network["colbert"] * colbert)
    return float(2 * linear * about["tokens"] + 4 * layers * h * about["pairs"])


def texts_of(found: Found, run: str, key: str) -> Found:
    """Return the set of texts that a figure is of: ``rate: length 16, all`` names length 16."""
    about: Found = found["runs"][run]["texts"][key.partition(": ")[2].split(",")[0]]
    return about


def newest(found: Found, name: str, key: str) -> tuple[Found, Found, float] | None:
    """Return the newest run with rates of which a figure is, its texts, and its seconds."""
    figures = found["rows"].get(name, {}).get("figures", {})
    for run in sorted(figures, reverse=True):
        seconds = figures[run].get(key, {}).get("seconds")
        about = found["runs"][run]
        if seconds and about.get("rates") and "network" in about:
            return about, texts_of(found, run, key), median(seconds)
    return None


def of_products(found: Found, name: str, key: str) -> float | None:
    """Return the share of the device's products in a contender's own precision."""
    one, precision = newest(found, name, key), found["rows"].get(name, {}).get("precision")
    if one is None or precision in EIGHT_BITS:
        return None
    run, about, seconds = one
    colbert = "colbert" in found["rows"][name]["heads"] and "dense" not in key.split(", ")
    return flop(about, run["network"], colbert) / seconds / flops(run, precision)


def of_copies(found: Found, name: str, key: str) -> float | None:
    """Return the share of the device's copies to the host, for all heads in half precision."""
    one = newest(found, name, key)
    if one is None or "device_to_host" not in one[0]["rates"][0]["bytes_per_second"]:
        return None
    run, about, seconds = one
    amount = about["tokens"] * (HALF * run["network"]["colbert"] + 4)
    return float(amount / seconds / copied(run, "device_to_host"))
