"""bge-m3-lite on the checkpoint: its fused float32 graph, and its int8 one.

It downloads graphs made of BAAI's weights and refuses any other file. Here its own tools make
both, as its author made those: the encoder is exported as BAAI's was (torch's TorchScript
exporter, opset 11), then ``fuse`` and ``quantize`` run with their defaults.
"""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from bge_m3_lite import BGEM3Embedder, hub

from benchmarks.peers.worker import Job, Outputs, serve

SENTENCEPIECE = "sentencepiece.bpe.model"
GRAPHS = {"fp32": "model_fused.onnx", "int8": "model_int8.onnx"}


def prepare(job: Job) -> None:
    """Make the graph, and lay out the folder that the library takes for its cache.

    A graph is written after its weights, so that one which is there is whole.
    """
    shutil.copyfile(job.data / "tokenizer" / SENTENCEPIECE, job.files / SENTENCEPIECE)
    for file in hub.HEAD_FILES:
        shutil.copyfile(job.model / file.name, job.files / file.name)
    plain = job.files / "model.onnx"
    if not plain.exists():
        export(job.model, plain)
    fused = job.files / GRAPHS["fp32"]
    if not fused.exists():
        from bge_m3_lite.fuse import fuse

        fuse(plain)
    if job.options["precision"] == "int8" and not (job.files / GRAPHS["int8"]).exists():
        from bge_m3_lite.quantize import quantize

        tokenizer = job.files / SENTENCEPIECE
        quantize(fused, job.files / GRAPHS["int8"], tokenizer_path=tokenizer)


def export(checkpoint: Path, out: Path) -> None:
    """Write the encoder as BAAI/bge-m3 has it: token_embeddings alone, one data file."""
    import onnx
    import torch
    from transformers import XLMRobertaModel

    model = XLMRobertaModel.from_pretrained(
        checkpoint, add_pooling_layer=False, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([[0, 5, 6, 2], [0, 5, 2, 1]])
    axes = {0: "batch_size", 1: "sequence_length"}
    names = ("input_ids", "attention_mask", "token_embeddings")
    parts = out.parent / "parts"  # over 2 GB the exporter writes a file for each tensor
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    with torch.no_grad():
        torch.onnx.export(
            model,
            (ids, (ids != 1).long()),
            str(parts / "parts.onnx"),  # of a Path it does not see that it is a file
            input_names=list(names[:2]),
            output_names=[names[2]],
            dynamic_axes=dict.fromkeys(names, axes),
            opset_version=11,
            dynamo=False,
        )
    whole = onnx.load(parts / "parts.onnx")
    onnx.save(
        whole,
        out,
        save_as_external_data=True,
        location=f"{out.name}_data",
        size_threshold=1024,
    )
    shutil.rmtree(parts)


def described(folder: Path, files: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the library's list of files with the sizes and hashes of ours."""
    return tuple(
        hub.RemoteFile(
            file.name,
            file.remote_path,
            (folder / file.name).stat().st_size,
            hashlib.sha256((folder / file.name).read_bytes()).hexdigest(),
        )
        for file in files
    )


class Lite:
    """One of its two precisions; three heads."""

    def __init__(self, job: Job) -> None:
        hub.HEAD_FILES = described(job.files, hub.HEAD_FILES)
        self._model = BGEM3Embedder(
            job.files, model_path=job.files / GRAPHS[job.options["precision"]], quiet=True
        )

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts with every head."""
        return self._model.encode(
            texts, batch_size=batch or 12, return_sparse=True, return_colbert_vecs=True
        )

    def outputs(self, found: Any) -> Outputs:
        """Give every head; its keys are ids as text."""
        return Outputs(
            dense=found["dense_vecs"],
            sparse=[{int(k): w for k, w in row.items()} for row in found["lexical_weights"]],
            colbert=found["colbert_vecs"],
        )


if __name__ == "__main__":
    serve(Lite, ("bge-m3-lite", "onnxruntime"), prepare)
