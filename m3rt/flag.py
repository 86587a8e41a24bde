"""FlagEmbedding's interface to BGE-M3, on m3rt.

REFERENCE: FlagEmbedding 1.4.2, inference/embedder/encoder_only/m3.py and
abc/inference/AbsEmbedder.py.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from m3rt import pairs, score
from m3rt.api import load
from m3rt.errors import InputError
from m3rt.heads import check_finite, token_rows
from m3rt.runtime import M3
from m3rt.types import Floats, Heads, Ints, Ragged

T = TypeVar("T")
Lexical = dict[str, Any]  # token id as str, or token, to weight: np.float32


class BGEM3FlagModel:
    """A drop-in for FlagEmbedding.BGEM3FlagModel that runs a model directory, without torch.

    Parameters, methods, defaults, keys, types and numbers are FlagEmbedding's, save that:

    * ``model_name_or_path`` is what ``m3rt export`` wrote, or an ``M3`` already open.
      ``engine`` is new and stands in for ``devices``, which must be None or "cpu".
    * ``model`` and ``tokenizer`` are m3rt's. There are no process pools and no progress bars.
    * ``normalize_embeddings=False``, a ``pooling_method`` or ``colbert_dim`` that is not the
      model's, a head it lacks, and a ``max_length`` beyond its own are refused with InputError.
      Methods take no options for the tokenizer.
    * A model of m3rt's ``mcls`` pooling wants ``pooling_method="mcls"``: FlagEmbedding has no such
      thing. Its lengths count the CLS tokens put into a text, which have no ``colbert_vecs``.
    * ``use_fp16`` and ``use_bf16`` are ignored: the engine has its precision, and outputs are
      float32. (On the CPU, FlagEmbedding rounds the weights and then computes in float32.)
      ``batch_size`` is ignored too, as batches are made by tokens; so are ``convert_to_numpy``,
      ``trust_remote_code``, ``cache_dir`` and unknown options of the constructor.
    * ``encode([])`` gives empty results. NaN and Inf raise EngineError.
    * ``compute_score`` lets no padding score; in FlagEmbedding it does, as 0, where a token of
      the query has only negative similarities. Time and memory grow with the number of pairs,
      not with its square. Weights must be finite and sum to more than 0.
    * ``convert_id_to_token`` keeps the greatest of the weights whose ids decode to one token,
      not the last.
    * ``colbert_score`` returns np.float32, not a tensor.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | M3,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: str | int | list[str] | list[int] | None = None,
        pooling_method: str = "cls",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        colbert_dim: int = -1,
        batch_size: int = 256,
        query_max_length: int = 512,
        passage_max_length: int = 512,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        *,
        engine: str = "auto",
        passage_instruction_for_retrieval: str | None = None,
        passage_instruction_format: str = "{}{}",
        convert_to_numpy: bool = True,
        **kwargs: Any,
    ) -> None:
        if devices not in (None, "cpu", ["cpu"]):
            raise InputError(
                f"devices is {devices!r}, expected None or 'cpu': choose an engine instead, such "
                "as engine='cuda'; m3rt doctor lists them"
            )
        if isinstance(model_name_or_path, M3):
            self.model = model_name_or_path
        else:
            self.model = load(model_name_or_path, engine)
        _expect("normalize_embeddings", normalize_embeddings, True)
        _expect("pooling_method", pooling_method, self.model.manifest.pooling)
        if colbert_dim > 0:
            _expect("colbert_dim", colbert_dim, self.model.manifest.colbert_dim)
        self.tokenizer = self.model.tokenizer
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_retrieval = passage_instruction_for_retrieval
        self.passage_instruction_format = passage_instruction_format
        self.query_max_length = query_max_length
        self.passage_max_length = passage_max_length
        self.return_dense = return_dense
        self.return_sparse = return_sparse
        self.return_colbert_vecs = return_colbert_vecs
        self.truncate_dim = truncate_dim

    def encode_queries(
        self,
        queries: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Encode, with the instruction for queries, up to ``query_max_length`` tokens."""
        template = self.query_instruction_format
        queries = _instruct(queries, self.query_instruction_for_retrieval, template)
        length = _given(max_length, self.query_max_length)
        return self.encode(
            queries, batch_size, length, return_dense, return_sparse, return_colbert_vecs, **kwargs
        )

    def encode_corpus(
        self,
        corpus: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Encode, with the instruction for passages, up to ``passage_max_length`` tokens."""
        template = self.passage_instruction_format
        corpus = _instruct(corpus, self.passage_instruction_for_retrieval, template)
        return self.encode(
            corpus,
            batch_size,
            max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            **kwargs,
        )

    def encode(
        self,
        sentences: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        instruction: str | None = None,
        instruction_format: str = "{}{}",
        convert_to_numpy: bool = True,
    ) -> dict[str, Any]:
        """Return dense_vecs, lexical_weights and colbert_vecs of n texts, or of one str.

        They are (n, h) unit vectors; n defaultdict(int) of token id, as str, to np.float32, in
        the order in which the ids first weigh something; n arrays (t_i - 1, d) of unit vectors.
        One that was not asked for is None. An argument that is None is as the constructor's.

        Raises:
            InputError: not text, no output asked for, or one the model lacks.
            EngineError: the engine failed, or gave NaN or Inf.
        """
        asked = {
            "dense": _given(return_dense, self.return_dense),
            "sparse": _given(return_sparse, self.return_sparse),
            "colbert": _given(return_colbert_vecs, self.return_colbert_vecs),
        }
        heads = Heads.parse(head for head in asked if asked[head])
        length = _given(max_length, self.passage_max_length)
        sentences = _instruct(sentences, instruction, instruction_format)
        if isinstance(sentences, str):
            outputs = self._encode([sentences], length, heads)
            return {key: rows if rows is None else rows[0] for key, rows in outputs.items()}
        return self._encode(list(sentences), length, heads)

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
    ) -> dict[str, Any] | list[float]:
        """Score (query, passage) pairs, or one pair; a text that comes again is encoded once.

        The weights are of dense, sparse and colbert; 1, 1, 1 by default.

        Returns:
            A list by name of score, or one number for one pair: colbert, sparse, dense, and the
            weighted means sparse+dense (NaN if both weigh 0) and colbert+sparse+dense. No pairs
            give an empty list.

        Raises:
            InputError: not text, bad weights, or a model without all three heads.
            EngineError: the engine failed, or gave NaN or Inf.
        """
        given = _given(weights_for_different_modes, (1.0, 1.0, 1.0))
        if len(given) != 3:
            raise InputError(f"found weights {given}, expected 3: of dense, sparse and colbert")
        weights = score.Weights(*given)
        self.model.require(Heads.ALL)
        if len(sentence_pairs) == 0:
            return []
        single = isinstance(sentence_pairs[0], str)
        texts: list[Any] = [sentence_pairs] if single else list(sentence_pairs)
        results: dict[str, list[float]] = defaultdict(list)
        for found in pairs.scores(
            self.model,
            texts,
            _given(max_query_length, self.query_max_length),
            _given(max_passage_length, self.passage_max_length),
            weights,
        ):
            for name, values in _by_name(found, weights).items():
                results[name] += values.tolist()
        return {name: values[0] if single else values for name, values in results.items()}

    def compute_lexical_matching_score(
        self, lexical_weights_1: Lexical | list[Lexical], lexical_weights_2: Lexical | list[Lexical]
    ) -> Any:
        """Sum the products of the weights of shared keys: two dicts, or (n, m) for two lists.

        Raises:
            InputError: neither two dicts nor two lists.
        """
        if isinstance(lexical_weights_1, dict) and isinstance(lexical_weights_2, dict):
            return _shared(lexical_weights_1, lexical_weights_2)
        if isinstance(lexical_weights_1, list) and isinstance(lexical_weights_2, list):
            rows = [[_shared(a, b) for b in lexical_weights_2] for a in lexical_weights_1]
            return np.array(rows)
        raise InputError("expected two dicts or two lists of dicts of lexical weights")

    def colbert_score(self, q_reps: Floats, p_reps: Floats) -> np.float32:
        """Return the MaxSim of a query's ColBERT vectors with a passage's.

        Raises:
            InputError: no rows, or widths that differ.
        """
        similarity: np.float32 = score.maxsim([q_reps], [p_reps])[0, 0]
        return similarity

    def convert_id_to_token(
        self, lexical_weights: Lexical | list[Lexical]
    ) -> Lexical | list[Lexical]:
        """Return token to weight; one dict for one, or for a list of one."""
        texts = [lexical_weights] if isinstance(lexical_weights, dict) else lexical_weights
        converted = []
        for text in texts:
            tokens: Lexical = {}
            for token_id, weight in text.items():
                token = self.tokenizer.decode([int(token_id)])
                tokens[token] = max(weight, tokens.get(token, weight))
            converted.append(tokens)
        return converted[0] if len(converted) == 1 else converted

    def _encode(self, texts: Sequence[str], max_length: int, heads: Heads) -> dict[str, Any]:
        self.model.require(heads)  # M3.run takes ALL as every head there is
        manifest = self.model.manifest
        windows = self.model.windows(texts, max_length=max_length)
        dense = np.empty((len(texts), manifest.hidden), np.float32)
        lexical: dict[int, Lexical] = {}
        colbert: dict[int, Floats] = {}
        with contextlib.closing(self.model.run(windows, heads)) as steps:
            for batch, raw in steps:
                check_finite(batch, raw)
                if raw.dense is not None:
                    dense[batch.rows] = raw.dense
                for i, row in enumerate(batch.rows.tolist()):
                    if raw.weights is not None:
                        ids, weights = batch.tokens[i], Ragged(raw.weights, batch.tokens.starts)[i]
                        lexical[row] = _lexical(ids, weights, manifest.unscored_ids)
                    if raw.colbert is not None:
                        rows = token_rows(raw.colbert[i], manifest.cls_interval)
                        colbert[row] = self._truncate(rows)
        order = range(len(texts))
        return {
            "dense_vecs": self._truncate(dense) if Heads.DENSE in heads else None,
            "lexical_weights": [lexical[i] for i in order] if Heads.SPARSE in heads else None,
            "colbert_vecs": [colbert[i] for i in order] if Heads.COLBERT in heads else None,
        }

    def _truncate(self, vectors: Floats) -> Floats:
        if self.truncate_dim is None:
            return vectors
        cut = vectors[:, : self.truncate_dim]
        length = np.linalg.norm(cut, axis=1, keepdims=True)
        unit: Floats = np.divide(cut, np.maximum(length, 1e-12), dtype=np.float32)
        return unit


def _lexical(ids: Ints, weights: Floats, unscored: Sequence[int]) -> Lexical:
    found: Lexical = defaultdict(int)
    kept = (weights > 0) & ~np.isin(ids, unscored)
    for token_id, weight in zip(map(str, ids[kept]), weights[kept], strict=True):
        found[token_id] = max(weight, found[token_id])
    return found


def _by_name(found: score.Scores, weights: score.Weights) -> dict[str, Floats]:
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    hybrid = np.full_like(found.dense, np.nan)
    if weights.dense + weights.sparse > 0:
        hybrid = weights.mean({"dense": found.dense, "sparse": found.sparse})
    return {
        "colbert": found.colbert,
        "sparse": found.sparse,
        "dense": found.dense,
        "sparse+dense": hybrid,
        "colbert+sparse+dense": found.combined,
    }


def _shared(left: Lexical, right: Lexical) -> Any:
    return sum(weight * right[token] for token, weight in left.items() if token in right)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _expect(option: str, found: object, expected: object) -> None:
    if found != expected:
        raise InputError(
            f"{option} is {found!r}, but this model gives only {expected!r}: pass that"
        )


def _instruct(texts: Sequence[str] | str, instruction: str | None, template: str) -> Any:
    if instruction is None:
        return texts
    template = template.replace("\\n", "\n")
    if isinstance(texts, str):
        return template.format(instruction, texts)
    return [template.format(instruction, text) for text in texts]
