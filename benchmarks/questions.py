"""Valid requests of every surface, and whether an answer is the direct result."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m3rt import M3, score
from m3rt.expectation import Array, difference, loads, of_json, of_tensors
from m3rt.payloads import MEDIA
from m3rt.types import Embeddings

COSINE = 1 - 1e-5  # of an answer and the direct result, at least
ALIKE = 1e-4  # scores that may change places
HALF = 1 - 1e-3  # the same in float16, whose smallest numbers are coarse
WEIGHTS = (0.4, 0.2, 0.4)  # of dense, sparse and ColBERT, where a surface gives one score

Content = dict[str, Any]
Row = dict[str, Array]
# is given an answer's body; says how it differs
Check = Callable[[bytes], str | None]


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and what says whether its answer is right.

    Args:
        path: of the route.
        content: the body.
        headers: besides those of every request.
        fault: says how the body of an answer with status 200 differs from the direct result.
    """

    path: str
    content: Content
    headers: Mapping[str, str]
    fault: Check

    @property
    def body(self) -> bytes:
        """The body as JSON."""
        return json.dumps(self.content, ensure_ascii=False).encode()


class Truth:
    """Direct results of some texts, from which the answer to any of them is known.

    Args:
        model: what is served.
        texts: that requests are made of.
        name: what the server calls the model.
    """

    def __init__(self, model: M3, texts: Sequence[str], name: str = "") -> None:
        self.texts = tuple(texts)
        self.name = name
        self._model = model
        self._all: Embeddings = model.encode(self.texts)
        self._rows = [row_of(self._all, row) for row in range(len(texts))]

    def row(self, number: int, *names: str) -> Row:
        """Return arrays of one text; all but those of other heads."""
        whole = self._rows[number]
        return {name: whole[name] for name in ("n_tokens", *names) if name in whole}

    def native(self, rows: Sequence[int], heads: Sequence[str], form: str) -> Question:
        """Ask m3rt's own route.

        Args:
            rows: the texts.
            heads: asked for.
            form: json, base64, half (base64 of float16), tensors.
        """
        content: Content = {"inputs": [self.texts[row] for row in rows], "outputs": list(heads)}
        headers = {"accept": MEDIA} if form == "tensors" else {}
        if form in ("base64", "half"):
            content["format"] = "base64"
        if form == "half":
            content["dtype"] = "float16"
        names = [*({"dense", "colbert"} & set(heads))]
        names += ["indices", "values"] if "sparse" in heads else []
        expected = [self.row(row, *names) for row in rows]

        def fault(body: bytes) -> str | None:
            try:
                found = of_tensors(body) if form == "tensors" else of_json(body)
            except (ValueError, KeyError, TypeError) as error:
                return f"not to be read: {type(error).__name__}: {error}"
            return difference(found, expected, HALF if form == "half" else COSINE)

        return Question("/v1/m3/embed", content, headers, fault)

    def openai(self, rows: Sequence[int], packed: bool) -> Question:
        """Ask OpenAI's route."""
        content: Content = {"model": self.name, "input": [self.texts[row] for row in rows]}
        if packed:
            content["encoding_format"] = "base64"

        def vectors(body: Any) -> list[Array]:
            data = sorted(body["data"], key=lambda one: one["index"])
            return [
                np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
                if packed
                else np.array(one["embedding"])
                for one in data
            ]

        return Question("/v1/embeddings", content, {}, self._dense(rows, vectors))

    def tei(self, rows: Sequence[int]) -> Question:
        """Ask text-embeddings-inference's route for dense vectors."""
        content = {"inputs": [self.texts[row] for row in rows]}
        return Question("/embed", content, {}, self._dense(rows, lambda body: body))

    def tei_sparse(self, rows: Sequence[int]) -> Question:
        """Ask text-embeddings-inference's route for lexical weights."""
        expected = [self.row(row, "indices", "values") for row in rows]
        for one in expected:
            del one["n_tokens"]

        def fault(body: bytes) -> str | None:
            try:
                found: list[Row] = [
                    {
                        "indices": np.array([one["index"] for one in text], np.int64),
                        "values": np.array([one["value"] for one in text], np.float32),
                    }
                    for text in loads()(body)
                ]
            except (ValueError, KeyError, TypeError) as error:
                return f"not to be read: {type(error).__name__}: {error}"
            return difference(found, expected, COSINE)

        content = {"inputs": [self.texts[row] for row in rows]}
        return Question("/embed_sparse", content, {}, fault)

    def tei_all(self, rows: Sequence[int]) -> Question:
        """Ask text-embeddings-inference's route for a vector of each token."""
        expected = [{"colbert": self.row(row, "colbert")["colbert"]} for row in rows]

        def fault(body: bytes) -> str | None:
            try:
                found = [{"colbert": np.array(text)} for text in loads()(body)]
            except (ValueError, KeyError, TypeError) as error:
                return f"not to be read: {type(error).__name__}: {error}"
            return difference(found, expected, COSINE)

        content = {"inputs": [self.texts[row] for row in rows]}
        return Question("/embed_all", content, {}, fault)

    def rerank(self, query: int, rows: Sequence[int]) -> Question:
        """Ask for passages in the order of their scores for a query.

        The order is compared by the direct scores, so that those that are alike may change places.
        """
        content: Content = {"model": self.name, "query": self.texts[query]}
        content["documents"] = [self.texts[row] for row in rows]
        one = self._model.encode([self.texts[query]])
        rest = self._model.encode([self.texts[row] for row in rows])
        direct = score.matrix(one, rest, score.Weights(*WEIGHTS)).combined[0]

        def fault(body: bytes) -> str | None:
            try:
                order = [one["index"] for one in loads()(body)["results"]]
            except (ValueError, KeyError, TypeError) as error:
                return f"not to be read: {type(error).__name__}: {error}"
            if sorted(order) != list(range(len(rows))):
                return f"{len(order)} places, expected {len(rows)}"
            wrong = float(np.diff(direct[order]).max(initial=-1.0))
            return f"the order is wrong by {wrong:.2g}" if wrong > ALIKE else None

        return Question("/v1/rerank", content, {}, fault)

    def _dense(self, rows: Sequence[int], vectors: Callable[[Any], Any]) -> Check:
        expected = [{"dense": self.row(row, "dense")["dense"]} for row in rows]

        def fault(body: bytes) -> str | None:
            try:
                found: list[Row] = [{"dense": np.asarray(one)} for one in vectors(loads()(body))]
            except (ValueError, KeyError, TypeError) as error:
                return f"not to be read: {type(error).__name__}: {error}"
            return difference(found, expected, COSINE)

        return fault


def row_of(embeddings: Embeddings, row: int) -> Row:
    """Return the arrays of one text, under the names of expectation.py."""
    found: Row = {"n_tokens": np.array(embeddings.n_tokens[row], np.int64)}
    if embeddings.dense is not None:
        found["dense"] = embeddings.dense[row]
    if embeddings.colbert is not None:
        found["colbert"] = embeddings.colbert[row]
    if embeddings.sparse is not None:
        found["indices"] = embeddings.sparse.ids[row].astype(np.int64)
        found["values"] = embeddings.sparse.weights[row]
    return found
