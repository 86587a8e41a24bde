"""CTranslate2 on the checkpoint, converted by its own tool; dense vectors."""

# mypy: disable-error-code="import-not-found"
# the library is in an environment of its own

from __future__ import annotations

from typing import Any

import ctranslate2
import numpy as np
from tokenizers import Tokenizer

from benchmarks.peers.worker import Job, Outputs, serve


def prepare(job: Job) -> None:
    """Convert the checkpoint; the precision is chosen when it is loaded."""
    folder = job.files / "model"
    if not folder.exists():
        converter = ctranslate2.converters.TransformersConverter(str(job.model))
        part = job.files / "model.part"
        converter.convert(str(part), force=True)
        part.rename(folder)


class Translate:
    """One precision. It takes texts of a batch together, without padding between them."""

    def __init__(self, job: Job) -> None:
        self._encoder = ctranslate2.Encoder(
            str(job.files / "model"), compute_type=job.options["compute_type"]
        )
        self._tokenizer = Tokenizer.from_file(str(job.model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str], batch: int | None) -> Any:
        """Embed texts, those of like length together."""
        ids = [found.ids for found in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        size = batch or 1
        dense: list[Any] = [None] * len(ids)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            found = self._encoder.forward_batch([ids[i] for i in rows])
            hidden = np.asarray(found.last_hidden_state)
            for place, i in enumerate(rows):
                first = hidden[place, 0].astype(np.float32)
                dense[i] = first / np.linalg.norm(first)
        return np.stack(dense)

    def outputs(self, found: Any) -> Outputs:
        """Give dense vectors."""
        return Outputs(dense=found)


if __name__ == "__main__":
    serve(Translate, ("ctranslate2", "tokenizers"), prepare)
