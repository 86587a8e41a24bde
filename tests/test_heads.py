"""From token weights and vectors to embeddings, on numbers small enough to check by eye.

That whole requests end as FlagEmbedding ends them is in test_properties.
"""

from __future__ import annotations

import numpy as np
import pytest

from m3rt import EngineError
from m3rt.heads import finish, lexical, merge
from m3rt.types import Batch, Embeddings, Floats, Heads, Raw, Tokens, ragged

UNSCORED = (0, 1, 2, 3)  # <s> <pad> </s> <unk>
MASK = 250001


def packed(texts: list[list[int]], rows: list[int] | None = None) -> Batch:
    tokens = ragged([np.array(ids, np.int32) for ids in texts], np.int32)
    places = np.array(range(len(texts)) if rows is None else rows, np.int64)
    return Batch(tokens, places, max(map(len, texts)))


def weigh(ids: list[int], weights: list[float]) -> dict[int, float]:
    return lexical(packed([ids]).tokens, np.array(weights, np.float32), UNSCORED)[0]


def outputs(batch: Batch) -> Raw:
    """Values that tell the text's number in the request and the token's place in the text."""
    colbert = [
        np.stack([np.full(t, row), np.arange(t)], axis=1).astype(np.float32)
        for row, t in zip(batch.rows, batch.tokens.lengths, strict=True)
    ]
    return Raw(
        dense=np.stack([batch.rows, batch.rows], axis=1).astype(np.float32),
        weights=1 + np.concatenate(colbert).sum(axis=1),
        colbert=colbert,
    )


def test_the_greatest_weight_of_equal_ids_stays() -> None:
    assert weigh([0, 7, 5, 7, 7, 2], [9, 0.25, 0.5, 1, 0.75, 9]) == {5: 0.5, 7: 1.0}


def test_only_weights_above_zero_stay() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    assert weigh([0, 5, 6, 7, 8, 2], [1, 0, tiny, -0.0, 0, 1]) == {6: tiny}


def test_special_tokens_have_no_weight_but_mask_has() -> None:
    assert weigh([0, 1, 3, MASK, 2, 0, 2], [1, 1, 1, 0.5, 1, 1, 1]) == {MASK: 0.5}


def test_ids_ascend_in_each_text() -> None:
    found = lexical(
        packed([[0, 9, 4, 9, 2], [0, 2], [0, 4, 2]]).tokens,
        np.array([1, 0.5, 0.25, 0.75, 1, 1, 1, 1, 0.125, 1], np.float32),
        UNSCORED,
    )
    assert [list(found[i].items()) for i in range(3)] == [[(4, 0.25), (9, 0.75)], [], [(4, 0.125)]]


def test_the_first_colbert_row_goes_and_the_closing_one_stays() -> None:
    batch = packed([[0, 5, 6, 2], [0, 2]])
    raw = outputs(batch)
    found = finish(batch, raw, UNSCORED).colbert
    assert raw.colbert is not None
    assert found is not None
    for rows, expected in zip(found, raw.colbert, strict=True):
        assert rows.tolist() == expected[1:].tolist()
        assert np.shares_memory(rows, expected)  # views: ColBERT is too large to copy


def test_heads_not_run_stay_none() -> None:
    batch = packed([[0, 5, 2]])
    raw = outputs(batch)
    for head, only in (
        ("dense", Raw(dense=raw.dense)),
        ("sparse", Raw(weights=raw.weights)),
        ("colbert", Raw(colbert=raw.colbert)),
    ):
        found = finish(batch, only, UNSCORED)
        assert [name for name in Heads.ALL.names if getattr(found, name) is not None] == [head]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head", Heads.ALL.names)
def test_nan_and_inf_are_refused_with_head_and_texts(head: str, value: float) -> None:
    batch = packed([[0, 5, 2], [0, 2], [0, 6, 7, 2]], rows=[12, 40, 3])
    raw = outputs(batch)
    assert raw.dense is not None
    assert raw.weights is not None
    assert raw.colbert is not None
    bad: dict[str, list[Floats]] = {  # an element of texts 12 and 3, first and last of the batch
        "dense": [raw.dense[0], raw.dense[2]],
        "sparse": [raw.weights[2:3], raw.weights[5:6]],
        "colbert": [raw.colbert[0][2], raw.colbert[2][3]],
    }
    for place in bad[head]:
        place[-1] = value
    with pytest.raises(EngineError, match=rf"the {head} output .* 2 text\(s\): 3, 12\. "):
        finish(batch, raw, UNSCORED)


def test_the_first_five_bad_texts_are_named() -> None:
    batch = packed([[0, 2]] * 7, rows=[6, 5, 4, 3, 2, 1, 0])
    raw = Raw(dense=np.full((7, 2), np.nan, np.float32))
    with pytest.raises(EngineError, match=r"for 7 text\(s\): 0, 1, 2, 3, 4\. "):
        finish(batch, raw, UNSCORED)


def test_batches_merge_into_the_order_of_the_request() -> None:
    texts = [[0, 5, 2], [0, 6, 6, 2], [0, 2], [0, 7, 8, 9, 2]]
    whole = packed(texts)
    expected = finish(whole, outputs(whole), UNSCORED)
    batches = [packed([texts[i] for i in rows], rows) for rows in ([3, 1], [0], [2])]
    parts = [(batch, finish(batch, outputs(batch), UNSCORED)) for batch in batches]
    truncated = np.array([False, True, False, True])
    found = merge(Tokens(whole.tokens, truncated), parts, empty=expected)
    assert listed(found) == listed(expected)
    assert found.n_tokens.tolist() == [3, 4, 2, 5]
    assert found.truncated is truncated


def test_nothing_merges_into_the_empty_answer() -> None:
    empty = finish(packed([[0, 2]]), Raw(), UNSCORED)
    assert merge(Tokens(packed([[0, 2]]).tokens, empty.truncated), [], empty) is empty


def listed(found: Embeddings) -> object:
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    sparse = [found.sparse[i] for i in range(len(found))]
    return found.dense.tolist(), sparse, [rows.tolist() for rows in found.colbert]
