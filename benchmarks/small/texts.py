"""What the small M3 learns from: pairs of a query and the passage that answers it.

Tatoeba's translations and SciFact's abstracts. Four kinds of pairs, of which every batch holds
one, and one language, so that a batch's other passages are worth telling apart:

translation  a sentence and its translation
passage      sentences of one language end to end; the query is some words of one of them
abstract     a paper's title and abstract; the query is its title, or words of one sentence, which
             the passage then often lacks
long         five abstracts end to end; the query is as for an abstract
"""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TATOEBA = "text/tatoeba-laser-v1.tar.gz"
SCIFACT = "ir/scifact/corpus.jsonl"

Pair = tuple[str, str]  # query, passage


@dataclass(frozen=True, slots=True)
class Paper:
    """A title and the sentences of its abstract."""

    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """All there is to learn from."""

    translations: dict[str, list[Pair]]  # by language: its sentences and their English
    papers: list[Paper]

    def lines(self) -> list[str]:
        """Return every sentence once, for the tokenizer."""
        pairs = [pair for pairs in self.translations.values() for pair in pairs]
        papers = [line for paper in self.papers for line in (paper.title, *paper.sentences)]
        return list(dict.fromkeys([text for pair in pairs for text in pair] + papers))


def read(data: Path) -> Texts:
    """Read both collections from the shared data directory."""
    translations = {}
    with tarfile.open(data / TATOEBA) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        for name, member in sorted(members.items()):
            match = re.fullmatch(r"tatoeba\.(\w+)-eng\.(\w+)", name)
            if match and match[2] == match[1]:
                sides = []
                for side in (member, members[f"tatoeba.{match[1]}-eng.eng"]):
                    file = archive.extractfile(side)
                    assert file is not None
                    sides.append(file.read().decode().splitlines())
                translations[match[1]] = list(zip(*sides, strict=True))
    papers = []
    for line in (data / SCIFACT).read_text("utf-8").splitlines():
        record = json.loads(line)
        sentences = tuple(re.split(r"(?<=[.?!])\s+(?=[A-Z0-9])", record["text"]))
        papers.append(Paper(record["title"], sentences))
    return Texts(translations, papers)


class Sampler:
    """Draws batches of pairs."""

    def __init__(self, texts: Texts, seed: int) -> None:
        self.texts = texts
        self.random = random.Random(seed)
        self.sentences = {
            language: list(dict.fromkeys(text for text, _ in pairs))
            for language, pairs in texts.translations.items()
        }
        english = [text for pairs in texts.translations.values() for _, text in pairs]
        self.sentences["eng"] = list(dict.fromkeys(english))
        self.languages = sorted(texts.translations)
        # how often, how many pairs, and how they are made
        self.kinds: dict[str, tuple[float, int, Callable[[int], list[Pair]]]] = {
            "translation": (0.15, 96, self.translation),
            "passage": (0.49, 48, self.passage),
            "abstract": (0.34, 32, self.abstract),
            "long": (0.02, 6, self.long),
        }

    def batch(self) -> tuple[str, list[Pair]]:
        """Return the kind of a batch and its pairs."""
        shares = [share for share, _, _ in self.kinds.values()]
        (kind,) = self.random.choices(list(self.kinds), shares)
        _, count, make = self.kinds[kind]
        return kind, make(count)

    def translation(self, count: int) -> list[Pair]:
        """Sentences and their translations, in one direction."""
        pairs = self.texts.translations[self.random.choice(self.languages)]
        chosen = self.random.sample(pairs, min(count, len(pairs)))
        return chosen if self.random.random() < 0.5 else [(b, a) for a, b in chosen]

    def passage(self, count: int) -> list[Pair]:
        """Passages of one language, with words of one of their sentences."""
        language = self.random.choice([*self.languages, *["eng"] * 12])
        pool = self.sentences[language]
        found = []
        for _ in range(count):
            taken = self.random.sample(pool, self.random.randint(2, 10))
            found.append((self.some(self.random.choice(taken)), " ".join(taken)))
        return found

    def abstract(self, count: int) -> list[Pair]:
        """Abstracts, with their title or words of one sentence."""
        return [self.asked(paper) for paper in self.random.sample(self.texts.papers, count)]

    def long(self, count: int) -> list[Pair]:
        """Several abstracts as one passage, with a query for one of them."""
        found = []
        for group in (self.random.sample(self.texts.papers, 5) for _ in range(count)):
            query, passage = self.asked(group[0])
            parts = [" ".join((paper.title, *paper.sentences)) for paper in group[1:]]
            parts.insert(self.random.randint(0, len(parts)), passage)
            found.append((query, " ".join(parts)))
        return found

    def asked(self, paper: Paper) -> Pair:
        """Return a query for a paper, and the paper, often without what the query was made of."""
        if self.random.random() < 0.3:
            return self.some(paper.title), " ".join(paper.sentences)
        i = self.random.randrange(len(paper.sentences))
        kept = self.random.random() < 0.4
        sentences = [text for j, text in enumerate(paper.sentences) if kept or j != i]
        title = [paper.title] if self.random.random() < 0.7 or not sentences else []
        return self.some(paper.sentences[i]), " ".join([*title, *sentences])

    def some(self, text: str) -> str:
        """Return some of a text's words, in order; characters where it has no blanks."""
        words = text.split()
        glue = " "
        if len(words) < 3:
            words, glue = list(text), ""
        if len(words) > 24:
            start = self.random.randint(0, len(words) - 24)
            words = words[start : start + 24]
        share = self.random.uniform(0.5, 1.0)
        kept = [word for word in words if self.random.random() < share]
        chosen = glue.join(kept if len(kept) > 2 else words)
        return chosen.lower() if self.random.random() < 0.15 else chosen
