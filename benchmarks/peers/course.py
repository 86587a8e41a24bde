"""What contenders run, how their workers are started, and where files of theirs go."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contenders import Contender
from benchmarks.peers.environments import interpreter


@dataclass(frozen=True, slots=True)
class Course:
    """What every contender runs."""

    work: Path  # holds checkpoint, model, peers and outputs
    data: Path
    texts: Path  # a JSON list
    tokens: int  # in all texts
    single: Mapping[int, str]  # number of tokens to a text of so many


def command(contender: Contender, course: Course) -> list[str]:
    """Return the command of a worker.

    Raises:
        PeerError: its environment cannot be installed.
    """
    home = course.work / "peers" / (contender.requirements or "m3rt")
    return [
        str(interpreter(contender.requirements, course.work)),
        *("-m", contender.worker),
        *("--model", str(course.work / contender.reads)),
        *("--files", str(home / "files")),
        *("--data", str(course.data)),
        *("--texts", str(course.texts)),
        *("--options", json.dumps(dict(contender.options))),
    ]


def log(contender: Contender, course: Course) -> Path:
    """Return the file that a worker's standard error goes to."""
    return course.work / "logs" / f"{plain(contender.name)}.log"


def saved(name: str, course: Course) -> Path:
    """Return the file that a contender's outputs go to."""
    return course.work / "outputs" / f"{plain(name)}.npz"


def plain(name: str) -> str:
    """Return a name as a file may have it."""
    return re.sub(r"\W+", "-", name)


def without_paths(text: str) -> str:
    """Return a message with the last part alone of each path: a result is for other machines."""
    return re.sub(r"(?:/[\w.@+-]+)+/([\w.@+-]+)", r"\1", text)[:300]
