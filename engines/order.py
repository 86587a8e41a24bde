"""What is asked of an engine's build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from m3rt.artifact import Artifact
from m3rt.engines.catalog import Choice
from m3rt.engines.trt.shaping import Shaping
from m3rt.graph import Graph


@dataclass(frozen=True, slots=True)
class Order:
    """What an engine is to build."""

    artifact: Artifact  # the model directory
    choice: Choice
    graph: Path | Graph | None  # made for it: quantised, or typed; None for the exported one
    out: Path  # directory for the files
    shaping: Shaping  # what the user wants of a TensorRT engine
    bars: Progress  # gets the bars
