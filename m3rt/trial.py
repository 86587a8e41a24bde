"""Builds of one model for one engine, made and judged in a directory of their own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.progress import Progress

from m3rt import engines, gate, parity, recovery, sample
from m3rt.api import start_any
from m3rt.artifact import MANIFEST, Artifact, Build
from m3rt.engines import Choice, Order
from m3rt.engines.trt.shaping import Shaping
from m3rt.engines.unpadded import files
from m3rt.errors import missing
from m3rt.gate import Baseline, Terms
from m3rt.graph import Graph
from m3rt.harm import Harm, worst
from m3rt.parity import Reference
from m3rt.recovery import Attempt
from m3rt.rehearsal import rehearse
from m3rt.reranker import Reranker
from m3rt.runtime import M3
from m3rt.sample import AnySample
from m3rt.tolerances import Tolerances
from m3rt.types import Ragged

QUANTISER = ("onnx", "onnx_ir", "onnxruntime")
EIGHT_BITS = ("int8", "fp8")
IN_MEMORY = ("typed", "unpadded")  # forms of graphs that are made without a file


class Trials:
    """Makes one build after the other; float32 runs once, to judge them all by."""

    def __init__(
        self,
        made: Artifact,
        choice: Choice,
        limits: Tolerances,
        terms: Terms,
        folder: Path,
        bars: Progress,
        shaping: Shaping | None = None,
    ) -> None:
        self.made = made
        self.choice = choice
        self.limits = limits
        self.terms = terms
        self.folder = folder
        self.bars = bars
        self.shaping = shaping or Shaping()
        self.recipe: Any = None  # of int8; see m3rt.export.quantize
        self._calibration: Ragged[np.int32] | None = None

    def prepare(self, calibration: Ragged[np.int32] | None) -> None:
        """Decide how to quantise, where that is to be done.

        Args:
            calibration: token ids of texts; None for those of the parity gate. What is also in a
                sample of the quality gate is left out.

        Raises:
            InputError: no text is left.
            UnavailableError: a package of the build extra is not installed.
        """
        if not gate.needed(self.choice.precision):
            return
        if self.terms.dataset is not None:
            gate.check(self.made, self.terms.dataset)
        if calibration is None:
            calibration = Reference.read(self.made.path / parity.REFERENCE).ids
        self._calibration = sample.apart(calibration, self.built_in, self.sample)
        if self.choice.precision in EIGHT_BITS:
            module = quantiser()
            grid = module.grid(engines.form(self.choice), self.choice.precision)
            self.recipe = module.plan(self.made, grid, self._calibration, self.folder, self.bars)

    @cached_property
    def built_in(self) -> AnySample:
        """The texts that are never calibrated on, whatever the user gives."""
        return sample.built_in(self.made)

    @property
    def sample(self) -> AnySample:
        """What the gate looks at."""
        return self.terms.sample or self.built_in

    @cached_property
    def expected(self) -> Baseline:
        """What float32 gives."""
        return gate.baseline(self.made, self.sample, self.terms.dataset, self.bars)

    def attempt(self, kept: tuple[str, ...] = ()) -> Attempt | None:
        """Make a build with some sites in higher precision, and judge it.

        Returns:
            None where the engine has nothing to prepare.
        """
        part = Path(tempfile.mkdtemp(prefix=f"{len(kept)}-", dir=self.folder))
        how = self.write(kept, part)
        files = tuple(sorted(file.name for file in part.iterdir()))
        if not files:
            return None
        # the directory as it will be, to prove it before it is
        for file in self.made.path.iterdir():
            if file.is_file() and file.name not in (MANIFEST, *files):
                (part / file.name).symlink_to(os.path.relpath(file, part))
        manifest = self.made.manifest
        builds = {**manifest.builds, str(self.choice): Build(files, {}, how, {})}
        trial = Artifact(part, dataclasses.replace(manifest, builds=builds))
        return self.judge(Attempt(kept, trial, files, how))

    def attempt_with(self, kept: tuple[str, ...]) -> Attempt:
        """Make a build as before, with some sites in higher precision."""
        made = self.attempt(kept)
        assert made is not None
        return made

    def write(self, kept: tuple[str, ...], part: Path) -> dict[str, Any]:
        """Fill a directory with what the engine wants; return how it was done."""
        recipe: dict[str, Any] = {}
        if self.recipe:
            shutil.copy(self.folder / self.recipe.file, part)
            recipe = self.recipe.summary(kept)
            recipe |= {"worst": worst(self.recipe.harm, self.made.manifest.heads)}
        with tempfile.TemporaryDirectory(dir=self.folder) as graphs:
            graph = self.graph(kept, Path(graphs))
            task = self.bars.add_task(f"build {self.choice}", total=None)
            order = Order(self.made, self.choice, graph, part, self.shaping, self.bars)
            recipe |= engines.build(order)
            self.bars.update(task, total=1, completed=1)
        return recipe

    def graph(self, kept: tuple[str, ...], folder: Path) -> Path | Graph | None:
        """Make the graph that an engine asks for, with some sites in higher precision."""
        form = engines.form(self.choice)
        if form in IN_MEMORY:
            return self.in_memory(kept)
        if self.recipe is None:
            return None
        path: Path = quantiser().write(self.made, form, self.recipe, kept, folder, self.bars)
        return path

    def in_memory(self, kept: tuple[str, ...]) -> Graph:
        """Make the graph for an engine of GPUs, in memory."""
        form = engines.form(self.choice)
        module, (made, bars) = quantiser(form), (self.made, self.bars)
        graph: Graph = (
            module.write(made, bars)
            if form == "unpadded"
            else module.write(made, self.choice.precision, self.recipe, kept, bars)
        )
        return graph

    def open(self, made: Attempt) -> M3 | Reranker:
        """Open a build; where its device is not here, the graph that it was built from."""
        if engines.runs_here(made.artifact, self.choice):
            return start_any(made.artifact, str(self.choice))
        if engines.form(self.choice) == "unpadded":  # the files hold the graph itself
            return rehearse(made.artifact, self.choice, files.read(made.artifact, self.choice))
        return rehearse(made.artifact, self.choice, self.in_memory(made.kept))

    def judge(self, made: Attempt) -> Attempt:
        """Run the gates, those first that take the least time; stop at one that is not passed."""
        model = self.open(made)
        if gate.needed(self.choice.precision):
            certificate = gate.certify(model, self.expected, self.limits, self.bars)
            made = made.judged(certificate.failures, certificate=certificate)
        if not made.failures:
            reference = Reference.read(self.made.path / parity.REFERENCE)
            figures, failed = parity.judge(model, reference, self.limits, self.bars)
            made = made.judged(failed, parity=figures)
        if not made.failures and made.certificate and self.terms.dataset:
            certificate = gate.measured(made.certificate, model, self.expected, self.bars)
            made = made.judged(certificate.failures, certificate=certificate)
        return made

    def drop(self, made: Attempt) -> None:
        """Throw a build away."""
        shutil.rmtree(made.artifact.path)

    def harm(self) -> Harm:
        """Return what the rounding of each site does; {} where the quantiser is not installed."""
        if self.recipe:
            harm: Harm = self.recipe.harm
            return harm
        try:
            module = import_module("m3rt.export.quantize")
        except ModuleNotFoundError:
            return {}
        found: Harm = module.harm_of_half(
            self.made, self.choice.precision, self._calibration, self.bars
        )
        return found

    def speeds(self, first: Attempt, done: Attempt) -> dict[str, float]:
        """Return the tokens a second before and after, and those of float32, on the sample.

        {} where the device of the engine is not here.
        """
        if not engines.runs_here(first.artifact, self.choice):
            return {}
        task = self.bars.add_task("measure the speed", total=None)
        models = {
            "float32": start_any(self.made, self.expected.engine),
            "before": start_any(first.artifact, str(self.choice)),
            "after": start_any(done.artifact, str(self.choice)),
        }
        found = recovery.speeds(models, self.sample.ids)
        self.bars.update(task, total=1, completed=1)
        return found


def quantiser(module: str = "quantize") -> ModuleType:
    """Import what makes graphs of reduced precision.

    Raises:
        UnavailableError: a package of the build extra is not installed.
    """
    try:
        return import_module(f"m3rt.export.{module}")
    except ModuleNotFoundError as error:
        if error.name in QUANTISER:
            raise missing(error.name, "build", "quantising") from error
        raise
