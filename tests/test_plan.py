"""Batches: every text once, within the limits, longest first."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt.plan import batches
from m3rt.types import Batch, Limits, Ragged, ragged

requests = st.lists(st.integers(2, 40), max_size=40).map(
    lambda lengths: ragged([np.full(n, i, np.int32) for i, n in enumerate(lengths)], np.int32)
)
widths = st.lists(st.integers(1, 60), max_size=4, unique=True).map(lambda w: tuple(sorted(w)))
limits = st.builds(
    Limits,
    max_tokens=st.integers(1, 120),
    max_length=st.just(64),
    pads=st.booleans(),
    widths=widths,
    slack=st.sampled_from([math.inf, 2.0, 1.2, 1.0]),
)
stable = settings(derandomize=True, deadline=None)


def cost(batch: Batch, limits: Limits) -> int:
    return len(batch.rows) * batch.width if limits.pads else len(batch.tokens.values)


@stable
@given(requests, limits)
def test_every_text_runs_once_with_its_own_ids(request: Ragged[np.int32], limits: Limits) -> None:
    found = list(batches(request, limits))
    assert sorted(row for batch in found for row in batch.rows.tolist()) == [*range(len(request))]
    for batch in found:
        for i, row in enumerate(batch.rows):
            assert batch.tokens[i].tolist() == request[row].tolist()


@stable
@given(requests, limits)
def test_the_longest_come_first_and_equals_keep_their_order(
    request: Ragged[np.int32], limits: Limits
) -> None:
    order = [row for batch in batches(request, limits) for row in batch.rows.tolist()]
    assert order == sorted(range(len(request)), key=lambda row: -len(request[row]))


@stable
@given(requests, limits)
def test_batches_are_full_and_within_the_limit(request: Ragged[np.int32], limits: Limits) -> None:
    found = list(batches(request, limits))
    for batch in found:
        assert cost(batch, limits) <= limits.max_tokens or len(batch.rows) == 1
    for batch, after in itertools.pairwise(found):
        one_more = batch.width if limits.pads else len(after.tokens[0])
        too_many = cost(batch, limits) + one_more > limits.max_tokens
        tokens = len(batch.tokens.values) + len(after.tokens[0])
        too_empty = (len(batch.rows) + 1) * batch.width > limits.slack * tokens
        assert too_many or too_empty


@stable
@given(requests, limits)
def test_rectangles_are_as_full_as_they_must_be(request: Ragged[np.int32], limits: Limits) -> None:
    for batch in batches(request, limits):
        places = len(batch.rows) * batch.width
        assert places <= limits.slack * len(batch.tokens.values) or len(batch.rows) == 1


@stable
@given(requests, limits)
def test_the_width_is_the_least_that_fits(request: Ragged[np.int32], limits: Limits) -> None:
    for batch in batches(request, limits):
        longest = int(batch.tokens.lengths.max())
        fitting = [width for width in limits.widths if width >= longest]
        assert batch.width == (fitting[0] if fitting else longest)


def test_a_text_longer_than_the_limit_runs_alone() -> None:
    request = ragged([np.zeros(n, np.int32) for n in (3, 30, 4, 31, 3)], np.int32)
    found = batches(request, Limits(max_tokens=10, max_length=64, pads=False))
    assert [batch.rows.tolist() for batch in found] == [[3], [1], [2, 0, 4]]
