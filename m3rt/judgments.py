"""What is relevant to a query: qrels in their forms, answers, and SQuAD's paragraphs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3rt import rows
from m3rt.errors import InputError
from m3rt.rows import IDS, Row, Texts

Qrels = dict[str, dict[str, int]]
HEADER = "query-id"  # BEIR's first line begins with it
QUERY = ("qid", "query_id", "query-id", "_id", "id")
RELEVANT = "positive_passages"  # MLDR's field; the others are not relevant


def read(path: Path) -> Qrels:
    """Read qrels.

    Tab-separated: BEIR's query, document, grade, under a header; or TREC's query, 0, document,
    grade. JSON lines: FlagEmbedding's ``qid``, ``docid``, ``relevance``; or MLDR's queries, each
    with its passages.

    Raises:
        InputError: it is none of these, or judges a document twice and in two ways.
    """
    found: Qrels = {}
    for row, query, document, grade in entries(path):
        grades = found.setdefault(query, {})
        if grades.setdefault(document, grade) != grade:
            raise row.error(
                f"query {query!r} judges {document!r} as {grade} here and {grades[document]} above"
            )
    return found


def entries(path: Path) -> Iterator[tuple[Row, str, str, int]]:
    """Give row, query, document and grade of each judgment."""
    for number, row in enumerate(rows.read(path)):
        if isinstance(row.fields, dict):
            if "docid" in row.fields:
                query, document = row.identity(*QUERY), row.identity("docid")
                yield row, query, document, whole(row, row.fields.get("relevance", 1))
            else:
                yield from passages(row)
            continue
        fields = row.fields if len(row.fields) > 1 else row.fields[0].split()
        if number == 0 and fields[0] == HEADER:
            continue
        if len(fields) not in (3, 4):
            raise row.error(
                f"{len(fields)} fields, expected BEIR's query-id, corpus-id, score or TREC's "
                "query, 0, document, grade"
            )
        yield row, fields[0], fields[-2], whole(row, fields[-1])


def passages(row: Row) -> Iterator[tuple[Row, str, str, int]]:
    """Give the judgments in a query of MLDR."""
    query = row.identity(*QUERY)
    for field, grade in ((RELEVANT, 1), ("negative_passages", 0)):
        many = row.fields.get(field, [])
        if not isinstance(many, list) or (field not in row.fields and field == RELEVANT):
            raise row.error(f"no list {field!r}, and no 'docid': expected qrels")
        for one in many:
            if not isinstance(one, dict):
                raise row.error(f"{field!r} holds a {type(one).__name__}, expected objects")
            yield row, query, Row(row.place, one).identity("docid"), grade


def whole(row: Row, grade: Any) -> int:
    """Return a grade as an integer."""
    try:
        if isinstance(grade, bool | float):
            raise ValueError
        return int(grade)
    except (TypeError, ValueError):
        raise row.error(f"the grade is {grade!r}, expected an integer") from None


def right(path: Path) -> dict[str, tuple[str, ...]]:
    """Read answers: JSON lines with an id and ``answers``, a list of strings.

    Raises:
        InputError: it is no such file.
    """
    found = {}
    named = rows.unique((row.identity(*QUERY), row) for row in rows.read(path))
    for query, row in named.items():
        many = row.fields.get("answers")
        if not (isinstance(many, list) and many and all(isinstance(one, str) for one in many)):
            raise row.error(f"'answers' is {many!r}, expected a list of at least one string")
        found[query] = tuple(many)
    return found


def squad(path: Path) -> tuple[Texts, Texts, Qrels]:
    """Read SQuAD or XQuAD as retrieval: the paragraph of a question is relevant, no other.

    Documents are the distinct paragraphs, numbered from 0. Questions that SQuAD 2 calls impossible
    are left out.

    Raises:
        InputError: it is no such file.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); expected SQuAD's layout") from error
    contexts: dict[str, str] = {}
    questions: dict[str, str] = {}
    qrels: Qrels = {}
    try:
        for article in found["data"]:
            for paragraph in article["paragraphs"]:
                document = contexts.setdefault(paragraph["context"], str(len(contexts)))
                for question in paragraph["qas"]:
                    if question.get("is_impossible"):
                        continue
                    row = Row(str(path), question)
                    query = row.identity(*IDS)
                    if query in questions:
                        raise row.error(f"the question {query!r} is there already")
                    questions[query] = row.text("question")
                    qrels[query] = {document: 1}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not SQuAD's layout ({error!r}): expected data, paragraphs, context, qas"
        ) from error
    if bad := [context for context in contexts if not isinstance(context, str)]:
        raise InputError(f"{path}: a context is {type(bad[0]).__name__}, expected a string")
    documents = Texts(tuple(contexts.values()), tuple(contexts))
    return documents, Texts(tuple(questions), tuple(questions.values())), qrels
