"""What flows into the linear layers: ranges and samples, for quantisation.

A site is a place where activations would be quantised: the input of one linear layer, or of
several that read the same, as query, key and value do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from m3rt.export.passes import operand
from m3rt.plan import batches
from m3rt.types import Batch, Floats, Limits, Ragged

ROWS = 256  # kept of each site
TRUNK = "encoder."  # what the names of the linear layers inside the network begin with
STEP = Limits(max_tokens=512, max_length=1 << 20, pads=False)


@dataclass(frozen=True, slots=True)
class Site:
    """The input of linear layers."""

    name: str  # the first weight that reads it
    value: str  # in the graph
    weights: tuple[str, ...]  # initializers (in, out)


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What was seen at a site with k channels."""

    site: Site
    low: Floats  # (k,) least value of each channel
    high: Floats  # (k,)
    sample: Floats  # (rows, k)


def sites(model: ir.Model) -> list[Site]:
    """Find every site of the network; the heads, which stay as they are, have none."""
    found: dict[str, list[str]] = {}
    for node in model.graph:
        if node.op_type != "MatMul":
            continue
        x, weight = node.inputs
        if x is not None and weight is not None and weight.is_initializer():
            name = str(weight.name)
            if name.startswith(TRUNK):
                found.setdefault(str(x.name), []).append(name)
    return [Site(names[0], value, tuple(names)) for value, names in found.items()]


def readers(graph: ir.Graph, site: Site) -> list[ir.Node]:
    """Return the linear layers that read a site."""
    return [
        node
        for node in graph
        if node.op_type == "MatMul"
        and operand(node, 0).name == site.value
        and operand(node, 1).name in site.weights
    ]


def session(model: ir.Model, folder: Path) -> ort.InferenceSession:
    """Open a graph that was changed in memory, whose weights lie in a folder."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    proto: Any = ir.serde.serialize_model(model)
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feeds(opened: ort.InferenceSession, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    """Return the inputs of a packed graph, all heads wanted."""
    tokens = batch.tokens
    wanted = {
        value.name: np.array(True)
        for value in opened.get_inputs()
        if value.name.startswith("want_")
    }
    return {"input_ids": tokens.values.astype(np.int64), "starts": tokens.starts, **wanted}


def observe(
    graph: Path, ids: Ragged[np.int32], progress: Callable[[int], None], seed: int = 0
) -> Mapping[str, Observed]:
    """Run texts through the packed float32 graph and look at every site.

    Args:
        graph: packed.onnx, beside its weights.
        ids: the texts.
        progress: told the tokens of each step.
        seed: of the choice of rows.

    Returns:
        By the name of the site.
    """
    model = ir.load(graph)
    found = sites(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    for site in found:
        values[site.value].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[site.value])
    opened = session(model, graph.parent)
    random = np.random.default_rng(seed)
    seen: dict[str, list[tuple[Floats, Floats, Floats]]] = {site.name: [] for site in found}
    for batch in batches(ids, STEP):
        outputs = opened.run([site.value for site in found], feeds(opened, batch))
        for site, output in zip(found, outputs, strict=True):
            # where only first tokens are wanted, the last layer has a row for each text
            every = len(ids) if len(output) == len(batch.tokens) else len(ids.values)
            rows = random.random(len(output)) < ROWS / max(ROWS, every)
            seen[site.name].append((output.min(0), output.max(0), output[rows]))
        progress(len(batch.tokens.values))
    return {
        site.name: Observed(
            site,
            np.min([low for low, _, _ in seen[site.name]], axis=0),
            np.max([high for _, high, _ in seen[site.name]], axis=0),
            np.concatenate([rows for _, _, rows in seen[site.name]]),
        )
        for site in found
    }


def weight_arrays(graph: Path) -> Callable[[str], Floats]:
    """Return a function from a weight's name to the weight, read when it is asked for."""
    initializers = ir.load(graph).graph.initializers

    def read(name: str) -> Floats:
        tensor = initializers[name].const_value
        assert tensor is not None
        array: Floats = tensor.numpy()
        return array

    return read


def steps(ids: Ragged[np.int32]) -> Iterator[Batch]:
    """Cut texts into steps."""
    return batches(ids, STEP)
