"""XLM-R and the three M3 heads, or a reranker's, as one torch module, written to be exported.

Primitive operations only, one name per tensor of the checkpoint, no branch on data. The forms
that engines like best are made from its graph by export.passes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from m3rt.errors import CheckpointError
from m3rt.export.checkpoint import Checkpoint, State, Trunk
from m3rt.types import Heads, Pooling

# Large enough that exp() of it is 0 in every precision, small enough for float16.
MASKED = -10000.0


class Embeddings(nn.Module):
    """Word, position and type embeddings."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.pad_id = trunk.pad_id
        self.from_pad = trunk.from_pad
        self.word_embeddings = nn.Embedding(trunk.vocab, trunk.hidden)
        self.position_embeddings = nn.Embedding(trunk.positions, trunk.hidden)
        self.token_type_embeddings = nn.Embedding(trunk.types, trunk.hidden)
        self.LayerNorm = nn.LayerNorm(trunk.hidden, eps=trunk.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, S) to vectors (B, S, h)."""
        if self.from_pad:
            # from the ids, not from the mask: a literal <pad> in a text takes no position
            real = ids.ne(self.pad_id).long()
            positions = torch.cumsum(real, 1) * real + self.pad_id
        else:
            positions = torch.cumsum(torch.ones_like(ids), 1) - 1
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        out: Tensor = self.LayerNorm(x + self.position_embeddings(positions))
        return out


class Attention(nn.Module):
    """Multi-head self-attention, its output projection and the residual."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.heads = trunk.heads
        self.width = trunk.hidden // trunk.heads
        self.self = nn.ModuleDict(
            {name: nn.Linear(trunk.hidden, trunk.hidden) for name in ("query", "key", "value")}
        )
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(trunk.hidden, trunk.hidden),
                "LayerNorm": nn.LayerNorm(trunk.hidden, eps=trunk.epsilon),
            }
        )

    def split(self, x: Tensor) -> Tensor:
        """(B, S, h) to (B, heads, S, width)."""
        return x.view(*x.shape[:2], self.heads, self.width).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, S, h) and additive mask (B, 1, 1, S) to vectors (B, S, h)."""
        query, key, value = (self.split(self.self[name](x)) for name in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) * (1 / math.sqrt(self.width)) + mask
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        out: Tensor = self.output["LayerNorm"](self.output["dense"](mixed) + x)
        return out


class Layer(nn.Module):
    """One transformer layer, normalised after each residual."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.attention = Attention(trunk)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(trunk.hidden, trunk.ffn)})
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(trunk.ffn, trunk.hidden),
                "LayerNorm": nn.LayerNorm(trunk.hidden, eps=trunk.epsilon),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, S, h) to vectors (B, S, h)."""
        x = self.attention(x, mask)
        inner = nn.functional.gelu(self.intermediate["dense"](x))
        out: Tensor = self.output["LayerNorm"](self.output["dense"](inner) + x)
        return out


class Encoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(trunk) for _ in range(trunk.layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, S, h) to vectors (B, S, h)."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Classifier(nn.Module):
    """RoBERTa's classification head with one label: a pair's score."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.dense = nn.Linear(trunk.hidden, trunk.hidden)
        self.out_proj = nn.Linear(trunk.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """First tokens' vectors (B, h) to scores (B,).

        The last product is written as a sum: engines that multiply in bf16 would round the score
        to 8 bits, and documents of almost the same score would become equal.
        """
        x = torch.tanh(self.dense(x))
        return (x * self.out_proj.weight).sum(-1) + self.out_proj.bias


class M3(nn.Module):
    """Ids and mask to the heads asked for, as a tuple in the order of Heads."""

    def __init__(self, checkpoint: Checkpoint, colbert_dim: int | None) -> None:
        super().__init__()
        trunk = checkpoint.trunk
        self.wanted = checkpoint.heads
        self.pooling = checkpoint.pooling
        self.cls_interval = checkpoint.cls_interval
        self.embeddings = Embeddings(trunk)
        self.encoder = Encoder(trunk)
        if Heads.SPARSE in self.wanted:
            self.sparse_linear = nn.Linear(trunk.hidden, 1)
        if colbert_dim is not None:
            self.colbert_linear = nn.Linear(trunk.hidden, colbert_dim)
        if Heads.SCORE in self.wanted:
            self.classifier = Classifier(trunk)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S) int64, 1 for tokens and 0 for padding.

        Returns:
            dense (B, h) unit vectors; sparse (B, S) weights; colbert (B, S, d) unit vectors.
            Rows of padding hold no meaning. Of a reranker, score (B,) alone.
        """
        mask = (1.0 - attention_mask[:, None, None, :].float()) * MASKED
        x = self.embeddings(input_ids)
        x = self.encoder(x, mask)
        out = []
        if Heads.DENSE in self.wanted:
            out.append(unit(self.pool(x, attention_mask)))
        if Heads.SPARSE in self.wanted:
            out.append(torch.relu(self.sparse_linear(x)).squeeze(-1))
        if Heads.COLBERT in self.wanted:
            out.append(unit(self.colbert_linear(x)))
        if Heads.SCORE in self.wanted:
            out.append(self.classifier(x[:, 0]))
        return tuple(out)

    def pool(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (B, S, h) to one vector per text (B, h)."""
        if self.pooling == Pooling.CLS:
            return x[:, 0]
        weights = self.weights(attention_mask)[:, :, None].float()
        return (x * weights).sum(1) / weights.sum(1).clamp_min(1e-9)

    def weights(self, attention_mask: Tensor) -> Tensor:
        """Return which vectors the mean is of, (B, S): see m3rt.mcls.places."""
        if self.cls_interval is None:
            return attention_mask
        place = torch.cumsum(torch.ones_like(attention_mask), 1) - 1
        followed = place < attention_mask.sum(1, keepdim=True) - 2
        return (place == 0) | ((place % (self.cls_interval + 1) == 0) & followed)


def unit(x: Tensor) -> Tensor:
    """Divide by the L2 norm over the last axis, as torch.nn.functional.normalize does."""
    return x / (x * x).sum(-1, keepdim=True).sqrt().clamp_min(1e-12)


def build(checkpoint: Checkpoint, state: State) -> M3:
    """Make the module with the checkpoint's weights.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not known.
    """
    colbert = state.get("colbert_linear.weight")
    with torch.device("meta"):  # no memory for weights that are replaced at once
        module = M3(checkpoint, None if colbert is None else len(colbert))
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{name} is {found.get(name, 'missing')}, expected "
                f"{expected.get(name, 'no such tensor')} from config.json"
            )
    module.load_state_dict(state, assign=True)
    return module.eval()
