"""What the user may say of the shapes, and of the GPUs, that a TensorRT engine is built for."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from m3rt import traffic
from m3rt.engines.trt import profiles
from m3rt.engines.trt.profiles import MOST_TOKENS, STEP, Profile
from m3rt.errors import InputError
from m3rt.traffic import Traffic

MOST_PROFILES = 16  # each has kernels of its own, and takes its time to build
CAPABILITY = re.compile(r"(?:sm_?)?([1-9][0-9]?)\.?([0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shaping:
    """How to shape an engine; None, and the other defaults, leave it to m3rt."""

    max_length: int | None = None  # of a text; the model's own
    max_tokens: int = 16384  # of a batch, padding included: memory is in proportion to it
    count: int = 4  # profiles
    profiles: tuple[Profile, ...] | None = None  # in place of max_tokens, count and traffic
    traffic: Traffic | None = None  # m3rt.traffic.DEFAULT
    target: tuple[str, ...] = ()  # compute capabilities, as sm86; () for the library's choice


def resolve(shaping: Shaping, max_length: int) -> tuple[Profile, ...]:
    """Return the profiles to build.

    Args:
        shaping: what is wanted.
        max_length: the model's.

    Raises:
        InputError: something is out of bounds, something else contradicts the profiles that are
            given, or these do not run every text.
    """
    length = max_length if shaping.max_length is None else shaping.max_length
    bounded("max_length", length, min(STEP, max_length), max_length, "the model's")
    if shaping.profiles is None:
        bounded("max_tokens", shaping.max_tokens, 1, MOST_TOKENS)
        bounded("the number of profiles", shaping.count, 1, MOST_PROFILES)
        found = shaping.traffic or traffic.declared()
        return profiles.budgeted(found, length, shaping.max_tokens, shaping.count)
    defaults = {field.name: field.default for field in fields(Shaping)}
    for name, said in (
        ("traffic", "the traffic"),
        ("max_tokens", "max_tokens"),
        ("count", "the number of profiles"),
    ):
        if getattr(shaping, name) != defaults[name]:
            raise InputError(f"the profiles are given, so {said} has no meaning: leave one out")
    if len(shaping.profiles) > MOST_PROFILES:
        raise InputError(f"{len(shaping.profiles)} profiles, expected at most {MOST_PROFILES}")
    ends = max((profile.most[1] for profile in shaping.profiles), default=length)
    if shaping.max_length is None and ends < length:
        raise InputError(
            f"the profiles end at {ends} tokens, and the model takes {length}: add a profile, or "
            f"pass --max-length {ends} for an engine that takes no longer texts"
        )
    profiles.check(shaping.profiles, length)
    return shaping.profiles


def bounded(name: str, value: int, least: int, most: int, whose: str = "") -> None:
    """Refuse a number that is out of bounds."""
    if not least <= value <= most:
        of = f" ({whose})" if whose else ""
        raise InputError(f"{name} is {value}, expected {least} to {most}{of}")


def parse_target(text: str) -> tuple[str, ...]:
    """Read compute capabilities, in any of the usual forms: sm86, sm_86, 8.6, 86.

    Whether the library knows them is for its builder to say.

    Returns:
        Each once, ascending, as sm86.

    Raises:
        InputError: one has none of these forms.
    """
    found = set()
    for part in text.split(","):
        parts = CAPABILITY.fullmatch(part.strip())
        if not parts:
            raise InputError(
                f"{part.strip()!r} is no compute capability, expected one as sm86 or 8.6, or "
                "several joined by commas"
            )
        found.add((int(parts[1]), int(parts[2])))
    return tuple(f"sm{major}{minor}" for major, minor in sorted(found))


def expect_profiles(engine: str, said: str) -> None:
    """Refuse an option of shapes for an engine that takes any shape.

    Raises:
        InputError: the engine has no profiles.
    """
    if "tensorrt" not in engine:
        raise InputError(f"{engine} has no profiles: leave out {said}")
