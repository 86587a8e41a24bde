"""What a checkpoint gives by itself: transformers' encoder in torch and the heads' definitions.

Of a reranker, transformers has the head, too.

Nothing here is shared with export.model or with the runtime: the two sides of the parity gate
must not have a mistake in common. Semantics: FlagEmbedding 1.4.2,
finetune/embedder/encoder_only/m3/modeling.py, one text at a time, so that no padding is involved.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from m3rt.errors import CheckpointError
from m3rt.export.checkpoint import CLASSIFIER, Checkpoint, State
from m3rt.parity import Reference
from m3rt.types import Heads, Ints, Pooling, Ragged, ragged

ROWS = 64  # ColBERT rows kept of a long text


def network(checkpoint: Checkpoint, state: State) -> torch.nn.Module:
    """Return transformers' encoder, or its whole reranker, with the checkpoint's weights.

    No copy of them is made.
    """
    config = AutoConfig.from_pretrained(checkpoint.path)
    own = {name: value for name, value in state.items() if "_linear." not in name}
    with torch.device("meta"):
        if Heads.SCORE in checkpoint.heads:
            model = AutoModelForSequenceClassification.from_config(config)
            prefix = f"{model.base_model_prefix}."
            own = {
                name if name.startswith(CLASSIFIER) else prefix + name: value
                for name, value in own.items()
            }
        else:
            model = AutoModel.from_config(config, add_pooling_layer=False)
    model.load_state_dict(own, assign=True)
    for name, buffer in list(model.named_buffers()):  # made on meta, and not in the checkpoint
        parent, _, leaf = name.rpartition(".")
        positions = torch.arange(buffer.numel()).reshape(buffer.shape)
        value = positions if leaf == "position_ids" else torch.zeros_like(buffer, device="cpu")
        model.get_submodule(parent).register_buffer(leaf, value, persistent=False)
    evaluated: torch.nn.Module = model.eval()
    return evaluated


@torch.no_grad()
def run(
    checkpoint: Checkpoint, state: State, ids: Ragged[np.int32], progress: Progress
) -> Reference:
    """Compute every head of every text.

    Raises:
        CheckpointError: an output is NaN or Inf; names the head.
    """
    model = network(checkpoint, state)
    dense, weights, colbert, rows, scores = [], [], [], [], []
    task = progress.add_task("run the checkpoint", total=len(ids.values))
    for text in ids:
        found = model(torch.from_numpy(text).long()[None])
        progress.advance(task, len(text))
        if Heads.SCORE in checkpoint.heads:
            scores.append(found.logits[0, 0].numpy())
            continue
        hidden = found.last_hidden_state[0]
        if Heads.DENSE in checkpoint.heads:
            pooled = pool(hidden, checkpoint)
            dense.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
        if Heads.SPARSE in checkpoint.heads:
            weights.append(torch.relu(linear(state, "sparse", hidden))[:, 0].numpy())
        if Heads.COLBERT in checkpoint.heads:
            vectors = linear(state, "colbert", hidden[~cls(len(text), checkpoint)])
            kept = sample(len(vectors))
            colbert.append(torch.nn.functional.normalize(vectors[kept], dim=-1).numpy())
            rows.append(kept)
    named = {"dense": dense, "sparse": weights, "colbert": colbert, "score": scores}
    for head, values in named.items():
        if not all(np.isfinite(value).all() for value in values):
            raise CheckpointError(f"the checkpoint's own {head} output is NaN or Inf")
    return Reference(
        ids=ids,
        dense=np.stack(dense) if dense else None,
        weights=np.concatenate(weights) if weights else None,
        colbert=ragged(colbert, np.float32) if colbert else None,
        colbert_rows=ragged(rows, np.int32) if rows else None,
        scores=np.stack(scores) if scores else None,
    )


def cls(length: int, checkpoint: Checkpoint) -> torch.Tensor:
    """Return which of a text's tokens are CLS tokens, as export or runtime put them there.

    The first is; with an interval, so is every token that stands so many after one, unless the
    closing token follows at once, or it is that itself.
    """
    every = length if checkpoint.cls_interval is None else checkpoint.cls_interval + 1
    return torch.tensor([i == 0 or (i % every == 0 and i + 2 < length) for i in range(length)])


def pool(hidden: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """Return the vector that the dense head normalises, of the last hidden states (t, h)."""
    if checkpoint.pooling == Pooling.CLS:
        return hidden[0]
    if checkpoint.pooling == Pooling.MEAN:
        return hidden.mean(0)
    return hidden[cls(len(hidden), checkpoint)].mean(0)


def linear(state: State, head: str, x: torch.Tensor) -> torch.Tensor:
    """Apply the linear layer of a head."""
    weight, bias = state[f"{head}_linear.weight"], state[f"{head}_linear.bias"]
    return torch.nn.functional.linear(x, weight, bias)


def sample(n: int) -> Ints:
    """Choose the rows of n that are kept: all, or ROWS spread evenly, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, ROWS)).round()).astype(np.int32)
