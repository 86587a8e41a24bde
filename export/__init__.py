"""Checkpoint to model directory."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.progress import Progress

from m3rt.artifact import Artifact
from m3rt.errors import missing
from m3rt.types import Heads

PACKAGES = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make of a checkpoint."""

    heads: Heads | None = None  # None: all three
    pooling: str | None = None  # of m3rt.types.Pooling; None: as the checkpoint says
    revision: str | None = None  # of a hub id
    max_length: int | None = None  # None: as the checkpoint says, at most 8192
    proof_length: int | None = None  # tokens of the gate's longest text; None: max_length


def run(
    checkpoint: str,
    out: Path,
    recipe: Recipe | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Export a checkpoint, compare the result with it, and write a model directory.

    Args:
        checkpoint: a directory, or a hub id.
        out: the directory to write; it appears only when everything in it is there and proven.
        recipe: what to make of it.
        force: replace a model directory that is there.
        progress: gets the bars.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not supported.
        InputError: an option does not fit it, or out is there.
        ParityError: a head differs from the checkpoint by more than the tolerance.
        UnavailableError: a package of the export extra is not installed.
    """
    made: Artifact = stages().run(checkpoint, out, recipe or Recipe(), force, progress)
    return made


def verify(
    artifact: Artifact, against: str, engine: str = "auto", progress: Progress | None = None
) -> dict[str, Any]:
    """Compare a model directory with a checkpoint; see m3rt.parity.verify.

    Raises:
        ParityError: a head differs by more than the tolerance.
    """
    figures: dict[str, Any] = stages().verify(artifact, against, engine, progress)
    return figures


def stages() -> ModuleType:
    """Import the heavy part.

    Raises:
        UnavailableError: a package of the export extra is not installed.
    """
    try:
        return import_module("m3rt.export.pipeline")
    except ModuleNotFoundError as error:
        if error.name in PACKAGES:
            raise missing(error.name, "export", "m3rt export") from error
        raise
