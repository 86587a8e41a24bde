"""The small M3's tokenizer: Unigram over all its texts, with XLM-R's special ids."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import tokenizers
from transformers import XLMRobertaTokenizerFast

ADDED = 2  # <pad> before the pieces and <mask> after them


def train(lines: Sequence[str], vocab: int, out: Path) -> tokenizers.Tokenizer:
    """Train on lines, and write tokenizer.json and its configs."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab - ADDED,
        model_type="unigram",
        character_coverage=0.9998,  # the rest are letters seen a few times
        normalization_rule_name="nmt_nfkc",
        max_sentence_length=1 << 16,
        num_threads=2,
        minloglevel=1,
    )
    file = out / "sentencepiece.bpe.model"
    file.write_bytes(model.getvalue())
    tokenizer = XLMRobertaTokenizerFast(vocab_file=str(file), model_max_length=8192)
    file.unlink()  # tokenizer.json says it all
    tokenizer.save_pretrained(out)
    return tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
