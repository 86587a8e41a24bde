"""FlagEmbedding's interface to bge-reranker, on m3rt.

REFERENCE: FlagEmbedding 1.4.2, inference/reranker/encoder_only/base.py and
abc/inference/AbsReranker.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3rt.api import load_reranker
from m3rt.errors import InputError
from m3rt.pair_tokenizer import Pair, check_pairs
from m3rt.reranker import Reranker


class FlagReranker:
    """A drop-in for FlagEmbedding.FlagReranker that runs a model directory, without torch.

    Parameters, defaults, types and numbers are FlagEmbedding's, save that:

    * ``model_name_or_path`` is what ``m3rt export`` wrote, or a ``Reranker`` already open.
      ``engine`` is new and stands in for ``devices``, which must be None or "cpu".
    * ``model`` and ``tokenizer`` are m3rt's. There are no process pools and no progress bars.
    * A ``max_length`` beyond the model's own is refused with InputError, and so is one too short
      for a pair. Methods take no options for the tokenizer.
    * A query that leaves no room for the passage is cut until one token of it fits; in
      FlagEmbedding such a pair is run at more than ``max_length``.
    * ``use_fp16`` and ``batch_size`` are ignored: the engine has its precision, and batches are
      made by tokens; so are ``trust_remote_code``, ``cache_dir`` and unknown options of the
      constructor.
    * ``compute_score([])`` gives an empty list. NaN and Inf raise EngineError.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | Reranker,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: str | int | list[str] | list[int] | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        engine: str = "auto",
        **kwargs: Any,
    ) -> None:
        if devices not in (None, "cpu", ["cpu"]):
            raise InputError(
                f"devices is {devices!r}, expected None or 'cpu': choose an engine instead, such "
                "as engine='cuda'; m3rt doctor lists them"
            )
        if isinstance(model_name_or_path, Reranker):
            self.model = model_name_or_path
        else:
            self.model = load_reranker(model_name_or_path, engine)
        self.tokenizer = self.model.tokenizer
        self.query_instruction_for_rerank = query_instruction_for_rerank
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_rerank = passage_instruction_for_rerank
        self.passage_instruction_format = passage_instruction_format
        self.query_max_length = query_max_length
        self.max_length = max_length
        self.normalize = normalize

    def compute_score(
        self,
        sentence_pairs: Sequence[Pair] | Pair,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
    ) -> list[float]:
        """Score (query, passage) pairs, or one pair, which gives a list of one.

        An argument that is None is as the constructor's; a ``query_max_length`` that is None
        there, too, is three quarters of max_length.

        Raises:
            InputError: not pairs of text, or a length that does not fit the model.
            EngineError: the engine failed, or gave NaN or Inf.
        """
        single = len(sentence_pairs) > 0 and isinstance(sentence_pairs[0], str)
        pairs: list[Any] = [sentence_pairs] if single else list(sentence_pairs)
        check_pairs(pairs)
        query, passage = self.query_instruction_for_rerank, self.passage_instruction_for_rerank
        found = self.model.score(
            [
                (
                    instructed(pair[0], query, self.query_instruction_format),
                    instructed(pair[1], passage, self.passage_instruction_format),
                )
                for pair in pairs
            ],
            normalize=self.normalize if normalize is None else normalize,
            max_length=self.max_length if max_length is None else max_length,
            query_max_length=(
                self.query_max_length if query_max_length is None else query_max_length
            ),
        )
        scores: list[float] = found.scores.tolist()
        return scores


def instructed(text: str, instruction: str | None, template: str) -> str:
    """Put an instruction before a text; a backslash and n in the template end a line."""
    if instruction is None:
        return text
    return template.replace("\\n", "\n").format(instruction, text)
