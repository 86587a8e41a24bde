"""FlagEmbedding's reranker as the reference: its tokenisation, its network, its order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import FlagEmbedding
import torch


class Oracle:
    """The FlagReranker of a checkpoint directory, in float32 on the CPU."""

    def __init__(self, checkpoint: Path, **options: Any) -> None:
        self.flag: Any = FlagEmbedding.FlagReranker(
            str(checkpoint), use_fp16=False, devices="cpu", **options
        )

    def score(self, pairs: Sequence[tuple[str, str]], **options: Any) -> list[float]:
        """Score pairs."""
        found: list[float] = self.flag.compute_score(list(pairs), **options)
        return found

    def tokenize(self, pairs: Sequence[tuple[str, str]], **options: Any) -> list[list[int]]:
        """Return the ids that its network is given for each pair, without padding."""
        seen = Recorder()
        with mock.patch.object(self.flag, "model", seen):
            numbers = self.score(pairs, **options)
        return [seen.rows[int(number)] for number in numbers]


class Recorder(torch.nn.Module):
    """Stands where FlagEmbedding has its network; scores a pair by the number of its row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[int]] = []

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> SimpleNamespace:
        """Note the ids of every row."""
        first = len(self.rows)
        for row, mask in zip(input_ids, attention_mask, strict=True):
            self.rows.append(row[mask.bool()].tolist())
        return SimpleNamespace(logits=torch.arange(first, len(self.rows))[:, None].float())
