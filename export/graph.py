"""From a torch module to ONNX graphs and one file of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from m3rt.export import packing, passes
from m3rt.export.checkpoint import Checkpoint
from m3rt.export.model import M3
from m3rt.export.silence import silence
from m3rt.types import Heads

OPSET = 20  # the first with Gelu
PORTABLE = "model.onnx"  # the names that optimum looks for
DATA = "model.onnx.data"


def trace(module: M3) -> ir.Model:
    """Return the portable graph.

    Inputs ``input_ids`` and ``attention_mask`` (batch, sequence) int64; outputs those of
    ``dense (batch, h)``, ``sparse (batch, sequence)``, ``colbert (batch, sequence, d)`` that
    the module has; of a reranker, ``score (batch,)``.
    """
    example = torch.tensor([[0, 5, 6, 2], [0, 5, 2, 1]])
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    axes = {0: batch, 1: sequence}
    with silence(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example, example.ne(1).long()),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=list(module.wanted.names),
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            external_data=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    for value in model.graph.outputs:
        value.shape = declared_shape(value)
    passes.name_weights(model)
    passes.strip_metadata(model)
    return model


def declared_shape(value: ir.Value) -> ir.Shape:
    """Return the shape of an output with its batch and sequence axes named."""
    assert value.shape is not None
    if value.name in (Heads.DENSE | Heads.SCORE).names:
        return ir.Shape(["batch", *value.shape[1:]])
    return ir.Shape(["batch", "sequence", *value.shape[2:]])


def write(
    model: ir.Model, checkpoint: Checkpoint, out: Path, progress: Callable[[int], None]
) -> dict[str, str]:
    """Write every form of the graph and the weights they share.

    Args:
        model: the portable graph.
        checkpoint: where it came from.
        out: directory to fill.
        progress: told the bytes of each tensor written.

    Returns:
        Form to file name, for the manifest.
    """
    ir.save(
        model,
        out / PORTABLE,
        external_data=DATA,
        size_threshold_bytes=1024,
        callback=lambda tensor, _: progress(tensor.nbytes),
    )
    names = {"portable": PORTABLE}
    for form in packing.FORMS:
        packed = ir.load(out / PORTABLE)  # its weights stay in the file
        packing.pack(
            packed,
            form,
            pooling=checkpoint.pooling,
            cls_interval=checkpoint.cls_interval,
            pad_id=checkpoint.trunk.pad_id,
            from_pad=checkpoint.trunk.from_pad,
        )
        names[form] = f"{form}.onnx"
        ir.save(packed, out / names[form])
    return names
