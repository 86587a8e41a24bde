"""``m3rt build``: what an engine can prepare beforehand, kept in the model directory."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from m3rt import __version__, artifact, engines, gate, harm, recovery, tolerances
from m3rt.artifact import MANIFEST, Artifact, Build
from m3rt.doctor import version
from m3rt.engines import Choice
from m3rt.engines.trt.shaping import Shaping
from m3rt.errors import InputError, ParityError
from m3rt.gate import Terms
from m3rt.recovery import Attempt
from m3rt.trial import EIGHT_BITS, IN_MEMORY, Trials
from m3rt.types import Ragged

PREFIX = ".build-"


def run(
    path: str | Path,
    engine: str = "auto",
    calibration: Ragged[np.int32] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    terms: Terms | None = None,
    shaping: Shaping | None = None,
) -> tuple[Choice, Artifact]:
    """Prepare a model directory for an engine, and prove the result.

    An engine of reduced precision is compared with float32 on texts that it was not made with;
    int8 that is out of tolerance is built again with its most harmful layers in higher precision.
    The directory changes at the very end, at once: an interrupted build leaves nothing.

    Args:
        path: what ``m3rt export`` wrote.
        engine: name, with a precision if you like: ``cpu:int8``.
        calibration: token ids of texts like those to be embedded, for int8; the texts of the
            parity gate by default, which are multilingual and of all lengths. Those that are also
            texts of the quality gate are left out.
        force: build again what is built already.
        progress: gets the bars.
        terms: what the result is held to; the precision's own tolerances by default.
        shaping: what shapes to build for, and for which GPUs; TensorRT only.

    Returns:
        What was built, and the model directory with it. Where an engine has nothing to prepare,
        the directory is as it was.

    Raises:
        ArtifactError: the directory is missing, damaged or foreign.
        InputError: it is built already and force is off, the engine or a tolerance is not known, or
            the shaping is not one for the engine or the model.
        ParityError: the outputs are out of tolerance; says which head, and which layers.
        UnavailableError: a package is not installed.
    """
    made = artifact.read(path)
    choice = engines.to_build(engine)
    if str(choice) in made.manifest.builds and not force:
        raise InputError(f"{path} is built for {choice} already; pass --force to build it again")
    if shaping is not None:  # refused before anything runs
        engines.expect(choice, shaping, made.manifest.max_length)
    terms = terms or Terms()
    limits = tolerances.of(choice.precision, terms.tolerances)
    bars = progress or Progress(disable=True)
    for stale in made.path.glob(f"{PREFIX}*"):
        if not artifact.alive(stale.name.removeprefix(PREFIX).split("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=made.path) as folder:
        trials = Trials(made, choice, limits, terms, Path(folder), bars, shaping)
        trials.prepare(calibration)
        first = trials.attempt()
        if first is None:
            return choice, made
        done, cost = first, dict[str, Any]()
        if first.failures and terms.recover and trials.recipe:
            done, cost = recover(first, trials)
        if done.failures:
            raise error_of(done, trials)
        folder_of = done.artifact.path
        described = {name: artifact.describe(folder_of / name) for name in done.files}
        entry = Build(
            done.files, versions(choice), {**done.recipe, **cost}, done.parity, done.certificate
        )
        manifest = with_build(made, choice, entry, described)
        for name in done.files:
            (folder_of / name).replace(made.path / name)
        (folder_of / MANIFEST).write_text(artifact.dump(manifest), "utf-8")
        (folder_of / MANIFEST).replace(made.path / MANIFEST)
    built = Artifact(made.path, manifest)
    engines.observe(built, choice)
    return choice, built


def recover(first: Attempt, trials: Trials) -> tuple[Attempt, dict[str, Any]]:
    """Raise the precision of layers until the gate is passed; also return what that cost."""
    order = harm.order(trials.harm(), heads(first))
    done, tries = recovery.recover(first, order, trials.attempt_with, trials.drop)
    speed = {} if done.failures else trials.speeds(first, done)
    return done, {"recovery": recovery.report(first, done, tries, speed)}


def heads(made: Attempt) -> tuple[str, ...]:
    """Return the heads that failed, those of a mixture among them."""
    return harm.heads_of(failure.head for failure in made.failures)


def error_of(made: Attempt, trials: Trials) -> ParityError:
    """Return the error that says which figures are out of tolerance, and which layers did it."""
    choice = trials.choice
    reasons = "; ".join(map(str, made.failures))
    if not gate.needed(choice.precision):
        return ParityError(f"the {choice} engine differs from float32: {reasons}", made.parity)
    layers = harm.told(harm.worst(trials.harm(), heads(made)))
    if not layers:
        layers = "to learn which layers do it: pip install 'm3rt[build]'"
    cures = ["pass --tolerance NAME=VALUE to allow it"]
    if made.kept:
        layers = f"so it is with all {len(made.kept)} layers in higher precision; {layers}"
    elif trials.recipe:
        cures.append("leave out --no-recover to raise layers until it passes")
    if trials.recipe:
        cures.append("calibrate on texts like your own with --calibration")
    return ParityError(
        f"the {choice} engine differs from float32: {reasons}; {layers}; {', or '.join(cures)}",
        made.parity,
        made.certificate,
    )


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


def versions(choice: Choice) -> dict[str, str]:
    """Return the versions of what made the files."""
    package = engines.BACKENDS[choice.engine].package
    made = choice.precision in EIGHT_BITS or engines.form(choice) in IN_MEMORY
    names = (package, "onnx-ir") if made else (package,)
    return {"m3rt": __version__} | {name: found for name in names if (found := version(name))}
