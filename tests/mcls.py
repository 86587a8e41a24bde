"""MCLS by its definition, in torch: transformers' tokenizer and encoder, and three loops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear, normalize
from transformers import AutoTokenizer, XLMRobertaModel

from m3rt.types import Floats

CLS, CLOSING = 0, 2  # <s> and </s>


@dataclass(frozen=True, slots=True)
class Text:
    """Ids of a text, special tokens included, and which of them are CLS tokens put there."""

    ids: list[int]
    cls: list[bool]


def layout(content: list[int], max_length: int, interval: int = 256) -> Text:
    """Put a CLS token before each full or last part of so many tokens, and close the text."""
    ids: list[int] = []
    cls: list[bool] = []
    for i, token in enumerate(content):
        if i % interval == 0:
            ids.append(CLS)
            cls.append(True)
        ids.append(token)
        cls.append(False)
    if not content:
        ids, cls = [CLS], [True]
    ids, cls = ids[: max_length - 1], cls[: max_length - 1]
    while len(ids) > 1 and cls[-1]:  # a CLS token with no token of its own
        ids, cls = ids[:-1], cls[:-1]
    return Text([*ids, CLOSING], [*cls, False])


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What a text gives."""

    n_tokens: int
    dense: Floats  # (h,)
    lexical: dict[int, float]
    colbert: Floats  # rows of all tokens but the CLS tokens


class Oracle:
    """A checkpoint directory of XLM-R with both head files."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self.encoder = XLMRobertaModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
        self.sparse, self.colbert = (
            torch.load(checkpoint / f"{name}_linear.pt", weights_only=True)
            for name in ("sparse", "colbert")
        )

    @torch.no_grad()
    def encode(self, text: str, max_length: int = 8192) -> Outputs:
        """Embed one text."""
        content = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        laid = layout(content, max_length)
        states = self.encoder(torch.tensor([laid.ids])).last_hidden_state[0]
        dense = torch.stack([row for row, cls in zip(states, laid.cls, strict=True) if cls]).mean(0)
        tokens = torch.stack([r for r, cls in zip(states, laid.cls, strict=True) if not cls])
        weights = torch.relu(linear(states, self.sparse["weight"], self.sparse["bias"]))[:, 0]
        lexical: dict[int, float] = {}
        for token, weight in zip(laid.ids, weights.tolist(), strict=True):
            if weight > 0 and token not in (0, 1, 2, 3):
                lexical[token] = max(weight, lexical.get(token, 0.0))
        rows = linear(tokens, self.colbert["weight"], self.colbert["bias"])
        return Outputs(
            n_tokens=len(laid.ids),
            dense=normalize(dense, dim=-1).numpy(),
            lexical=lexical,
            colbert=normalize(rows, dim=-1).numpy(),
        )


def unit(rows: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scale rows to length one, in float64."""
    wide = rows.astype(np.float64)
    scaled: np.ndarray[Any, np.dtype[np.float64]] = wide / np.linalg.norm(
        wide, axis=-1, keepdims=True
    )
    return scaled
