"""m3rt's own requests, against the direct result."""

from __future__ import annotations

import httpx
import numpy as np

from tests.served import Served

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", ""]


def test_all_heads_in_one_answer(served: Served) -> None:
    direct = served.model.encode(TEXTS)
    found = httpx.post(f"{served.url}/v1/m3/embed", json={"inputs": TEXTS}).raise_for_status()
    data = found.json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3]
    for row, item in enumerate(data):
        assert direct.dense is not None
        np.testing.assert_array_equal(np.float32(item["dense"]), direct.dense[row])
