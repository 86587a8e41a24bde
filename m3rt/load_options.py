"""The options of ``m3rt bench`` that are for a server."""

from __future__ import annotations

from typing import Annotated

import typer

from m3rt.loads import LoadSettings
from m3rt.payloads import FORMS

DEFAULT = LoadSettings()
USUAL = (0.5, 0.8, 1.2)  # of the capacity


def parse_rates(text: str) -> tuple[float, ...]:
    """Read --rate and --load."""
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers joined by commas") from None
    if not all(0 < value < float("inf") for value in found):
        raise typer.BadParameter(f"{text!r}: expected numbers above 0")
    return found


def rates(rate: str | None, load: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the rates and the shares of the capacity to measure at."""
    if rate is None and load is None:
        return (), USUAL
    return parse_rates(rate) if rate else (), parse_rates(load) if load else ()


def check_form(name: str) -> str:
    """Refuse a --form that there is not."""
    if name not in FORMS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(FORMS)}")
    return name


Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Measure a server under load instead. The options below, up to --output, are for it.",
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rate", metavar="NUMBERS", help="Requests a second, one after another, as 5,10,20."
    ),
]
Shares = Annotated[
    str | None,
    typer.Option(
        "--load",
        metavar="NUMBERS",
        help="Rates as shares of the capacity, which is measured first.",
        show_default="0.5,0.8,1.2 without --rate",
    ),
]
Duration = Annotated[float, typer.Option(min=0.1, help="Seconds measured at each rate.")]
WarmUp = Annotated[float, typer.Option(min=0, help="Seconds at each rate before that.")]
Texts = Annotated[int, typer.Option("--texts", min=1, help="Texts in a request.")]
Distinct = Annotated[
    int, typer.Option(min=1, help="Texts that differ: numbers go before those of a mix.")
]
Form = Annotated[
    str,
    typer.Option(
        callback=check_form, help="Of answers: json, base64, binary; the last two in float16."
    ),
]
Slo = Annotated[float, typer.Option(min=0, help="Milliseconds after which an answer is no good.")]
Deadline = Annotated[
    float | None, typer.Option(min=0.001, help="Milliseconds that a request says it may take.")
]
Bulk = Annotated[float, typer.Option(min=0, max=1, help="Share of requests that are bulk.")]
BulkTexts = Annotated[int, typer.Option(min=1, help="Texts in each of them.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        envvar="M3RT_API_KEY",
        help="Give it again for another client; they take turns.",
    ),
]
Connections = Annotated[int, typer.Option(min=1, help="Open at once, at most.")]
Concurrency = Annotated[
    int, typer.Option(min=1, help="Requests at once, at most, while the capacity is measured.")
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that an answer is waited for.")]
Check = Annotated[bool, typer.Option("--check", help="Compare every answer with one of its own.")]
CheckCosine = Annotated[
    float, typer.Option(min=0, max=1, help="The least cosine of a vector with the expected one.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the arrivals.")]

ONLY_ENGINES = ("engine", "rounds", "seconds", "streams", "devices", "compare")
ONLY_SERVERS = (
    *(
        "rate",
        "load",
        "duration",
        "warm_up",
        "texts",
        "distinct",
        "form",
        "slo_ms",
        "deadline_ms",
        "bulk",
    ),
    *("bulk_texts", "api_key", "connections", "concurrency", "timeout", "check", "check_cosine"),
    "seed",
)


def refuse(ctx: typer.Context, server: str | None) -> None:
    """Refuse options that are for the other kind of benchmark.

    Raises:
        BadParameter: one was given.
    """
    for name in ONLY_SERVERS if server is None else ONLY_ENGINES:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            what = "needs --server URL" if server is None else "is not for --server"
            raise typer.BadParameter(f"{option} {what}")
