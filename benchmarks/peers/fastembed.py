"""fastembed with what m3rt exported as a custom model; dense vectors."""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

from typing import Any

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

from benchmarks.peers.worker import Job, Outputs, serve

NAME = "m3rt/export"


class Fastembed:
    """A custom model: the graph's own dense output, which is pooled and normalised."""

    def __init__(self, job: Job) -> None:
        TextEmbedding.add_custom_model(
            NAME,
            pooling=PoolingType.DISABLED,
            normalization=False,
            sources=ModelSource(url="none"),  # it asks for one, though it reads the folder below
            dim=1024,
            model_file="model.onnx",
            output_name="dense",
        )
        self._model = TextEmbedding(NAME, specific_model_path=str(job.model), cuda=False)

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts, in the order in which they stand."""
        return list(self._model.embed(texts, batch_size=batch or 256))

    def outputs(self, found: Any) -> Outputs:
        """Give dense vectors, the one head there is."""
        return Outputs(dense=np.stack(found))


if __name__ == "__main__":
    serve(Fastembed, ("fastembed", "onnxruntime"))
