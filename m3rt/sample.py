"""The texts that the quality gate judges an engine on: a small retrieval, never calibrated on.

Those built in are sample.jsonl: questions and passages in some thirty languages, on few subjects,
so that each question has near misses in other languages. None of them is a text of the parity
gate, which are what int8 is calibrated on by default. The user's own have no questions; there,
every text is looked for among all others. A reranker scores queries with documents: of those built
in every other one, for each pair costs as much as a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from m3rt.artifact import Artifact
from m3rt.certificate import Texts
from m3rt.errors import InputError
from m3rt.pair_tokenizer import PairTokenizer
from m3rt.tokenizer import Tokenizer
from m3rt.types import Offsets, Ragged, offsets

BUILT_IN = "built in"
EVERY = 2  # a reranker takes each second query and document: 160 pairs, 20 documents to rank
LEAST, MOST = 20, 16_384  # texts and tokens of the user's own: a ranking, and in minutes


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Token ids of n texts, and which are looked for and which are found."""

    name: str
    ids: Ragged[np.int32]  # n texts
    queries: Offsets  # (q,) their places among the texts
    documents: Offsets  # (d,) likewise; a query is never its own document

    def described(self) -> Texts:
        """Return what the certificate says of it."""
        return described(self.name, self.ids, len(self.queries), len(self.documents))


@dataclass(frozen=True, slots=True, eq=False)
class PairSample:
    """Token ids of n pairs for a reranker, those of a query together."""

    name: str
    ids: Ragged[np.int32]  # n pairs
    starts: Offsets  # (q + 1,) where the pairs of each query begin

    def described(self) -> Texts:
        """Return what the certificate says of it."""
        return described(self.name, self.ids, len(self.starts) - 1, len(self.ids))


AnySample = Sample | PairSample


def described(name: str, ids: Ragged[np.int32], queries: int, documents: int) -> Texts:
    """Return what identifies a sample."""
    digest = hashlib.sha256(ids.values.tobytes() + ids.starts.tobytes())
    return Texts(name, digest.hexdigest(), queries, documents, len(ids.values))


def texts() -> tuple[list[str], list[str]]:
    """Return the queries and the documents of sample.jsonl."""
    lines = files("m3rt").joinpath("sample.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    queries, documents = (
        [record[kind] for record in records if kind in record] for kind in ("query", "document")
    )
    return queries, documents


def built_in(model: Artifact) -> AnySample:
    """Return the sample that is built in, as a model's token ids."""
    queries, documents = texts()
    tokenizer, length = Tokenizer.of(model), model.manifest.max_length
    if model.manifest.is_reranker:
        asked, some = queries[::EVERY], documents[::EVERY]
        pairs = [(query, document) for query in asked for document in some]
        ids = PairTokenizer(tokenizer)(pairs, length, length * 3 // 4).ids
        return PairSample(BUILT_IN, ids, offsets([len(some)] * len(asked)))
    ids = tokenizer([*queries, *documents], length).ids
    places = np.arange(len(ids))
    return Sample(BUILT_IN, ids, places[: len(queries)], places[len(queries) :])


def own(name: str, ids: Ragged[np.int32]) -> Sample:
    """Return a sample of the user's own texts.

    Raises:
        InputError: they are too few for a ranking, or so many that a build would take hours.
    """
    check(name, ids, "texts")
    places = np.arange(len(ids))
    return Sample(name, ids, places, places)


def own_pairs(name: str, ids: Ragged[np.int32], documents: Sequence[int]) -> PairSample:
    """Return a sample of the user's own queries with documents, for a reranker.

    Args:
        name: of the file.
        ids: of the pairs, those of a query together.
        documents: of each query.

    Raises:
        InputError: they are too few or too many, or no query has two documents to be ranked.
    """
    check(name, ids, "pairs")
    if max(documents) < 2:
        raise InputError(f"{name} has no query with two documents: there is nothing to rank")
    return PairSample(name, ids, offsets(documents))


def check(name: str, ids: Ragged[np.int32], kind: str) -> None:
    """Refuse too few or too many of the user's own.

    Raises:
        InputError: with how many there are.
    """
    if len(ids) < LEAST:
        raise InputError(f"{name} holds {len(ids)} {kind}, expected at least {LEAST} for the gate")
    if len(ids.values) > MOST:
        raise InputError(
            f"the {kind} of {name} have {len(ids.values)} tokens, expected at most {MOST} for the "
            "gate: take some of them"
        )


def apart(ids: Ragged[np.int32], *samples: AnySample) -> Ragged[np.int32]:
    """Return the texts that are in none of the samples, to calibrate with.

    Raises:
        InputError: none is left.
    """
    reserved = {row for sample in samples for row in rows(sample.ids)}
    kept = [i for i, row in enumerate(rows(ids)) if row not in reserved]
    if not kept:
        raise InputError(
            f"all {len(ids)} texts to calibrate with are also texts of the quality gate, which "
            "has to be on others: pass other texts"
        )
    return ids if len(kept) == len(ids) else ids.take(kept)


def rows(ids: Ragged[np.int32]) -> Iterator[bytes]:
    """Give each text's ids, to compare."""
    return (row.tobytes() for row in ids)
