"""The options of ``m3rt build`` that shape a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3rt import artifact, engines, render, traffic
from m3rt.engines.trt.profiles import parse
from m3rt.engines.trt.shaping import Shaping, expect_profiles, parse_target
from m3rt.errors import InputError

DEFAULT = Shaping()

MaxLength = Annotated[
    int | None,
    typer.Option(help="Most tokens of a text; for TensorRT.", show_default="the model's"),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of a batch; for TensorRT.", show_default=str(DEFAULT.max_tokens)
    ),
]
Profiles = Annotated[
    str | None,
    typer.Option(
        metavar="LEAST:BEST:MOST,...",
        help="Shapes to build for, each TEXTSxTOKENS; for TensorRT.",
        show_default="chosen",
    ),
]
ProfileCount = Annotated[
    int | None,
    typer.Option(help="How many to choose; for TensorRT.", show_default=str(DEFAULT.count)),
]
LengthsFile = Annotated[
    Path | None,
    typer.Option("--lengths", help="File of the lengths to choose them for; for TensorRT."),
]
DeclaredMix = Annotated[
    str | None,
    typer.Option(
        "--mix",
        metavar="NAME=SHARE,...",
        help="Built-in lengths instead: queries=3,passages=1; for TensorRT.",
        show_default=traffic.DEFAULT,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(help="GPUs to build for, as sm86,sm89; for TensorRT.", show_default="all it can"),
]


def read(
    model: Path,
    engine: str,
    *,
    max_length: int | None = None,
    max_tokens: int | None = None,
    profiles: str | None = None,
    profile_count: int | None = None,
    lengths: Path | None = None,
    mix: str | None = None,
    target: str | None = None,
) -> Shaping | None:
    """Read how to shape an engine; None where nothing is said of it.

    Raises:
        InputError: an option cannot be read, two contradict each other, or the engine takes none.
    """
    said = {
        "--max-length": max_length,
        "--max-tokens": max_tokens,
        "--profiles": profiles,
        "--profile-count": profile_count,
        "--lengths": lengths,
        "--mix": mix,
        "--target": target,
    }
    given = [name for name, value in said.items() if value is not None]
    if not given:
        return None
    expect_profiles(engines.choose(engine).engine, given[0])
    for name in ("--max-tokens", "--profile-count", "--lengths", "--mix"):
        if "--profiles" in given and name in given:
            raise InputError(f"--profiles says all that {name} would: leave one of them out")
    if lengths is not None and mix is not None:
        raise InputError("--lengths and --mix both say what texts there are: leave one of them out")
    counted = traffic.declared(mix) if mix is not None else None
    if lengths is not None:
        counted = traffic.read(lengths)
        longest = max_length or artifact.read(model).manifest.max_length
        if over := counted.over(longest):
            render.say(f"{over:.2%} of {lengths} is over {longest} tokens, and counts as {longest}")
    return Shaping(
        max_length=max_length,
        max_tokens=DEFAULT.max_tokens if max_tokens is None else max_tokens,
        count=DEFAULT.count if profile_count is None else profile_count,
        profiles=None if profiles is None else parse(profiles),
        traffic=counted,
        target=() if target is None else parse_target(target),
    )
