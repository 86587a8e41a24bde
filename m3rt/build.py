"""``m3rt build``: what an engine can prepare beforehand, kept in the model directory."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from m3rt import __version__, artifact, engines, parity
from m3rt.artifact import MANIFEST, Artifact, Build
from m3rt.doctor import version
from m3rt.engines import Choice
from m3rt.errors import InputError, missing
from m3rt.parity import Reference
from m3rt.types import Ragged

PREFIX = ".build-"
QUANTISER = ("onnx", "onnx_ir", "onnxruntime")


def run(
    path: str | Path,
    engine: str = "auto",
    calibration: Ragged[np.int32] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Choice, Artifact]:
    """Prepare a model directory for an engine, and prove the result against the checkpoint.

    The directory changes at the very end, at once: an interrupted build leaves nothing.

    Args:
        path: what ``m3rt export`` wrote.
        engine: name, with a precision if you like: ``cpu:int8``.
        calibration: token ids of texts like those to be embedded, for int8; the texts of the
            parity gate by default, which are multilingual and of all lengths.
        force: build again what is built already.
        progress: gets the bars.

    Returns:
        What was built, and the model directory with it. Where an engine has nothing to prepare,
        the directory is as it was.

    Raises:
        ArtifactError: the directory is missing, damaged or foreign.
        InputError: it is built already and force is off, or the engine is not known.
        ParityError: the outputs are out of the precision's tolerance.
        UnavailableError: a package is not installed.
    """
    made = artifact.read(path)
    choice = parity.usable(engine)
    if str(choice) in made.manifest.builds and not force:
        raise InputError(f"{path} is built for {choice} already; pass --force to build it again")
    bars = progress or Progress(disable=True)
    for stale in made.path.glob(f"{PREFIX}*"):
        if not artifact.alive(stale.name.removeprefix(PREFIX).split("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=made.path) as folder:
        part = Path(folder) / "model"
        part.mkdir()
        recipe = write(made, choice, calibration, part, bars)
        files = sorted(part.iterdir())
        if not files:
            return choice, made
        described = {file.name: artifact.describe(file) for file in files}
        # the directory as it will be, to prove it before it is
        for file in made.path.iterdir():
            if file.is_file() and file.name not in (MANIFEST, *described):
                (part / file.name).symlink_to(os.path.relpath(file, part))
        entry = Build(tuple(described), versions(choice), recipe, {})
        trial = Artifact(part, with_build(made, choice, entry, described))
        reference = Reference.read(made.path / parity.REFERENCE)
        figures = parity.gate(trial, reference, str(choice), bars)
        entry = dataclasses.replace(entry, parity=figures)
        manifest = with_build(made, choice, entry, described)
        for file in files:
            file.replace(made.path / file.name)
        (part / MANIFEST).write_text(artifact.dump(manifest), "utf-8")
        (part / MANIFEST).replace(made.path / MANIFEST)
    return choice, Artifact(made.path, manifest)


def write(
    made: Artifact,
    choice: Choice,
    calibration: Ragged[np.int32] | None,
    part: Path,
    bars: Progress,
) -> dict[str, Any]:
    """Fill a directory with what the engine wants; return how it was done."""
    graph: Path | None = None
    recipe: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        if choice.precision == "int8":
            try:
                quantize = import_module("m3rt.export.quantize")
            except ModuleNotFoundError as error:
                if error.name in QUANTISER:
                    raise missing(error.name, "build", "quantising") from error
                raise
            if calibration is None:
                calibration = Reference.read(made.path / parity.REFERENCE).ids
            form = engines.form(choice)
            graph, recipe = quantize.run(made, form, calibration, Path(folder), part, bars)
        task = bars.add_task(f"build {choice}", total=None)
        recipe |= engines.build(made, choice, graph, part)
        bars.update(task, total=1, completed=1)
    return recipe


def versions(choice: Choice) -> dict[str, str]:
    """Return the versions of what made the files."""
    package = engines.BACKENDS[choice.engine].package
    names = (package, "onnx-ir") if choice.precision == "int8" else (package,)
    return {"m3rt": __version__} | {name: found for name in names if (found := version(name))}


def with_build(
    made: Artifact, choice: Choice, entry: Build, described: dict[str, artifact.File]
) -> artifact.Manifest:
    """Return the manifest with one build more, in the place of an older one of its name."""
    manifest = made.manifest
    old = manifest.builds.get(str(choice))
    kept = {
        name: file for name, file in manifest.files.items() if old is None or name not in old.files
    }
    return dataclasses.replace(
        manifest,
        files=kept | described,
        builds={**manifest.builds, str(choice): entry},
    )
