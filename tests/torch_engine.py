"""An engine on transformers, one text at a time: the checkpoint's own arithmetic, no padding."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import XLMRobertaModel

from m3rt import M3, Heads
from m3rt.artifact import Manifest, Source
from m3rt.tokenizer import Tokenizer
from m3rt.types import Batch, Limits, Raw

LENGTH = 8192


class TorchEngine:
    """Runs a checkpoint directory."""

    name = "torch:fp32"

    def __init__(self, checkpoint: Path) -> None:
        self._encoder = XLMRobertaModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
        self._sparse = torch.load(checkpoint / "sparse_linear.pt", weights_only=True)
        self._colbert = torch.load(checkpoint / "colbert_linear.pt", weights_only=True)
        self.texts = 0  # that have been run

    @property
    def limits(self) -> Limits:
        return Limits(max_tokens=1024, max_length=LENGTH, pads=False)

    @torch.no_grad()
    def run(self, batch: Batch, heads: Heads) -> Raw:
        self.texts += len(batch.rows)
        states = [
            self._encoder(torch.from_numpy(batch.tokens[i]).long()[None]).last_hidden_state[0]
            for i in range(len(batch.rows))
        ]
        sparse = [torch.relu(linear(rows, self._sparse))[:, 0] for rows in states]
        colbert = [normalize(linear(rows, self._colbert), dim=-1).numpy() for rows in states]
        return Raw(
            dense=normalize(torch.stack([rows[0] for rows in states]), dim=-1).numpy()
            if Heads.DENSE in heads
            else None,
            weights=torch.cat(sparse).numpy() if Heads.SPARSE in heads else None,
            colbert=colbert if Heads.COLBERT in heads else None,
        )


def linear(rows: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.linear(rows, state["weight"], state["bias"])


def open_checkpoint(
    checkpoint: Path, heads: tuple[str, ...] = ("dense", "sparse", "colbert")
) -> M3:
    """Open a checkpoint directory as if it had been exported with these heads."""
    config = json.loads((checkpoint / "config.json").read_text())
    engine = TorchEngine(checkpoint)
    manifest = Manifest(
        source=Source(checkpoint.name, None, {}),
        architecture=config["model_type"],
        heads=heads,
        pooling="cls",
        hidden=config["hidden_size"],
        colbert_dim=len(engine._colbert["bias"]),
        layers=config["num_hidden_layers"],
        vocab=config["vocab_size"],
        max_length=LENGTH,
        pad_id=config["pad_token_id"],
        unscored_ids=(0, 1, 2, 3),
        graphs={},
        files={},
        versions={},
    )
    return M3(manifest, Tokenizer.from_file(checkpoint / "tokenizer.json"), engine)
