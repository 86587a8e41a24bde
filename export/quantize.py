"""An int8 graph from the float32 one: calibration, a sensitivity sweep, and the rewriting.

Linear layers of the network become int8, the word embeddings int8 with one scale a row, the
position embeddings float16. Heads, attention, LayerNorm and residuals stay as they are, and so do
the sites that the sweep finds to cost the most.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.progress import Progress

from m3rt import __version__
from m3rt.artifact import Artifact
from m3rt.export import calibrate, sensitivity
from m3rt.export.passes import UnexpectedGraphError, operand
from m3rt.export.scales import ALPHAS, CLIPS, UNEVEN, WORTH, Scale, fit, quantized
from m3rt.types import Floats, Ragged

LENGTH = 1024  # tokens of a calibration text that are looked at
SWEEP_TOKENS = 256
KEPT = 4  # sites left in higher precision at the most
OUTSIZED = 5.0  # times the mean harm of a site, above which it is worth its time and space
RECIPE = "int8-recipe.npz"
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How a model is quantised."""

    scales: Mapping[str, Scale]  # by site
    kept: tuple[str, ...]  # sites in higher precision
    harm: Mapping[str, float]  # by site, what its rounding alone does; see sensitivity
    texts: int
    tokens: int

    def save(self, path: Path, key: str) -> None:
        """Keep it for the next engine; ``key`` says of what weights and texts it is."""
        arrays: dict[str, Any] = {"key": key, "sites": list(self.scales), "kept": list(self.kept)}
        arrays |= {"texts": self.texts, "tokens": self.tokens}
        arrays["harm"] = [self.harm[name] for name in self.scales]
        for field in ("step", "zero", "error"):
            arrays[field] = np.array([getattr(scale, field) for scale in self.scales.values()])
        for name, scale in self.scales.items():
            if scale.smooth is not None:
                arrays[f"smooth {name}"] = scale.smooth
        np.savez(path, **arrays)

    @classmethod
    def read(cls, path: Path, key: str) -> Recipe | None:
        """Read what save wrote; None if it is not there, not whole, or of other weights."""
        try:
            with np.load(path) as file:
                if str(file["key"]) != key:
                    return None
                names = [str(name) for name in file["sites"]]
                scales = {
                    name: Scale(
                        file["step"][i],
                        file["zero"][i],
                        file.get(f"smooth {name}"),
                        float(file["error"][i]),
                    )
                    for i, name in enumerate(names)
                }
                return cls(
                    scales,
                    tuple(str(name) for name in file["kept"]),
                    dict(zip(names, file["harm"].tolist(), strict=True)),
                    int(file["texts"]),
                    int(file["tokens"]),
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def summary(self) -> dict[str, Any]:
        """Return what the manifest keeps of it."""
        errors = [scale.error for scale in self.scales.values()]
        return {
            "sites": len(self.scales),
            "calibration": {"texts": self.texts, "tokens": self.tokens},
            "smoothed": [name for name, s in self.scales.items() if s.smooth is not None],
            "kept": {name: self.harm[name] for name in self.kept},
            "harm_sum": float(sum(self.harm.values())),
            "product_error_mean": float(np.mean(errors)),
            "product_error_max": float(np.max(errors)),
        }


def run(
    artifact: Artifact,
    form: str,
    ids: Ragged[np.int32],
    out: Path,
    keep: Path,
    bars: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Write the int8 graph of a model, in the form of one engine.

    Args:
        artifact: the model directory.
        form: packed (ONNX Runtime) or grouped (OpenVINO).
        ids: calibration texts; the first 1024 tokens of each are looked at.
        out: directory for ``cpu-int8.onnx`` or ``openvino-int8.onnx``, and its weights.
        keep: where the recipe is kept for other engines, and found if it is there.
        bars: gets the bars.

    Returns:
        The graph, and the summary of what was done.
    """
    key = key_of(artifact, ids)
    plan = Recipe.read(artifact.path / RECIPE, key) or decide(artifact, ids, bars)
    plan.save(keep / RECIPE, key)
    model = ir.load(artifact.graph(form))
    task = bars.add_task("quantise", total=len(plan.scales))
    rewrite(model, form, plan, lambda: bars.advance(task))
    name = {"packed": "cpu-int8", "grouped": "openvino-int8"}[form]
    path = out / f"{name}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return path, plan.summary()


def key_of(artifact: Artifact, ids: Ragged[np.int32]) -> str:
    """Return what a recipe depends on, as a hash: weights, texts, and how it is found."""
    digest = hashlib.sha256(
        f"{__version__} {OUTSIZED} {KEPT} {UNEVEN} {WORTH} {CLIPS} {ALPHAS}".encode()
    )
    for file in ("model.onnx.data", artifact.manifest.graphs["packed"]):
        digest.update(artifact.manifest.files[file].sha256.encode())
    digest.update(ids.values.tobytes() + ids.starts.tobytes())
    return digest.hexdigest()


def decide(artifact: Artifact, ids: Ragged[np.int32], bars: Progress) -> Recipe:
    """Calibrate, fit every site, and find those to keep."""
    graph = artifact.graph("packed")
    ids = cut(ids, LENGTH)
    task = bars.add_task("calibrate", total=len(ids.values))
    seen = calibrate.observe(graph, ids, lambda n: bars.advance(task, n))
    weight = calibrate.weight_arrays(graph)
    task = bars.add_task("fit", total=len(seen))
    scales = {}
    for name, observed in seen.items():
        beside = np.concatenate([weight(w) for w in observed.site.weights], axis=1)
        scales[name] = fit(observed, beside)
        bars.advance(task)
    task = bars.add_task("sweep", total=len(scales))
    few = least(ids, SWEEP_TOKENS)
    harm = sensitivity.sweep(graph, scales, few, lambda n: bars.advance(task, n))
    return Recipe(scales, worst(harm), harm, len(ids), len(ids.values))


def worst(harm: Mapping[str, float]) -> tuple[str, ...]:
    """Return the sites that do an outsized part of the harm, the worst first."""
    mean = sum(harm.values()) / max(1, len(harm))
    outsized = [name for name, value in harm.items() if value > OUTSIZED * mean]
    return tuple(sorted(outsized, key=lambda name: -harm[name])[:KEPT])


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


def rewrite(model: ir.Model, form: str, plan: Recipe, progress: Any) -> None:
    """Put int8 in the place of the float32 weights."""
    graph = Rewriter(model.graph)
    for site in calibrate.sites(model):
        scale = plan.scales[site.name]
        readers = calibrate.readers(model.graph, site)
        if site.name in plan.kept:
            for node in readers:
                graph.half(node)
        else:
            write = graph.integers if form == "packed" else graph.fake
            write(site.name, readers, scale)
        progress()
    graph.embeddings()
    # shapes noted by the exporter make ONNX Runtime fuse what it then cannot quantise
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    used = {str(value.name) for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]
    if form == "packed":
        model.opset_imports["com.microsoft"] = 1


class Rewriter:
    """Replaces linear layers and embeddings of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def initializer(self, name: str, array: Any) -> ir.Value:
        """Add a constant with a name, which the weights' file shows."""
        if name in self.graph.initializers:  # layers with equal weights share one, and its name
            name = f"{name}.{len(self.graph.initializers)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(np.shape(array)),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.initializers[name] = value
        return value

    def put(self, place: ir.Node, kind: str, inputs: Any, domain: str = "", **options: Any) -> Any:
        """Insert a node before another; return its output."""
        node = ir.node(kind, inputs, options, domain=domain)
        self.graph.insert_before(place, node)
        return node.outputs[0]

    def smoothed(self, name: str, place: ir.Node, x: ir.Value, scale: Scale) -> ir.Value:
        """Divide the channels of an activation, where that was found to help."""
        if scale.smooth is None:
            return x
        factor = self.initializer(f"{name}.smooth", (1 / scale.smooth).astype(np.float32))
        product: ir.Value = self.put(place, "Mul", [x, factor])
        return product

    def weight(self, node: ir.Node, scale: Scale) -> tuple[str, ir.Value, ir.Value]:
        """Return the name, the int8 levels and the steps of a layer's weight."""
        value = operand(node, 1)
        assert value.const_value is not None
        array: Floats = value.const_value.numpy()
        if scale.smooth is not None:
            array = array * scale.smooth[:, None]
        levels, step = quantized(array)
        name = str(value.name)
        return (
            name,
            self.initializer(f"{name}.int8", levels),
            self.initializer(f"{name}.step", step),
        )

    def integers(self, name: str, readers: list[ir.Node], scale: Scale) -> None:
        """As ONNX Runtime computes it fastest: uint8 by int8 to float32, bias included."""
        first = readers[0]
        x = self.smoothed(name, first, operand(first, 0), scale)
        step = self.initializer(f"{name}.input_step", scale.step)
        zero = self.initializer(f"{name}.input_zero", scale.zero)
        levels = self.put(first, "QuantizeLinear", [x, step, zero])
        for node in readers:
            _, weight, weight_step = self.weight(node, scale)
            users = [user for user, _ in node.outputs[0].uses()]
            if len(users) != 1 or users[0].op_type != "Add":
                raise UnexpectedGraphError(f"expected a bias after {node}, found {users}")
            bias = next(v for v in users[0].inputs if v is not None and v.is_initializer())
            product = self.put(
                node,
                "MatMulIntegerToFloat",
                [levels, weight, step, weight_step, zero, None, bias],
                domain="com.microsoft",
            )
            ir.convenience.replace_all_uses_with(users[0].outputs[0], product)
            self.graph.remove([users[0], node], safe=True)

    def fake(self, name: str, readers: list[ir.Node], scale: Scale) -> None:
        """As OpenVINO reads it: quantised and dequantised again, on both sides."""
        first = readers[0]
        x = self.smoothed(name, first, operand(first, 0), scale)
        pair = [
            self.initializer(f"{name}.input_step", scale.step),
            self.initializer(f"{name}.input_zero", scale.zero),
        ]
        rounded = self.put(
            first, "DequantizeLinear", [self.put(first, "QuantizeLinear", [x, *pair]), *pair]
        )
        for node in readers:
            weight_name, weight, step = self.weight(node, scale)
            assert weight.shape is not None
            zero = self.initializer(f"{weight_name}.zero", np.zeros(weight.shape[1], np.int8))
            node.replace_input_with(0, rounded)
            dequantized = self.put(node, "DequantizeLinear", [weight, step, zero], axis=1)
            node.replace_input_with(1, dequantized)

    def half(self, node: ir.Node) -> None:
        """Store a kept layer's weight in float16; engines turn it back once, when they load."""
        value = operand(node, 1)
        assert value.const_value is not None
        stored = self.initializer(
            f"{value.name}.half", value.const_value.numpy().astype(np.float16)
        )
        node.replace_input_with(1, self.put(node, "Cast", [stored], to=int(FLOAT)))

    def embeddings(self) -> None:
        """Store words as int8 with a scale a row, and positions as float16."""
        for node in [n for n in self.graph if n.op_type == "Gather"]:
            table, place = operand(node, 0), operand(node, 1)
            if table.const_value is None or table.name not in (WORDS, POSITIONS):
                continue
            array = table.const_value.numpy()
            if table.name == POSITIONS:
                stored = self.initializer(f"{POSITIONS}.half", array.astype(np.float16))
                found = self.put(node, "Gather", [stored, place])
                new = self.put(node, "Cast", [found], to=int(FLOAT))
            else:
                levels, step = quantized(array.T)
                words = self.initializer(f"{WORDS}.int8", np.ascontiguousarray(levels.T))
                steps = self.initializer(f"{WORDS}.step", step[:, None])
                found = self.put(node, "Gather", [words, place])
                as_float = self.put(node, "Cast", [found], to=int(FLOAT))
                new = self.put(node, "Mul", [as_float, self.put(node, "Gather", [steps, place])])
            ir.convenience.replace_all_uses_with(node.outputs[0], new)
            self.graph.remove(node, safe=True)
