"""Histograms of lengths: declared, or from the user's file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt import mixes, traffic
from m3rt.errors import InputError
from m3rt.traffic import Traffic

stable = settings(derandomize=True, deadline=None)
counted = st.dictionaries(st.integers(1, 9000), st.integers(1, 100), min_size=1, max_size=20)


def pairs(found: Traffic) -> dict[int, float]:
    return dict(zip(found.lengths.tolist(), found.counts.tolist(), strict=True))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "lengths.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "128\n9\n128\n\n",
        "9\n128 2\n",
        "9,1\r\n128,2",
        "128,\t1.5\n 9 , 1 \n128 0.5\n7 0\n",
        "\ufeff128\n128\n9",
        "[128, 9, 128]",
        ' {"9": 1,\n "128": 2}\n',
        '{"128": 1, "9": 1.0, "128": 1}',
        "[128.0, 128, 9]",
    ],
)
def test_every_form_of_a_file(tmp_path: Path, text: str) -> None:
    assert pairs(traffic.read(written(tmp_path, text))) == {9: 1, 128: 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no text in it"),
        ("\n\n", "there is no text in it"),
        ("5 0\n", "there is no text in it"),
        ("[]", "there is no text in it"),
        ("{}", "there is no text in it"),
        ("12\n0\n", r"line 2: the length is 0, expected 1 to"),
        ("12\n-3\n", r"line 2: the length is -3, expected 1 to"),
        ("12\n\n99999999999 1\n", r"line 3: the length is 99999999999, expected 1 to"),
        ("12\n" + "9" * 5000, r"line 2: found '9999"),
        ("12 1\n12 -1\n", r"line 2: the number of texts is -1, expected 0 to"),
        ("12 nan\n", r"line 1: the number of texts is nan, expected 0 to"),
        ("12 inf\n", r"line 1: the number of texts is inf, expected 0 to"),
        ("12 1e16\n", r"line 1: the number of texts is 1e\+16, expected 0 to"),
        ("length,count\n12,1\n", r"line 1: found 'length,count', expected a length in tokens, or"),
        ("1.5\n", r"line 1: found '1\.5', expected a length in tokens"),
        ("12,\n", r"line 1: found '12,', expected a length in tokens"),
        ("12 1 1\n", r"line 1: found '12 1 1', expected a length in tokens"),
        (b"12\n\xff\n", r"line 2: byte 0 is 0xff"),
        ('{"12": ', r"it begins as JSON and is not"),
        ("[" * 10**5, r"it begins as JSON and is not"),
        ("[12, true]", r"entry 1 is True, expected a length in tokens"),
        ("[12, 1.5]", r"entry 1 is 1\.5, expected a length in tokens"),
        ("[12, NaN]", r"entry 1 is nan, expected a length in tokens"),
        ("[[12, 1]]", r"entry 0 is \[12, 1\], expected a length in tokens"),
        ("[12, 0]", r"the length is 0, expected 1 to"),
        ("[1" + "0" * 400 + "]", r"entry 0 is 1000"),
        ('{"x": 1}', r"the key 'x' is no length"),
        ('{"12": "x"}', r"12 has 'x', expected a number of texts"),
        ('{"12": NaN}', r"12 has nan, expected a number of texts"),
        ('{"12": {"a": 1}}', r"12 has \(\('a', 1\),\), expected a number of texts"),
        ('{"12": -1}', r"the number of texts is -1"),
        ('{"0": 1}', r"the length is 0"),
    ],
)
def test_what_is_no_histogram(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"lengths\.txt(, |: ){message}"):
        traffic.read(written(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none: No such file"):
        traffic.read(tmp_path / "none")


@stable
@given(counted, st.booleans())
def test_a_file_gives_what_was_counted(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[int, int], as_json: bool
) -> None:
    lines = "\n".join(f"{length},{count}" for length, count in counts.items())
    path = tmp_path_factory.mktemp("traffic") / "lengths"
    path.write_text(json.dumps(counts) if as_json else lines)
    found = traffic.read(path)
    assert pairs(found) == counts
    assert found.lengths.tolist() == sorted(counts)


@stable
@given(counted, st.integers(1, 9000))
def test_longer_texts_count_as_of_the_limit(counts: dict[int, int], longest: int) -> None:
    found = traffic.of(counts.items())
    cut: Counter[int] = Counter()
    for length, count in counts.items():
        cut[min(length, longest)] += count
    assert pairs(found.upto(longest)) == cut
    over = sum(count for length, count in counts.items() if length > longest)
    assert found.over(longest) == over / sum(counts.values())


@stable
@given(counted, st.integers(1, 9000), st.integers(1, 9000))
def test_a_range_and_the_middle_of_its_tokens(counts: dict[int, int], a: int, b: int) -> None:
    least, most = min(a, b), max(a, b)
    there = {n: count for n, count in counts.items() if least <= n <= most}
    found = traffic.of(counts.items()).between(least, most)
    if found is None:
        assert not there
        return
    assert pairs(found) == there
    tokens = [length for length in sorted(there) for _ in range(there[length] * length)]
    assert found.median_of_tokens() == tokens[(len(tokens) + 1) // 2 - 1]


@pytest.mark.parametrize("name", mixes.LENGTHS)
def test_a_declared_mix_has_its_lengths(name: str) -> None:
    expected = {n: k / len(mixes.LENGTHS[name]) for n, k in Counter(mixes.LENGTHS[name]).items()}
    assert pairs(traffic.declared(name)) == pytest.approx(expected)


def test_shares_are_of_the_texts() -> None:
    found = traffic.declared(" queries=3, long ")
    assert found.counts.sum() == pytest.approx(4)
    assert found.over(1000) == pytest.approx(1 / 4)


def test_the_default_has_as_many_queries_as_passages_and_long_texts_for_as_many_tokens() -> None:
    found = traffic.declared()
    short, middle, long = (found.between(*ends) for ends in ((1, 64), (65, 512), (513, 8192)))
    assert short
    assert middle
    assert long
    assert short.counts.sum() == pytest.approx(middle.counts.sum())
    tokens = [(part.counts * part.lengths).sum() for part in (middle, long)]
    assert 0.7 < tokens[0] / tokens[1] < 1.4


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("", "no mix ''; there are queries, passages, mixed, long"),
        ("queries,,long", "no mix ''"),
        ("query", "no mix 'query'; there are queries"),
        ("queries=x", "the share of queries is 'x', expected a number, as in queries=3"),
        ("queries=", "the share of queries is ''"),
        ("queries=0", "the share of queries is '0'"),
        ("queries=-1,long", "the share of queries is '-1'"),
        ("long=nan", "the share of long is 'nan'"),
        ("long=inf", "the share of long is 'inf'"),
    ],
)
def test_what_is_no_mix(mix: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        traffic.declared(mix)
