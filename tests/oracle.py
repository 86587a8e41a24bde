"""FlagEmbedding itself, as the reference: its tokenisation, its network, its post-processing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from FlagEmbedding import BGEM3FlagModel

from m3rt.types import Floats, Ints

# Ids of one text (t,) to dense (h,), token weights (t,) and ColBERT vectors (t, d).
Network = Callable[[Ints], tuple[Floats, Floats, Floats]]

PADDING = 9.0  # what a stub gives at padded places: a value that would be seen if it were kept


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What FlagEmbedding gives for n texts, in the order of the texts."""

    dense: Floats  # (n, h)
    lexical: list[dict[int, float]]
    colbert: list[Floats]  # (t_i - 1, d) each


class Oracle:
    """The BGEM3FlagModel of a checkpoint directory, in float32 on the CPU."""

    def __init__(self, checkpoint: Path) -> None:
        colbert = torch.load(checkpoint / "colbert_linear.pt", weights_only=True)
        self.flag: Any = BGEM3FlagModel(
            str(checkpoint), use_fp16=False, devices="cpu", colbert_dim=len(colbert["bias"])
        )

    def tokenize(self, texts: Sequence[str], max_length: int = 8192) -> list[list[int]]:
        """Return the ids of each text, without padding, as encode asks its tokenizer."""
        inputs = self.flag.tokenizer(list(texts), truncation=True, max_length=max_length)
        ids: list[list[int]] = inputs["input_ids"]
        return ids

    def encode(
        self, texts: Sequence[str], max_length: int = 8192, batch_size: int = 16
    ) -> Reference:
        """Embed texts with the checkpoint's network."""
        found = self.flag.encode(
            list(texts),
            batch_size=batch_size,
            max_length=max_length,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
        )
        return Reference(
            dense=found["dense_vecs"],
            lexical=[
                {int(token): float(weight) for token, weight in text.items()}
                for text in found["lexical_weights"]
            ],
            colbert=found["colbert_vecs"],
        )

    def finish(
        self, texts: Sequence[str], network: Network, max_length: int = 8192, batch_size: int = 16
    ) -> Reference:
        """Embed texts with given outputs: all of encode is FlagEmbedding's but the network."""
        with mock.patch.object(self.flag, "model", Stub(network)):
            return self.encode(texts, max_length, batch_size)


class Stub(torch.nn.Module):
    """Stands where FlagEmbedding has its network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        """Give the outputs in FlagEmbedding's shapes: (B, h), (B, L, 1) and (B, L - 1, d)."""
        width = inputs["input_ids"].shape[1]
        outputs = [
            self.network(row[mask.astype(bool)].astype(np.int32))
            for row, mask in zip(
                inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), strict=True
            )
        ]
        dense, weights, colbert = zip(*outputs, strict=True)
        return {
            "dense_vecs": torch.from_numpy(np.stack(dense)),
            "sparse_vecs": torch.from_numpy(np.stack([padded(w[:, None], width) for w in weights])),
            "colbert_vecs": torch.from_numpy(
                np.stack([padded(rows[1:], width - 1) for rows in colbert])
            ),
        }


def padded(rows: Floats, length: int) -> Floats:
    """Return (length, ...), padded at the end."""
    out = np.full((length, *rows.shape[1:]), PADDING, np.float32)
    out[: len(rows)] = rows
    return out
