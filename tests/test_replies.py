"""Answers as bytes: however large, the same JSON as in one piece."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt.server.http import replies

RNG = np.random.default_rng(0)


def array(*shape: int, dtype: type[np.generic] = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


LARGE = [
    array(300, 1000),
    array(200_001),
    {"data": [{"index": n, "rows": array(50, 64)} for n in range(100)], "model": "m"},
    {"one": array(1000, 128), "empty": [], "none": None, "text": "é" * 100},
    [array(10), array(100_000), array(3), []],
    {"a": {"b": {"c": [array(70_000), {"d": array(2, 40_000)}]}}},
    [["x" * 3_000_000], "y"],
    (array(80_000), 1),
    array(900, 900)[::2, ::3].T,
    {"ids": np.arange(100_000, dtype=np.int32), "f16": array(300, 300, dtype=np.float16)},
    [{"index": n, "value": 0.5} for n in range(100_000)],
    array(100, 1000, 3),
]


@pytest.mark.parametrize("content", LARGE, ids=range(len(LARGE)))
def test_pieces_are_the_whole(content: Any) -> None:
    pieces: list[bytes] = []
    replies.write(content, pieces)
    assert len(pieces) > 1
    whole = orjson.dumps(content, default=replies.plain, option=replies.OPTIONS)
    assert b"".join(pieces) == whole == replies.dumps(content)


def test_numbers_come_back_as_they_were() -> None:
    rows = array(200, 1024)
    np.testing.assert_array_equal(np.float32(json.loads(replies.dumps(rows))), rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_content_in_small_pieces(content: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replies, "PIECE", 2)
        assert json.loads(replies.dumps(content)) == content
