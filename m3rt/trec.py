"""Rankings as files that trec_eval and its kin read: query, Q0, document, rank, score, tag."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from m3rt import formats
from m3rt.datasets import Dataset
from m3rt.formats import Format
from m3rt.ranking import Ranking


def write(folder: Path, dataset: Dataset, engine: str, rankings: Mapping[str, Ranking]) -> None:
    """Write one file for each mode; what is there under its name is replaced."""
    for mode, ranking in rankings.items():
        name = re.sub(r"[^\w.+-]+", "-", f"{dataset.name}.{engine}.{mode}").strip("-")
        with formats.sink(folder / f"{name}.trec", Format.JSONL) as file:
            for query, documents, scores in zip(
                dataset.queries.ids, ranking.documents, ranking.scores, strict=True
            ):
                lines = (
                    f"{query} Q0 {dataset.documents.ids[document]} {rank} {score:.9g} {engine}\n"
                    for rank, (document, score) in enumerate(
                        zip(documents.tolist(), scores.tolist(), strict=True), 1
                    )
                    if document >= 0
                )
                file.write("".join(lines).encode())
