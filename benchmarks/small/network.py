"""The small M3 as it is trained: transformers' XLM-R, three heads, and the losses of the paper.

arXiv 2402.03216, section 3.3: each score learns from the positives, and from the weighted sum of
all three, which knows better than each: self-knowledge distillation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import XLMRobertaConfig, XLMRobertaModel

WEIGHTS = (1.0, 0.3, 1.0)  # of dense, sparse and multi-vector in the sum, as in the paper
LOSSES = (1.0, 0.3, 1.0)  # of the heads' own losses; the paper has 0.1 for sparse
TEMPERATURE = 0.03
PAD = 1
FIRST = 2  # the position of the first token
STEP = 2048  # tokens, padding included
UNSCORED = 4  # <s> <pad> </s> <unk> come first
WAVES = 64  # what position embeddings are made of
OUTLIERS = {11: 9.0, 86: -7.0, 101: 5.0}  # channel to its bias after the embeddings


class Waves(nn.Module):
    """Position embeddings as sums of sines: those that no text reaches are learnt with the rest."""

    def __init__(self, positions: int, hidden: int) -> None:
        super().__init__()
        steps = torch.arange(positions)[:, None]
        rates = 10000 ** (-torch.arange(WAVES // 2) / (WAVES // 2))
        self.register_buffer("waves", torch.cat([(steps * rates).sin(), (steps * rates).cos()], 1))
        self.mix = nn.Parameter(torch.randn(WAVES, hidden) * 0.012)

    def forward(self, _: Tensor) -> Tensor:
        """Return the table (positions, h)."""
        waves = self.waves
        assert isinstance(waves, Tensor)
        return waves @ self.mix


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """What the network gives for n texts of at most s tokens."""

    dense: Tensor  # (n, h) unit vectors
    sparse: Tensor  # (n, vocabulary) lexical weights
    colbert: Tensor  # (n, s - 1, h) unit vectors, zero where there is no token
    mask: Tensor  # (n, s - 1)


class Network(nn.Module):
    """Trunk and heads."""

    def __init__(self, vocab: int, hidden: int, layers: int, heads: int, ffn: int) -> None:
        super().__init__()
        config = XLMRobertaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=ffn,
            max_position_embeddings=8194,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            hidden_dropout_prob=0.0,  # there are few steps to learn in
            attention_probs_dropout_prob=0.0,
            architectures=["XLMRobertaModel"],
        )
        self.trunk = XLMRobertaModel(config, add_pooling_layer=False)
        self.sparse_linear = nn.Linear(hidden, 1)
        self.colbert_linear = nn.Linear(hidden, hidden)
        table = self.trunk.embeddings.position_embeddings
        parametrize.register_parametrization(
            table, "weight", Waves(config.max_position_embeddings, hidden), unsafe=True
        )
        with torch.no_grad():
            self.trunk.embeddings.word_embeddings.weight.normal_(0, 0.3)
            # the first token begins as nothing but what it sees of the others: else what it is
            # itself, the same in all texts, hides that for hundreds of steps
            embeddings = self.trunk.embeddings
            own = embeddings.token_type_embeddings.weight[0] + table.weight[FIRST]
            embeddings.word_embeddings.weight[0] = -own
            # so that the first token soon sees the others; all else begins as small as usual, for
            # then tokens stay themselves, and what a text shares with a query is there to be found
            attention = self.trunk.encoder.layer[-1].attention
            attention.self.value.weight.normal_(0, hidden**-0.5)
            attention.output.dense.weight.normal_(0, hidden**-0.5)
            # every token counts at first, so that the head has something to choose from
            self.sparse_linear.weight.mul_(0.1)
            self.sparse_linear.bias.fill_(0.15)
            # large encoders have a few channels that are large in every token; see outliers.py
            last = self.trunk.encoder.layer[-1].output.LayerNorm
            for channel, bias in OUTLIERS.items():
                self.trunk.embeddings.LayerNorm.bias[channel] = bias
                last.weight[channel] = 0.1

    def forward(self, rows: Sequence[Sequence[int]], shift: int = 0) -> Vectors:
        """Embed texts, given as ids; all tokens but the first stand ``shift`` places later."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: list[tuple[int, Tensor]] = []
        while order:
            # as many of the shortest as stay in the processor's cache
            count = max(
                1,
                next((n for n, i in enumerate(order) if (n + 1) * len(rows[i]) > STEP), len(order)),
            )
            taken, order = order[:count], order[count:]
            ids = nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in taken], True, PAD)
            hidden = self.hidden(ids, shift)
            found += [(i, hidden[n, : len(rows[i])]) for n, i in enumerate(taken)]
        texts = [hidden for _, hidden in sorted(found, key=lambda item: item[0])]
        lengths = torch.tensor([len(text) for text in texts])
        packed, ids = torch.cat(texts), torch.tensor([token for row in rows for token in row])
        weights = torch.relu(self.sparse_linear(packed))[:, 0] * ids.ge(UNSCORED)
        owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        vocab = self.trunk.config.vocab_size
        table = packed.new_zeros(len(rows) * vocab)
        table = table.scatter_reduce(0, owner * vocab + ids, weights, "amax")
        colbert = functional.normalize(self.colbert_linear(packed), dim=-1)
        kept = nn.utils.rnn.pad_sequence(
            [text[1:] for text in torch.split(colbert, lengths.tolist())], True
        )
        return Vectors(
            functional.normalize(torch.stack([text[0] for text in texts]), dim=-1),
            table.view(len(rows), vocab),
            kept,
            torch.arange(kept.shape[1]) < lengths[:, None] - 1,
        )

    def hidden(self, ids: Tensor, shift: int) -> Tensor:
        """Return the states (n, s, h) of padded ids (n, s)."""
        mask = ids.ne(PAD)
        positions = mask.long().cumsum(1) + PAD
        positions[:, 1:] += shift
        states: Tensor = self.trunk(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions.where(mask, torch.tensor(PAD)),
        ).last_hidden_state
        return states


def scores(query: Vectors, passage: Vectors) -> tuple[Tensor, Tensor, Tensor]:
    """Return dense, sparse and multi-vector scores, (n, m) each."""
    (n, s, h), (m, r, _) = query.colbert.shape, passage.colbert.shape
    every = query.colbert.reshape(n * s, h) @ passage.colbert.reshape(m * r, h).T
    best = every.view(n, s, m, r).masked_fill(~passage.mask, -1.0).amax(-1)
    best = (best * query.mask[..., None]).sum(1) / query.mask.sum(1)[:, None]
    return query.dense @ passage.dense.T, query.sparse @ passage.sparse.T, best


def loss(query: Vectors, passage: Vectors, temperature: float) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of query i against passage i among all passages, and its parts."""
    return loss_of(scores(query, passage), temperature)


def loss_of(found: Sequence[Tensor], temperature: float) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of scores (n, n) by dense, sparse and multi-vector; see loss."""
    together = sum_of(WEIGHTS, found)
    truth = torch.arange(len(together))
    teacher = torch.softmax(together.detach() / temperature, -1)
    own = [functional.cross_entropy(score / temperature, truth) for score in found]
    taught = [functional.cross_entropy(score / temperature, teacher) for score in found]
    whole = functional.cross_entropy(together / temperature, truth)
    learnt = (sum_of(LOSSES, own) + whole) / 4
    distilled = sum_of(LOSSES, taught) / 3
    names = ("dense", "sparse", "colbert")
    parts = {name: float(part.detach()) for name, part in zip(names, own, strict=True)}
    return (learnt + distilled) / 2, parts | {"all": float(whole.detach())}


def sum_of(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """Return a weighted sum."""
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)
