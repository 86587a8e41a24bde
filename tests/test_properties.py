"""Generated texts: ids, lexical weights, ColBERT rows and order against FlagEmbedding's own code.

The network is replaced on both sides by one function of the ids, so that everything around it is
compared exactly: FlagEmbedding's tokenizer call, sorting, padding and post-processing with
m3rt's tokenizer, plan and heads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from m3rt import M3, InputError
from m3rt.artifact import Manifest
from m3rt.export import checkpoint as checkpoints
from m3rt.export.pipeline import write_tokenizer
from m3rt.export.samples import sentences
from m3rt.tokenizer import Tokenizer
from m3rt.types import Batch, Floats, Heads, Ints, Limits, Raw
from tests.oracle import Network, Oracle
from tests.torch_engine import open_checkpoint

TEXTS = 10_000  # distinct ones, at least

exact = settings(
    derandomize=True,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),  # of size and speed: one example is many texts
)

# First and last character of ranges that tokenizers and normalizers treat in their own way.
RANGES = [
    "\0\x1f",  # controls
    "\x20\x7e",  # ASCII
    "\x7f\xa0",  # more controls
    "\xa1\u024f",  # Latin
    "\u0300\u036f",  # combining marks
    "\u0370\u052f",  # Greek, Cyrillic
    "\u0530\u07bf",  # Armenian, Hebrew, Arabic, Syriac, Thaana
    "\u0900\u0dff",  # scripts of India
    "\u0e00\u0fff",  # Thai, Lao, Tibetan
    "\u1000\u13ff",  # Burmese, Georgian, Hangul letters, Ethiopic, Cherokee
    "\u1780\u18af",  # Khmer, Mongolian
    "\u1e00\u1fff",  # Latin and Greek with marks
    "\u2000\u206f",  # spaces, joiners, direction marks
    "\u2070\u2bff",  # symbols
    "\u3000\u33ff",  # kana, squared words
    "\u4e00\u9fff",  # Han
    "\uac00\ud7a3",  # Hangul
    "\ue000\uf8ff",  # private use
    "\uf900\uffff",  # presentation forms, full width, noncharacters
    "\U0001d400\U0001d7ff",  # mathematical letters
    "\U0001f000\U0001faff",  # emoji
    "\U00020000\U0002ffff",  # rare Han, noncharacters
    "\U000e0000\U000e01ef",  # tags, variation selectors
    "\U000f0000\U0010ffff",  # private use, the last noncharacters
]
SPECIALS = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<s", "<MASK>", "▁", "[CLS]"]
BLANKS = [" ", "  ", "\t", "\n", "\r\n", "\v", "\f", "\x1c", "\x85", "\xa0"]
BLANKS += ["\u1680", "\u2003", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff"]
WORDS = sorted({word for sentence in sentences() for word in sentence.split()})

scripts = [st.characters(min_codepoint=ord(ends[0]), max_codepoint=ord(ends[1])) for ends in RANGES]
fragments = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    *[st.text(script, max_size=8) for script in scripts],
    st.sampled_from(WORDS),
    st.sampled_from(WORDS).map(" {} ".format),
    st.sampled_from(SPECIALS),
    st.sampled_from(BLANKS),
)
texts = st.lists(fragments, max_size=8).map("".join)
long_texts = st.builds(
    lambda head, part, times: head + part * times,
    texts,
    st.lists(fragments, min_size=1, max_size=3).map("".join),
    st.sampled_from([200, 2000, 9000]),
)
lengths = st.one_of(st.sampled_from([8192, 512, 3, 2]), st.integers(2, 60))
limits = st.builds(
    Limits,
    max_tokens=st.integers(1, 400),
    max_length=st.just(8192),
    pads=st.booleans(),
    widths=st.sampled_from([(), (8, 32, 128, 512, 2048, 8192)]),
)
# Few values, so that ties between duplicates of a token are common; the network is a ReLU.
tables = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.floats(0, 65504, width=32)),
    min_size=1,
    max_size=13,
).map(lambda weights: np.array(weights, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A checkpoint's tokenizer on both sides: FlagEmbedding's, and ours as export writes it."""

    oracle: Oracle
    manifest: Manifest
    tokenizer: Tokenizer

    def compare(self, texts: list[str], length: int, limits: Limits, table: Floats) -> None:
        model = M3(self.manifest, self.tokenizer, Tabled(limits, network(table)))
        ids = model.tokenize(texts, max_length=length).ids
        places = range(len(texts))
        assert [ids[i].tolist() for i in places] == self.oracle.tokenize(texts, length)

        ours = model.encode(texts, max_length=length)
        theirs = self.oracle.finish(texts, network(table), length)
        assert ours.dense is not None
        assert ours.sparse is not None
        assert ours.colbert is not None
        np.testing.assert_array_equal(ours.dense, theirs.dense)
        assert [ours.sparse[i] for i in places] == theirs.lexical
        for mine, reference in zip(ours.colbert, theirs.colbert, strict=True):
            np.testing.assert_array_equal(mine, reference)


@dataclass(frozen=True, slots=True, eq=False)
class Tabled:
    """An engine that runs the network text by text."""

    limits: Limits
    network: Network
    name: str = "tabled:fp32"

    def run(self, batch: Batch, heads: Heads) -> Raw:
        texts = np.split(batch.tokens.values, batch.tokens.starts[1:-1])
        dense, weights, colbert = zip(*map(self.network, texts), strict=True)
        return Raw(np.stack(dense), np.concatenate(weights), list(colbert))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(checkpoint / "tokenizer.json")


def network(table: Floats) -> Network:
    """Outputs that depend on every id and its place, with token weights out of a table."""

    def run(ids: Ints) -> tuple[Floats, Floats, Floats]:
        places = np.arange(len(ids))
        colbert = np.stack([ids, places], axis=1).astype(np.float32)
        dense = np.array([len(ids), (ids * (places + 1) % 4093).sum()], np.float32)
        return dense, table[(ids + 7 * places) % len(table)], colbert

    return run


@pytest.fixture(scope="module", params=["checkpoint", "real_checkpoint"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp("model")
    unscored = write_tokenizer(checkpoints.read(str(folder)), out)
    manifest = dataclasses.replace(open_checkpoint(folder).manifest, unscored_ids=unscored)
    return Subject(Oracle(folder), manifest, Tokenizer.from_file(out / "tokenizer.json"))


@pytest.mark.slow
def test_ten_thousand_texts_end_as_flagembedding_ends_them(subject: Subject) -> None:
    seen: set[str] = set()

    @settings(exact, max_examples=600)
    @given(st.lists(texts, min_size=24, max_size=24, unique=True), lengths, limits, tables)
    def check(batch: list[str], length: int, limits: Limits, table: Floats) -> None:
        seen.update(batch)
        subject.compare([*batch, batch[0]], length, limits, table)

    check()
    assert len(seen) >= TEXTS


def test_texts_of_more_than_8192_tokens(subject: Subject) -> None:
    longest = 0

    @settings(exact, max_examples=40)
    @given(st.lists(st.one_of(texts, long_texts), min_size=1, max_size=4), lengths, limits, tables)
    def check(batch: list[str], length: int, limits: Limits, table: Floats) -> None:
        nonlocal longest
        longest = max(longest, *subject.tokenizer.lengths(batch))
        subject.compare([*batch, batch[0]], length, limits, table)

    check()
    assert longest > 8192


@exact
@given(st.data(), st.lists(texts, max_size=5), texts, st.integers(0xD800, 0xDFFF).map(chr), texts)
def test_a_lone_surrogate_is_refused_with_its_place(
    tokenizer: Tokenizer, data: st.DataObject, batch: list[str], before: str, lone: str, after: str
) -> None:
    place = data.draw(st.integers(0, len(batch)))
    with pytest.raises(InputError, match=rf"text {place} .*U\+{ord(lone):04X}.* {len(before)}:"):
        tokenizer([*batch[:place], before + lone + after, *batch[place:]], 8192)
