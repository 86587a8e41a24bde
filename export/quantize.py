"""A graph of 8 bits from the float32 one: calibration, a sensitivity sweep, and the rewriting.

Linear layers of the network become int8 or fp8, the word embeddings int8 with one scale a row, the
position embeddings float16. Heads, attention, LayerNorm and residuals stay as they are, and so do
the sites that a build keeps to pass the quality gate.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.progress import Progress

from m3rt import __version__
from m3rt.artifact import Artifact
from m3rt.export import calibrate, sensitivity
from m3rt.export.rewriter import rewrite
from m3rt.export.scales import ALPHAS, CLIPS, UNEVEN, WORTH, Grid, Scale, fit
from m3rt.harm import WORDS, Harm
from m3rt.types import Ragged

LENGTH = 1024  # tokens of a calibration text that are looked at
SWEEP_TOKENS = 256
FILES = {
    Grid.UINT8: "int8-recipe.npz",
    Grid.INT8: "int8-symmetric-recipe.npz",
    Grid.E4M3: "fp8-recipe.npz",
}
LAYOUT = 3  # of such a file
HALVES = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How a model is quantised."""

    scales: Mapping[str, Scale]  # by site
    harm: Harm  # what the rounding of a site alone does; see sensitivity
    texts: int
    tokens: int
    grid: Grid

    @property
    def file(self) -> str:
        """The name of the file that save writes."""
        return FILES[self.grid]

    def save(self, folder: Path, key: str) -> None:
        """Keep it for the next engine; ``key`` says of what weights and texts it is."""
        heads = list(next(iter(self.harm.values())))
        arrays: dict[str, Any] = {"key": key, "sites": list(self.scales)}
        arrays |= {"texts": self.texts, "tokens": self.tokens}
        arrays |= {"heads": heads, "harmed": list(self.harm)}
        arrays["harm"] = [[of_site[head] for head in heads] for of_site in self.harm.values()]
        for field in ("step", "zero", "error"):
            arrays[field] = np.array([getattr(scale, field) for scale in self.scales.values()])
        for name, scale in self.scales.items():
            if scale.smooth is not None:
                arrays[f"smooth {name}"] = scale.smooth
        np.savez(folder / self.file, **arrays)

    @classmethod
    def read(cls, folder: Path, grid: Grid, key: str | None) -> Recipe | None:
        """Read what save wrote; None if it is not there, not whole, or of other weights.

        Without a key it may be of any.
        """
        try:
            with np.load(folder / FILES[grid]) as file:
                if key is not None and str(file["key"]) != key:
                    return None
                scales = {
                    str(name): Scale(
                        grid,
                        file["step"][i],
                        int(file["zero"][i]),
                        file.get(f"smooth {name}"),
                        float(file["error"][i]),
                    )
                    for i, name in enumerate(file["sites"])
                }
                heads = [str(head) for head in file["heads"]]
                harm = {
                    str(name): dict(zip(heads, row.tolist(), strict=True))
                    for name, row in zip(file["harmed"], file["harm"], strict=True)
                }
                return cls(scales, harm, int(file["texts"]), int(file["tokens"]), grid)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def summary(self, kept: Collection[str]) -> dict[str, Any]:
        """Return what the manifest keeps of it, and of the sites a build keeps."""
        errors = [scale.error for scale in self.scales.values()]
        return {
            "sites": len(self.harm),
            "calibration": {"texts": self.texts, "tokens": self.tokens},
            "smoothed": [name for name, s in self.scales.items() if s.smooth is not None],
            "kept": {name: dict(self.harm[name]) for name in kept},
            "product_error_mean": float(np.mean(errors)),
            "product_error_max": float(np.max(errors)),
        }


def grid(form: str, precision: str) -> Grid:
    """Return what an engine that runs a form of graph rounds to in a precision of 8 bits."""
    if precision == "fp8":
        return Grid.E4M3
    return Grid.INT8 if form == "typed" else Grid.UINT8


def plan(
    artifact: Artifact, grid: Grid, ids: Ragged[np.int32], keep: Path, bars: Progress
) -> Recipe:
    """Decide how to quantise a model, or find what was decided for another engine.

    Args:
        artifact: the model directory.
        grid: what to round to.
        ids: calibration texts; the first 1024 tokens of each are looked at.
        keep: directory to keep the recipe in.
        bars: gets the bars.
    """
    key = key_of(artifact, grid, ids)
    recipe = Recipe.read(artifact.path, grid, key) or decide(artifact, grid, ids, bars)
    recipe.save(keep, key)
    return recipe


def write(
    artifact: Artifact,
    form: str,
    recipe: Recipe,
    kept: Collection[str],
    out: Path,
    bars: Progress,
) -> Path:
    """Write the int8 graph of a model, in the form of one engine.

    Args:
        artifact: the model directory.
        form: packed (ONNX Runtime) or grouped (OpenVINO); see export.typed for TensorRT.
        recipe: how.
        kept: sites that stay in higher precision.
        out: directory for ``cpu-int8.onnx`` or ``openvino-int8.onnx``, and its weights.
        bars: gets the bars.

    Returns:
        The graph.
    """
    model = ir.load(artifact.graph(form))
    task = bars.add_task("quantise", total=len(recipe.scales))
    rewrite(model, form, recipe.scales, kept, lambda: bars.advance(task))
    name = {"packed": "cpu-int8", "grouped": "openvino-int8"}[form]
    path = out / f"{name}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return path


def harm_of_half(artifact: Artifact, precision: str, ids: Ragged[np.int32], bars: Progress) -> Harm:
    """Return what rounding each site to bf16 or fp16 does, for an engine that computes in it."""
    graph = artifact.graph("packed")
    sites = [site.name for site in calibrate.sites(ir.load(graph))]
    roundings = dict.fromkeys(sites, sensitivity.to_half(HALVES[precision]))
    task = bars.add_task("sweep", total=len(roundings))
    few = least(cut(ids, LENGTH), SWEEP_TOKENS)
    return sensitivity.sweep(graph, roundings, few, lambda n: bars.advance(task, n))


def key_of(artifact: Artifact, grid: Grid, ids: Ragged[np.int32]) -> str:
    """Return what a recipe depends on, as a hash: weights, texts, and how it is found."""
    how = f"{LAYOUT} {__version__} {grid} {UNEVEN} {WORTH} {CLIPS} {ALPHAS}"
    digest = hashlib.sha256(how.encode())
    for file in ("model.onnx.data", artifact.manifest.graphs["packed"]):
        digest.update(artifact.manifest.files[file].sha256.encode())
    digest.update(ids.values.tobytes() + ids.starts.tobytes())
    return digest.hexdigest()


def decide(artifact: Artifact, grid: Grid, ids: Ragged[np.int32], bars: Progress) -> Recipe:
    """Calibrate, fit every site, and measure what its rounding does."""
    graph = artifact.graph("packed")
    ids = cut(ids, LENGTH)
    task = bars.add_task("calibrate", total=len(ids.values))
    seen = calibrate.observe(graph, ids, lambda n: bars.advance(task, n))
    weight = calibrate.weight_arrays(graph)
    task = bars.add_task("fit", total=len(seen))
    scales = {}
    for name, observed in seen.items():
        beside = np.concatenate([weight(w) for w in observed.site.weights], axis=1)
        scales[name] = fit(observed, beside, grid)
        bars.advance(task)
    roundings = {name: sensitivity.to_grid(scale) for name, scale in scales.items()}
    roundings[WORDS] = sensitivity.rows_to_int8
    task = bars.add_task("sweep", total=len(roundings))
    few = least(ids, SWEEP_TOKENS)
    harm = sensitivity.sweep(graph, roundings, few, lambda n: bars.advance(task, n))
    return Recipe(scales, harm, len(ids), len(ids.values), grid)


def cut(ids: Ragged[np.int32], length: int) -> Ragged[np.int32]:
    """Keep the first tokens of each text."""
    rows = np.minimum(ids.lengths, length)
    within = np.arange(len(ids.values)) - np.repeat(ids.starts[:-1], ids.lengths)
    kept = within < length
    return Ragged(ids.values[kept], np.concatenate([[0], np.cumsum(rows)]).astype(np.int64))


def least(ids: Ragged[np.int32], tokens: int) -> Ragged[np.int32]:
    """Take texts spread over the whole until there are so many tokens."""
    order = np.random.default_rng(0).permutation(len(ids))
    order = order[ids.lengths[order] <= tokens]
    count = int(np.searchsorted(np.cumsum(ids.lengths[order]), tokens)) + 1
    return ids.take(order[:count]) if len(order) else cut(ids.take(np.array([0])), tokens)
