"""How many layers are raised; how rankings, tolerances and harm are compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3rt import agreement, harm, recovery, tolerances
from m3rt.certificate import failures
from m3rt.errors import InputError
from m3rt.tolerances import Tolerances

FLOATS = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@given(st.integers(1, 150).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n + 1))))
def test_few_layers_in_few_builds(case: tuple[int, int]) -> None:
    count, needed = case
    tries: list[int] = []

    def passes(some: int) -> bool:
        tries.append(some)
        return some >= needed

    found = recovery.search(count, passes)
    assert len(tries) == len(set(tries)) <= 12
    assert all(1 <= some <= count for some in tries)
    if needed > count:
        assert found is None
        assert max(tries) == count
    else:
        assert found is not None
        assert needed <= found <= needed + max(0, found // 8 - 1)
        assert needed <= found <= (needed if needed <= 8 else needed * 9 // 8 + 1)


@given(FLOATS, st.integers(0, 5))
def test_a_ranking_agrees_with_itself(values: list[int], k: int) -> None:
    scores = np.array(values, np.float32)
    overlap = agreement.overlap(scores, scores, k)
    assert overlap == (None if k == 0 or not (scores > 0).any() else 1)
    assert agreement.correlation(scores, scores) == pytest.approx(1)
    if len(set(values)) > 1:
        assert agreement.correlation(scores, -scores) == pytest.approx(-1)
        assert agreement.correlation(scores, np.zeros_like(scores)) == 0


@given(FLOATS)
def test_ranks_are_the_means_of_ties(values: list[int]) -> None:
    ranks = agreement.ranks(np.array(values, np.float32))
    for value, rank in zip(values, ranks, strict=True):
        below, same = sum(v < value for v in values), values.count(value)
        assert rank == below + (same + 1) / 2


def test_overlap_counts_only_what_is_found() -> None:
    expected = np.array([0.9, 0.5, 0, 0, 0], np.float32)
    found = np.array([0.1, 0, 0.2, 0, 0], np.float32)
    assert agreement.overlap(expected, found, 10) == 0.5
    assert agreement.overlap(expected, found, 1) == 0


def test_tolerances_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    file.write_text(json.dumps({"dense_cosine": 0.9, "weight_error": 1}))
    found = tolerances.parse([str(file), "dense_cosine=0.95", "ndcg_loss=1.5%"])
    assert found == {"dense_cosine": 0.95, "weight_error": 1, "ndcg_loss": 0.015}
    limits = tolerances.of("int8", found)
    assert (limits.dense_cosine, limits.weight_error) == (0.95, 1.0)
    assert limits.colbert_cosine == tolerances.TOLERANCES["int8"].colbert_cosine
    assert tolerances.of("fp32") == Tolerances()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "is not JSON"),
        ("[1]", "holds list, expected tolerances by name"),
        ('{"cosine": 1}', "no tolerance 'cosine'; there are dense_cosine, colbert_cosine"),
        ('{"dense_cosine": "high"}', "is 'high', expected a number"),
        ('{"dense_cosine": true}', "is True, expected a number"),
        ('{"dense_cosine": NaN}', "is nan, expected 0 or more"),
        ('{"dense_cosine": -1}', "is -1, expected 0 or more"),
    ],
)
def test_bad_files_of_tolerances(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        tolerances.parse([str(file)])


def test_what_fails() -> None:
    limits = tolerances.of("int8")
    nan = float("nan")
    found = failures(
        {
            "dense": {"cosine_min": nan, "cosine_mean": 0.1, "top10_overlap": 0.9},
            "sparse": {"weight_error_max": 0.2, "keys_differ": 1},
            "all": {"rank_correlation": 0.5},
        },
        limits,
    )
    assert [(f.head, f.figure) for f in found] == [
        ("dense", "cosine_min"),
        ("sparse", "keys_differ"),
        ("all", "rank_correlation"),
    ]
    assert str(found[1]) == "sparse keys_differ is 1, expected at most 0"
    assert str(found[2]) == "all rank_correlation is 0.5, expected at least 0.95"


def test_the_worst_layers_come_first() -> None:
    found = {
        "a": {"dense": 1.0, "sparse": 6.0},
        "b": {"dense": 3.0, "sparse": 0.0},
        "c": {"dense": 0.0, "sparse": 4.0},
        "d": {"dense": -1e-9, "sparse": 0.0},  # a rounding below zero
    }
    assert harm.order(found, ["dense"])[:2] == ("b", "a")
    assert harm.order(found, ["sparse"])[:2] == ("a", "c")
    assert harm.order(found, ["dense", "sparse"]) == ("a", "b", "c", "d")
    assert harm.shares(found, "dense") == {"b": 0.75, "a": 0.25, "c": 0, "d": 0}
    assert harm.shares({"a": {"dense": 0.0}}, "dense") == {}
    assert harm.shares(found, "colbert") == {}
    assert harm.worst(found, ["colbert"]) == {}
    assert harm.told(harm.worst({"x": {"dense": 1.0}}, ["dense"])) == (
        "most of the harm to dense: x 100%"
    )
    assert harm.told({}) == ""
    flat = {f"site {i}": {"dense": 1.0} for i in range(200)}  # each does half a percent
    assert list(harm.worst(flat, ["dense"])["dense"]) == ["site 0"]
