"""Settings from flags, the environment and m3rt.toml, in this order, and which gave each value.

``M3RT_PORT`` sets ``port``. Where there is none, text-embeddings-inference's name is looked for,
``PORT``; but not ``HOSTNAME``, which shells and containers set to something else. In m3rt.toml
settings stand in a table ``[serve]``.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from m3rt.errors import InputError
from m3rt.server.settings import Settings

FILE = Path("m3rt.toml")
TABLE = "serve"
SECRET = ("api_key",)
NEVER = ("HOSTNAME",)


@dataclass(frozen=True, slots=True)
class Value:
    """A value, and where it came from: ``flag``, a variable's name, a file, or ``default``."""

    value: Any
    source: str


def read(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> dict[str, Value]:
    """Return each setting's value and source.

    Args:
        flags: those that were given.
        environment: variables; the process's own by default.
        file: to read; by default m3rt.toml of the working directory, if it is there.

    Raises:
        InputError: the file cannot be read, has a setting that does not exist, or a value is of
            the wrong type; or there is no model.
    """
    variables = os.environ if environment is None else environment
    table, name = of_file(file)
    hints = typing.get_type_hints(Settings)
    found: dict[str, Value] = {}
    for field in fields(Settings):
        given = flags.get(field.name)
        variable = variable_of(field.name, field.metadata["tei"], variables)
        if given is not None:
            raw, source = given, "flag"
        elif variable is not None:
            raw, source = variables[variable], variable
        elif field.name in table:
            raw, source = table[field.name], name
        elif field.default is not MISSING:
            raw, source = field.default, "default"
        else:
            raise InputError(
                f"there is no {field.name}: give it as an argument, as M3RT_{field.name.upper()} "
                f"or in {FILE}"
            )
        found[field.name] = Value(converted(raw, hints[field.name], field.name, source), source)
    return found


def settings(values: Mapping[str, Value]) -> Settings:
    """Return the settings alone."""
    return Settings(**{name: found.value for name, found in values.items()})


def shown(values: Mapping[str, Value]) -> list[tuple[str, str, str]]:
    """Return name, value and source of each setting; keys are not shown."""
    return [
        (
            name,
            "***" if name in SECRET and found.value else text_of(found.value),
            found.source,
        )
        for name, found in values.items()
    ]


def text_of(value: Any) -> str:
    """Return a value as it would be given."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def of_file(file: Path | None) -> tuple[dict[str, Any], str]:
    """Return the settings of a file, and its name."""
    path = FILE if file is None else file
    if file is None and not path.is_file():
        return {}, ""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    table = content.get(TABLE, {})
    if not isinstance(table, dict):
        raise InputError(f"{path} has {TABLE} = {table!r}, expected a table [{TABLE}]")
    table = {key.replace("-", "_"): value for key, value in table.items()}
    names = [field.name for field in fields(Settings)]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            cure = f"; is it {near[0]}?" if near else ""
            raise InputError(f"{path} sets {key}, which is no setting{cure}")
    return table, str(path)


def variable_of(name: str, tei: str, variables: Mapping[str, str]) -> str | None:
    """Return the variable that sets a setting; an empty one sets nothing."""
    for variable in (f"M3RT_{name.upper()}", tei.upper()):
        if variables.get(variable) and variable not in NEVER:
            return variable
    return None


def converted(raw: Any, kind: Any, name: str, source: str) -> Any:
    """Convert a value into its setting's type.

    Raises:
        InputError: it cannot be.
    """
    if kind is Path:
        return Path(raw)
    split = typing.get_origin(kind) is tuple and isinstance(raw, str)
    try:
        value = msgspec.convert(raw.split(",") if split else raw, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{name} is {raw!r} ({source}): {error}") from error
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, int | float) and not number >= 0 for number in numbers):
        raise InputError(f"{name} is {raw!r} ({source}), expected 0 or more")
    return value
