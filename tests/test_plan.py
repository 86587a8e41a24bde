"""Batches: every text once, within the limits, longest first."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt.plan import batches
from m3rt.types import Batch, Limits, Ragged, offsets, ragged

requests = st.lists(st.integers(2, 40), max_size=40).map(
    lambda lengths: ragged([np.full(n, i, np.int32) for i, n in enumerate(lengths)], np.int32)
)


@st.composite
def drawn_limits(draw: st.DrawFn) -> Limits:
    found = sorted(draw(st.lists(st.integers(1, 60), max_size=4, unique=True)))
    rows = st.lists(st.integers(1, 9), min_size=len(found), max_size=len(found))
    return Limits(
        max_tokens=draw(st.integers(1, 120)),
        max_length=64,
        pads=draw(st.booleans()),
        widths=tuple(found),
        rows=tuple(draw(st.just([]) | rows)),
        slack=draw(st.sampled_from([math.inf, 2.0, 1.2, 1.0])),
    )


limits = drawn_limits()
stable = settings(derandomize=True, deadline=None)


def cost(batch: Batch, limits: Limits) -> int:
    return len(batch.rows) * batch.width if limits.pads else len(batch.tokens.values)


def alone(length: int, limits: Limits) -> int:
    """The width of a text in a batch of its own."""
    return next((width for width in limits.widths if width >= length), length)


def needed(batch: Batch, limits: Limits) -> int:
    """Places that the texts of a batch would take alone."""
    return sum(alone(length, limits) for length in batch.tokens.lengths.tolist())


def most(batch: Batch, limits: Limits) -> float:
    """The most texts of a batch of this width."""
    return dict(zip(limits.widths, limits.rows, strict=False)).get(batch.width, math.inf)


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
        places = needed(batch, limits) + alone(len(after.tokens[0]), limits)
        too_empty = (len(batch.rows) + 1) * batch.width > limits.slack * places
        assert too_many or too_empty or len(batch.rows) == most(batch, limits)


@stable
@given(requests, limits)
def test_rectangles_are_as_full_as_they_must_be(request: Ragged[np.int32], limits: Limits) -> None:
    for batch in batches(request, limits):
        places = len(batch.rows) * batch.width
        assert places <= limits.slack * needed(batch, limits) or len(batch.rows) == 1


@stable
@given(requests, limits)
def test_the_width_is_the_least_that_fits(request: Ragged[np.int32], limits: Limits) -> None:
    for batch in batches(request, limits):
        assert batch.width == alone(int(batch.tokens.lengths.max()), limits)


@stable
@given(requests, limits, st.integers(1, 10**6))
def test_no_batch_has_more_texts_than_its_width_allows(
    request: Ragged[np.int32], limits: Limits, max_tokens: int
) -> None:
    for batch in batches(request, dataclasses.replace(limits, max_tokens=max_tokens)):
        assert len(batch.rows) <= most(batch, limits)


def test_a_text_longer_than_the_limit_runs_alone() -> None:
    request = ragged([np.zeros(n, np.int32) for n in (3, 30, 4, 31, 3)], np.int32)
    found = batches(request, Limits(max_tokens=10, max_length=64, pads=False))
    assert [batch.rows.tolist() for batch in found] == [[3], [1], [2, 0, 4]]


def test_a_cap_on_texts_is_that_of_the_batch_s_own_width() -> None:
    request = ragged([np.zeros(n, np.int32) for n in (3, 30, 4, 31, 3, 8, 9)], np.int32)
    limits = Limits(10**6, max_length=32, pads=True, widths=(8, 16, 32), rows=(3, 2, 1))
    found = [(batch.width, batch.rows.tolist()) for batch in batches(request, limits)]
    assert found == [(32, [3]), (32, [1]), (16, [6, 5]), (8, [2, 0, 4])]


def test_short_texts_run_together_although_the_least_width_is_mostly_padding() -> None:
    request = ragged([np.zeros(n, np.int32) for n in (3, 8, 2, 2, 2)], np.int32)
    limits = Limits(64, max_length=32, pads=True, widths=(8, 16, 32), slack=1.0)
    assert [batch.rows.tolist() for batch in batches(request, limits)] == [[1, 0, 2, 3, 4]]


def test_many_widths_of_many_texts() -> None:
    lengths = np.random.default_rng(0).integers(2, 8193, 3000)
    request = Ragged(np.zeros(lengths.sum(), np.int32), offsets(lengths))
    widths = tuple(range(8, 8193, 8))
    rows = tuple(max(1, 16384 // width) for width in widths)
    limits = Limits(16384, max_length=8192, pads=True, widths=widths, rows=rows)
    found = list(batches(request, limits))
    assert sum(len(batch.rows) for batch in found) == 3000
    assert all(batch.width == -(-int(batch.tokens.lengths.max()) // 8) * 8 for batch in found)
