"""MTEB's tasks on this runtime: dense vectors, through mteb's encoder interface.

    import mteb
    from m3rt.mteb_model import MTEBEncoder

    mteb.evaluate(MTEBEncoder("models/bge-m3", engine="cpu:int8"), mteb.get_tasks(["SciFact"]))

Written against mteb 2 (EncoderProtocol); mteb itself is imported only for a model's description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m3rt import api, score
from m3rt.errors import InputError, missing
from m3rt.reranker import Reranker
from m3rt.runtime import M3
from m3rt.types import Floats, Heads

QUERY = "query"  # mteb's PromptType of queries


class MTEBEncoder:
    """An encoder as mteb's EncoderProtocol has it. BGE-M3 takes no prompts, and none are added.

    Args:
        model_name: a model directory, or a model that is open.
        revision: what to call the model's revision; default: its checkpoint's.
        device: not used, as the engine decides; mteb passes it.
        engine: as m3rt.load takes it; of a model that is open, its own.
        max_length: tokens of a text; default: the model's.
        query_max_length: tokens of a query; default: max_length.
        **kwargs: what else mteb may pass; not used.

    Raises:
        ArtifactError, UnavailableError: as m3rt.load.
        InputError: a length that the model does not take, or no dense head.
    """

    def __init__(
        self,
        model_name: str | Path | M3,
        revision: str | None = None,
        *,
        device: str | None = None,
        engine: str = "auto",
        max_length: int | None = None,
        query_max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model_name, Reranker):
            raise InputError(
                "the model is a reranker: it scores pairs, and has no embeddings; see m3rt rerank"
            )
        self.model = model_name if isinstance(model_name, M3) else api.load(model_name, engine)
        self.revision = revision or self.model.manifest.source.revision
        self.max_length = max_length
        self.query_max_length = max_length if query_max_length is None else query_max_length
        for length in (self.max_length, self.query_max_length):
            self.model.encode([], Heads.DENSE, max_length=length)  # refuses what does not fit

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Floats:
        """Return the dense vectors of all texts, (n, h).

        Args:
            inputs: batches with ``text``, as mteb's data loaders give them; for documents mteb has
                put the title before it, with a space.
            task_metadata: not used.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: tells queries from documents.
            **kwargs: mteb's batch_size and the like; the engine has its own.

        Raises:
            InputError: a batch has no text: an image, or audio.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(
                    f"a batch has {', '.join(batch)}, expected text: M3 reads no other"
                )
            texts.extend(batch["text"])
        kept = self.query_max_length if prompt_type == QUERY else self.max_length
        dense = self.model.encode(texts, Heads.DENSE, max_length=kept).dense
        assert dense is not None
        return dense

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Floats:
        """Return the cosines of all pairs, (n, m); a vector counts as one row."""
        return score.dense(np.atleast_2d(embeddings1), np.atleast_2d(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Floats:
        """Return the cosine of row i with row i, (n,)."""
        return score.dense_pairs(np.atleast_2d(embeddings1), np.atleast_2d(embeddings2))

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes above its results: the checkpoint's name, and the engine.

        Raises:
            UnavailableError: mteb is not installed.
        """
        try:
            from mteb.models import ModelMeta
            from mteb.models.model_meta import ScoringFunction
        except ImportError as error:
            raise missing("mteb", "mteb", "running MTEB's tasks") from error
        checkpoint = self.model.manifest.source.checkpoint
        described = {
            # mteb expects an organisation and a name
            "name": checkpoint if checkpoint.count("/") == 1 else f"local/{Path(checkpoint).name}",
            "revision": self.revision,
            "max_tokens": self.max_length or self.model.max_length,
            "embed_dim": self.model.manifest.hidden,
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": False,
            "experiment_kwargs": {"runtime": "m3rt", "engine": self.model.engine.name},
        }
        return ModelMeta.create_empty(described)
