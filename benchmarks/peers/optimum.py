"""Hugging Face's optimum on what m3rt exported, as it stands: ONNX Runtime, or OpenVINO.

It gives the outputs of the graph; grouping texts of like length and merging lexical weights are
its user's work, done here in the plainest way.
"""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.peers.worker import Job, Outputs, lexical, serve

NETWORKS = {
    "onnx": ("optimum.onnxruntime", "ORTModelForCustomTasks", "model.onnx"),
    "openvino": ("optimum.intel", "OVModelForCustomTasks", "openvino_model.xml"),
}
PACKAGES = {"onnx": "optimum-onnx", "openvino": "optimum-intel"}


def prepare(job: Job) -> None:
    """Convert the graph where OpenVINO wants its own form."""
    folder = job.files / "export"
    if job.options["backend"] != "openvino" or folder.exists():
        return
    import openvino

    part = job.files / "export.part"
    part.mkdir(exist_ok=True)
    model = openvino.convert_model(job.model / "model.onnx")
    openvino.save_model(model, part / "openvino_model.xml", compress_to_fp16=False)
    for file in job.model.glob("*.json"):
        if file.name != "manifest.json":
            (part / file.name).write_bytes(file.read_bytes())
    part.rename(folder)


class Optimum:
    """One backend; three heads."""

    def __init__(self, job: Job) -> None:
        backend = job.options["backend"]
        module, name, graph = NETWORKS[backend]
        folder = job.files / "export" if backend == "openvino" else job.model
        kind = getattr(importlib.import_module(module), name)
        self._network = kind.from_pretrained(
            str(folder), file_name=graph, **job.options.get("model_kwargs", {})
        )
        self._tokenizer = AutoTokenizer.from_pretrained(job.model)
        manifest = json.loads((job.model / "manifest.json").read_text("utf-8"))
        self._unscored = frozenset(manifest["unscored_ids"])

    def encode(self, texts: list[str], batch: int | None) -> Outputs:
        """Embed texts, those of like length together."""
        ids = self._tokenizer(texts)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        size = batch or 1
        dense: list[Any] = [None] * len(ids)
        sparse: list[Any] = [None] * len(ids)
        colbert: list[Any] = [None] * len(ids)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            inputs = self._tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="np")
            found = self._network(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
            for place, i in enumerate(rows):
                length = len(ids[i])
                weights = np.asarray(found["sparse"])[place, :length]
                dense[i] = np.asarray(found["dense"])[place]
                sparse[i] = lexical(np.array(ids[i], np.int32), weights, self._unscored)
                colbert[i] = np.asarray(found["colbert"])[place, 1:length]
        return Outputs(np.stack(dense), sparse, colbert)

    def outputs(self, found: Any) -> Outputs:
        """Give every head."""
        outputs: Outputs = found
        return outputs


if __name__ == "__main__":
    serve(Optimum, ("optimum", "transformers", "onnxruntime", "openvino"), prepare)
