"""Where the files of a data set lie: the layouts in which retrieval sets are published.

BEIR; MIRACL and MLDR as Hugging Face has them and as FlagEmbedding's evaluation stores them; MKQA
as FlagEmbedding has it, with BEIR's NQ as its collection; SQuAD and XQuAD.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m3rt import rows
from m3rt.errors import InputError
from m3rt.rows import COMPRESSED

# as FlagEmbedding's MKQAEvalDataLoader lists them
MKQA_LANGUAGES = frozenset(
    {
        *("en", "ar", "fi", "ja", "ko", "ru", "es", "sv", "he", "th", "da", "de", "fr", "it"),
        *("nl", "pl", "pt", "hu", "vi", "ms", "km", "no", "tr", "zh_cn", "zh_hk", "zh_tw"),
    }
)


class Layout(enum.StrEnum):
    """How a data set is laid out."""

    BEIR = "beir"
    MIRACL = "miracl"
    MLDR = "mldr"
    MKQA = "mkqa"
    SQUAD = "squad"


# judgments that are published, and meant to be evaluated with
SPLITS = {Layout.BEIR: "test", Layout.MIRACL: "dev", Layout.MLDR: "test", Layout.MKQA: "test"}


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one data set, in one language."""

    layout: Layout
    name: str
    language: str | None
    corpus: tuple[Path, ...]
    queries: Path
    qrels: Path


def locate(path: Path, language: str | None = None, split: str | None = None) -> Place:
    """Find the files of a data set.

    Args:
        path: a directory, or a SQuAD file.
        language: which one, where there are several.
        split: which judgments; None: those of SPLITS, or the only ones.

    Raises:
        InputError: no layout fits, or there are several languages, or not this one or this split.
    """
    found = places(path, split)
    wanted = [place for place in found if language in (None, place.language)]
    names = ", ".join(sorted(str(place.language) for place in found))
    if not wanted:
        raise InputError(f"{path} is not in the language {language!r}, it has {names}")
    if len(wanted) > 1:
        raise InputError(f"{path} is in {len(wanted)} languages: pass --language, one of {names}")
    return wanted[0]


def languages(path: Path, split: str | None = None) -> list[str]:
    """Return the languages of a data set; none where it does not say.

    Raises:
        InputError: no layout fits.
    """
    return sorted(place.language for place in places(path, split) if place.language)


def places(path: Path, split: str | None) -> list[Place]:
    """Return the data set in each of its languages."""
    if path.is_file() and path.suffix == ".json":
        return [squad(path)]
    if not path.is_dir():
        kind = "is no directory and no SQuAD .json" if path.exists() else "is not there"
        raise InputError(f"{path} {kind}; expected a data set: see docs/eval.md")
    for find in (flag, beir, miracl, mldr, mkqa, xquad):
        if found := list(find(path, split)):
            return found
    listed = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise InputError(
        f"{path} is no data set of a layout that is known, it has {listed}; expected corpus.jsonl, "
        "queries.jsonl and qrels, or MIRACL, MLDR, MKQA or XQuAD: see docs/eval.md"
    )


def beir(path: Path, split: str | None) -> Iterator[Place]:
    """Find BEIR's corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv or qrels.tsv."""
    corpus, queries = file(path, "corpus.jsonl"), file(path, "queries.jsonl")
    if not (corpus and queries):
        return
    single = file(path, "qrels.tsv")
    if single and split is None:
        qrels = single
    else:
        splits = named(path / "qrels", re.compile(r"(.+)\.tsv"))
        qrels = chosen(path, Layout.BEIR, splits, split)
    yield Place(Layout.BEIR, path.resolve().name, None, (corpus,), queries, qrels)


def flag(path: Path, split: str | None) -> Iterator[Place]:
    """Find what FlagEmbedding's evaluation stores: LANGUAGE/SPLIT_qrels.jsonl and its like."""
    folders = [path, *sorted(one for one in path.iterdir() if one.is_dir())]
    for folder in folders:
        splits = named(folder, re.compile(r"(.+)_qrels\.jsonl"))
        # MKQA has one collection for all languages
        corpus = file(folder, "corpus.jsonl") or file(path, "corpus.jsonl")
        if not (splits and corpus):
            continue
        row = next(iter(rows.head(next(iter(splits.values())))), None)
        layout = Layout.MLDR
        if row and "answers" in row.fields:
            layout = Layout.MKQA
        elif any("title" in one.fields for one in rows.head(corpus)):
            layout = Layout.MIRACL
        qrels = chosen(folder, layout, splits, split)
        queries = folder / qrels.name.replace("_qrels", "_queries")
        language = None if folder == path else folder.name
        name = "-".join(filter(None, (path.resolve().name, language)))
        yield Place(layout, name, language, (corpus,), queries, qrels)


def miracl(path: Path, split: str | None) -> Iterator[Place]:
    """Find MIRACL's topics and qrels, with miracl-corpus beside them."""
    for folder, language in folders(path, "miracl-v1.0-"):
        name = f"miracl-corpus-v1.0-{language}"
        beside = (
            folder.parent,
            folder.parent / "miracl-corpus",
            folder.parents[1] / "miracl-corpus",
        )
        docs = [
            file
            for base in beside
            for file in named(base / name, re.compile(r"(docs-\d+)\.jsonl")).values()
        ]
        if not docs:
            raise InputError(
                f"{folder} has no collection: expected docs-0.jsonl.gz and so on in {name} beside "
                "it (the data set miracl/miracl-corpus)"
            )
        pattern = re.compile(rf"qrels\.miracl-v1\.0-{language}-(.+)\.tsv")
        qrels = chosen(folder, Layout.MIRACL, named(folder / "qrels", pattern), split)
        queries = folder / "topics" / qrels.name.replace("qrels.", "topics.", 1)
        corpus = tuple(sorted(docs, key=lambda file: (len(file.name), file.name)))  # 2 before 10
        yield Place(Layout.MIRACL, f"miracl-{language}", language, corpus, queries, qrels)


def mldr(path: Path, split: str | None) -> Iterator[Place]:
    """Find MLDR's corpus and queries; the qrels are beside them, or the passages in the queries."""
    for folder, language in folders(path, "mldr-v1.0-"):
        corpus = file(folder, "corpus.jsonl")
        splits = named(folder, re.compile(r"(train|dev|test)\.jsonl"))
        if not corpus:
            raise InputError(f"{folder} has no corpus.jsonl.gz, expected MLDR's collection there")
        queries = chosen(folder, Layout.MLDR, splits, split)
        stem = queries.name.partition(".")[0]
        qrels = file(folder.parent / "qrels", f"qrels.mldr-v1.0-{language}-{stem}.tsv")
        yield Place(Layout.MLDR, f"mldr-{language}", language, (corpus,), queries, qrels or queries)


def mkqa(path: Path, split: str | None) -> Iterator[Place]:
    """Find MKQA's LANGUAGE.jsonl, as FlagEmbedding filtered it, and NQ's corpus.jsonl."""
    bases = (path, path / "qa_data", path / "MKQA_test-data")
    files = {
        name: one for base in bases for name, one in named(base, re.compile(r"(.+)\.jsonl")).items()
    }
    found = {name: one for name, one in files.items() if name in MKQA_LANGUAGES}
    corpus = file(path, "corpus.jsonl") or file(path / "nq", "corpus.jsonl")
    if found and not corpus:
        raise InputError(f"{path} has no corpus.jsonl: expected that of BEIR's NQ, for MKQA")
    if found and split not in (None, SPLITS[Layout.MKQA]):
        raise InputError(f"{path} has no split {split!r}, MKQA has 'test' alone")
    for language, one in sorted(found.items()):
        assert corpus
        yield Place(Layout.MKQA, f"mkqa-{language}", language, (corpus,), one, one)


def xquad(path: Path, split: str | None) -> Iterator[Place]:
    """Find xquad.LANGUAGE.json."""
    for one in named(path, re.compile(r"(xquad\..+)\.json")).values():
        yield squad(one)


def squad(path: Path) -> Place:
    """Return a file of SQuAD's layout; the end of its name may tell the language."""
    language = path.stem.partition(".")[2] or None
    return Place(Layout.SQUAD, path.stem, language, (path,), path, path)


def file(folder: Path, name: str) -> Path | None:
    """Return a file that is there, gzipped or not."""
    for one in (folder / name, folder / (name + COMPRESSED)):
        if one.is_file():
            return one
    return None


def folders(path: Path, prefix: str) -> Iterator[tuple[Path, str]]:
    """Give the directories of each language: this one, or those in it or one below."""
    here = path.resolve()
    found = [here] if here.name.startswith(prefix) else []
    for pattern in (f"{prefix}*", f"*/{prefix}*"):
        found += sorted(one for one in here.glob(pattern) if one.is_dir())
    for one in found:
        yield one, one.name.removeprefix(prefix)


def named(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Return the files whose whole name, without .gz, fits; by the pattern's group."""
    found: dict[str, Path] = {}
    for one in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = pattern.fullmatch(one.name.removesuffix(COMPRESSED))
        if match and one.is_file():
            found.setdefault(match.group(1), one)
    return found


def chosen(folder: Path, layout: Layout, splits: dict[str, Path], split: str | None) -> Path:
    """Return the file of a split.

    Raises:
        InputError: there is none.
    """
    if split is None:
        split = (
            SPLITS[layout] if SPLITS[layout] in splits or len(splits) != 1 else next(iter(splits))
        )
    if split not in splits:
        raise InputError(
            f"{folder} has no judgments for the split {split!r}, only for {listed(splits)}: pass "
            f"--split, or add them as {layout} has them (see docs/eval.md)"
        )
    return splits[split]


def listed(names: Iterable[str]) -> str:
    """Write names."""
    return ", ".join(map(repr, names)) or "none"
