"""Plain torch: transformers' encoder with scaled-dot-product attention, and the three heads.

What a careful user writes by hand: batches of equal size in tokens, sorted by length or not, and
real tokens alone are copied to the host, ColBERT vectors in the type that they were computed in.
"""

# mypy: disable-error-code="import-not-found"
# the libraries may be in an environment of their own

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import XLMRobertaModel

from benchmarks.peers.worker import Job, Outputs, lexical, serve

SPECIAL = frozenset(range(4))  # <s>, <pad>, </s>, <unk>: no lexical weight
PAD = 1


class Network:
    """One precision, compiled or not."""

    heads: Sequence[str] = ("dense", "sparse", "colbert")

    def __init__(self, job: Job) -> None:
        options = job.options
        self._device = torch.device(options.get("device", "cpu"))
        self._sort = bool(options.get("sort", True))
        self._step = int(options.get("step_tokens", 16384))
        dtype = getattr(torch, options["dtype"])
        self._tokenizer = Tokenizer.from_file(str(job.model / "tokenizer.json"))
        self._tokenizer.enable_truncation(8192)
        network = XLMRobertaModel.from_pretrained(
            job.model, add_pooling_layer=False, dtype=dtype, attn_implementation="sdpa"
        )
        self._network: Any = network.to(self._device).eval()
        if "compile" in options:
            self._network = torch.compile(network, dynamic=True, backend=options["compile"])
        self._linear = {}
        for head in ("sparse", "colbert"):
            state = torch.load(job.model / f"{head}_linear.pt", "cpu", weights_only=True)
            self._linear[head] = [
                state[name].to(self._device, dtype) for name in ("weight", "bias")
            ]

    @torch.inference_mode()
    def encode(self, texts: list[str], batch: int | None) -> dict[str, Any]:
        """Embed texts with the heads that are wanted; batch is a number of texts."""
        ids = [entry.ids for entry in self._tokenizer.encode_batch(texts)]
        found: dict[str, Any] = {"ids": ids} | {head: [None] * len(ids) for head in self.heads}
        for rows in self.batches([len(row) for row in ids], batch):
            for head, values in self.run([ids[row] for row in rows]).items():
                for row, value in zip(rows, values, strict=True):
                    found[head][row] = value
        return found

    def batches(self, lengths: Sequence[int], batch: int | None) -> Iterator[list[int]]:
        """Give the rows of each batch: so many texts, or as fit a step with their padding."""
        order = list(range(len(lengths)))
        if self._sort:
            order.sort(key=lambda row: -lengths[row])
        rows: list[int] = []
        width = 0
        for row in order:
            wider = max(width, lengths[row])
            full = len(rows) == batch if batch else wider * (len(rows) + 1) > self._step
            if rows and full:
                yield rows
                rows, wider = [], lengths[row]
            rows.append(row)
            width = wider
        if rows:
            yield rows

    def run(self, ids: list[list[int]]) -> dict[str, Any]:
        """Run one batch, and copy what it gives to the host."""
        lengths = [len(row) for row in ids]
        width = max(lengths)
        padded = torch.tensor([row + [PAD] * (width - len(row)) for row in ids])
        mask = torch.tensor(lengths)[:, None] > torch.arange(width)
        real = mask.to(self._device)
        # without padding there is no mask, and a faster kernel
        wanted = None if min(lengths) == width else real.long()
        hidden = self._network(padded.to(self._device), attention_mask=wanted).last_hidden_state
        found: dict[str, Any] = {}
        unit, linear = torch.nn.functional.normalize, torch.nn.functional.linear
        if "dense" in self.heads:
            found["dense"] = unit(hidden[:, 0].float(), dim=-1).cpu().numpy()
        if "sparse" in self.heads:
            weights = torch.relu(linear(hidden, *self._linear["sparse"]))[..., 0]
            found["sparse"] = split(weights[real].float().cpu(), lengths)
        if "colbert" in self.heads:
            real[:, 0] = False
            vectors = unit(linear(hidden[real], *self._linear["colbert"]), dim=-1)
            found["colbert"] = split(vectors.cpu(), [n - 1 for n in lengths])
        return found

    def rest(self) -> None:
        """Free what torch keeps of the device's memory."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def outputs(self, found: Any) -> Outputs:
        """Give every head."""
        return Outputs(
            dense=np.stack(found["dense"]),
            sparse=[
                lexical(np.asarray(ids, np.int32), weights, SPECIAL)
                for ids, weights in zip(found["ids"], found["sparse"], strict=True)
            ],
            colbert=[rows.astype(np.float32) for rows in found["colbert"]],
        )


def split(values: torch.Tensor, lengths: Sequence[int]) -> list[Any]:
    """Cut rows that are end to end, as numpy; bfloat16, which it lacks, as float32."""
    if values.dtype == torch.bfloat16:
        values = values.float()
    return np.split(values.numpy(), np.cumsum(lengths)[:-1])


if __name__ == "__main__":
    serve(Network, ("torch", "transformers", "tokenizers", "triton"))
