"""Retrieval data sets: documents, queries, and what is relevant to what. See docs/eval.md.

Only what lies there is read; nothing is downloaded. layouts.py finds the files, this module reads
and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from m3rt import answers, judgments, layouts, rows
from m3rt.errors import InputError
from m3rt.layouts import Layout, Place
from m3rt.rows import Texts


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A collection to search, with queries that are judged.

    Judged either by ``qrels`` or, where a text is right if it holds an answer, by ``answers``; the
    other one is empty. Their keys are the ids of the queries.
    """

    name: str
    documents: Texts  # title and text joined by a space, as BEIR does
    queries: Texts
    qrels: Mapping[str, Mapping[str, int]]  # query id to document id to grade; above 0 is relevant
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layout: Layout = Layout.BEIR
    language: str | None = None
    exclude_same_id: bool = False  # a query is no result for itself: as BEIR's own evaluation

    def first(self, queries: int | None = None, documents: int | None = None) -> Dataset:
        """Return a smaller set: the first queries, their judged documents, and the first others.

        A smaller collection is an easier one: its figures compare engines, not papers.

        Args:
            queries: how many; None keeps all.
            documents: how many, or as many as are judged if those are more; None keeps all.
        """
        kept = self.queries.first(queries)
        qrels = {query: self.qrels[query] for query in kept.ids if query in self.qrels}
        found = self.documents
        if documents is not None and documents < len(found):
            judged = {document for grades in qrels.values() for document in grades}
            room = max(0, documents - sum(name in judged for name in found.ids))
            others = (i for i, name in enumerate(found.ids) if name not in judged)
            some = {i for i, _ in zip(others, range(room), strict=False)}
            found = found.take([i for i, n in enumerate(found.ids) if n in judged or i in some])
        if len(kept) == len(self.queries) and len(found) == len(self.documents):
            return self
        return replace(
            self,
            name=f"{self.name} ({len(kept)} queries, {len(found)} documents)",
            documents=found,
            queries=kept,
            qrels=qrels,
            answers={query: self.answers[query] for query in kept.ids if query in self.answers},
        )


def read(
    path: str | Path,
    *,
    language: str | None = None,
    split: str | None = None,
    missing: Literal["error", "keep"] = "error",
) -> Dataset:
    """Read a data set of a layout that is known; see docs/eval.md.

    Args:
        path: a directory, or a SQuAD file.
        language: which one, where there are several.
        split: which judgments; default: the one that is published for the layout.
        missing: for judged documents that are not in the collection. ``keep`` leaves them relevant
            and never found, as trec_eval does.

    Raises:
        InputError: not such a data set, damaged, empty, or judgments that fit no query or document.
    """
    place = layouts.locate(Path(path), language, split)
    qrels: Mapping[str, Mapping[str, int]] = {}
    right: Mapping[str, tuple[str, ...]] = {}
    if place.layout is Layout.SQUAD:
        documents, queries, qrels = judgments.squad(place.qrels)
    else:
        documents = rows.texts(place.corpus, "text")
        queries = rows.texts([place.queries], "text", "query", "question")
        if place.layout is Layout.MKQA:
            right = judgments.right(place.qrels)
            documents = replace(documents, texts=tuple(map(answers.normalise, documents.texts)))
        else:
            qrels = judgments.read(place.qrels)
        queries = judged(queries, qrels or right, place)
    dataset = Dataset(
        place.name,
        documents,
        queries,
        qrels,
        right,
        layout=place.layout,
        language=place.language,
        exclude_same_id=place.layout is Layout.BEIR,
    )
    check(dataset, missing)
    return dataset


def judged(queries: Texts, by_query: Mapping[str, object], place: Place) -> Texts:
    """Keep the queries that are judged: a file may hold those of all splits.

    Raises:
        InputError: a judged query is not there.
    """
    if absent := by_query.keys() - set(queries.ids):
        raise InputError(
            f"{place.qrels} judges {len(absent)} queries that {place.queries} lacks, for example "
            f"{min(absent)!r}: expected files that belong together"
        )
    return queries.take([i for i, query in enumerate(queries.ids) if query in by_query])


def check(dataset: Dataset, missing: str) -> None:
    """Refuse a set that cannot be evaluated; see read."""
    for what, many in (("documents", dataset.documents), ("judged queries", dataset.queries)):
        if not len(many):
            raise InputError(f"{dataset.name} holds no {what}, expected at least one")
    if dataset.qrels and not any(
        g > 0 for grades in dataset.qrels.values() for g in grades.values()
    ):
        raise InputError(f"{dataset.name} judges no document relevant, expected a grade above 0")
    if missing == "error":
        known = set(dataset.documents.ids)
        absent = [
            (query, document)
            for query, grades in dataset.qrels.items()
            for document in grades
            if document not in known
        ]
        if absent:
            raise InputError(
                f"{dataset.name} judges {len(absent)} documents that its collection lacks, for "
                f"example {absent[0][1]!r} for query {absent[0][0]!r}: complete the collection, "
                "or pass --keep-missing (missing='keep') to count them as never found"
            )
