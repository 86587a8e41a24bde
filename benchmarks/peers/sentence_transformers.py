"""sentence-transformers on the checkpoint: torch, ONNX Runtime or OpenVINO; dense vectors."""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.peers.worker import Job, Outputs, serve

# as in BAAI/bge-m3: the CLS vector, normalised
MODULES = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
)


def prepare(job: Job) -> None:
    """Lay the checkpoint out as sentence-transformers expects it, and let it export the network."""
    plain = job.files / "model"
    plain.mkdir(exist_ok=True)
    (plain / "2_Normalize").mkdir(exist_ok=True)
    for file in job.model.iterdir():
        if not (plain / file.name).exists():
            (plain / file.name).symlink_to(file.resolve())
    pooling = {
        "word_embedding_dimension": json.loads((job.model / "config.json").read_text())[
            "hidden_size"
        ],
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    write = {
        "modules.json": MODULES,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
    }
    for name, value in write.items():
        (plain / name).parent.mkdir(exist_ok=True)
        (plain / name).write_text(json.dumps(value))
    backend = job.options["backend"]
    if backend != "torch" and not (job.files / backend).exists():
        part = job.files / f"{backend}.part"
        model = SentenceTransformer(str(plain), backend=backend, model_kwargs={"export": True})
        model.save_pretrained(str(part))
        part.rename(job.files / backend)


class Sentences:
    """One backend in one precision."""

    heads: Sequence[str] = ("dense",)

    def __init__(self, job: Job) -> None:
        backend = job.options["backend"]
        folder = job.files / ("model" if backend == "torch" else backend)
        kwargs: dict[str, Any] = dict(job.options.get("model_kwargs", {}))
        if "dtype" in kwargs:
            kwargs["dtype"] = getattr(torch, kwargs["dtype"])
        self._model = SentenceTransformer(
            str(folder),
            device=job.options.get("device", "cpu"),
            backend=backend,
            model_kwargs=kwargs,
        )

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts."""
        return self._model.encode(texts, batch_size=batch or 32, show_progress_bar=False)

    def rest(self) -> None:
        """Free what torch keeps of the device's memory."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def outputs(self, found: Any) -> Outputs:
        """Give dense vectors, the one head there is."""
        return Outputs(dense=found)


if __name__ == "__main__":
    serve(Sentences, ("sentence-transformers", "torch", "transformers"), prepare)
