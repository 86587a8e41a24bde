"""Optimisation profiles: which are chosen, which are accepted, and what they tell the planner."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rt import traffic
from m3rt.engines.trt import profiles
from m3rt.engines.trt.profiles import (
    MOST_TEXTS,
    Profile,
    budgeted,
    candidates,
    check,
    chosen,
    limits,
    parse,
    predicted,
    render,
)
from m3rt.engines.trt.shaping import Shaping, expect_profiles, parse_target, resolve
from m3rt.errors import InputError
from m3rt.plan import batches
from m3rt.traffic import Traffic
from m3rt.types import Ragged, offsets

ROOT = Path(__file__).parents[1]
stable = settings(derandomize=True, deadline=None)
traffics = st.dictionaries(
    st.integers(1, 10_000), st.floats(0.1, 1e6), min_size=1, max_size=12
).map(lambda counts: traffic.of(counts.items()))
lengths = st.integers(1, 8192) | st.sampled_from([8, 64, 65, 512, 8192])
budgets = st.integers(1, 70_000) | st.just(16384)
counts = st.integers(1, 16)
most_texts = st.integers(1, 300) | st.just(MOST_TEXTS)
GIVEN = "1x1:16x64:64x128,1x129:8x256:32x512"


@stable
@given(traffics, lengths, budgets, counts, most_texts)
def test_chosen_profiles_hold_every_length_once(
    mix: Traffic, max_length: int, max_tokens: int, count: int, max_texts: int
) -> None:
    found = budgeted(mix, max_length, max_tokens, count, max_texts)
    assert 1 <= len(found) <= count
    assert (found[0].least, found[-1].most[1]) == ((1, 1), max_length)
    for one, after in itertools.pairwise(found):
        assert after.least == (1, one.most[1] + 1)
        assert one.most[1] % 8 == 0
    check(found, max_length)


@stable
@given(traffics, lengths, budgets, counts, most_texts)
def test_chosen_profiles_keep_to_the_budget_and_use_it(
    mix: Traffic, max_length: int, max_tokens: int, count: int, max_texts: int
) -> None:
    for one in budgeted(mix, max_length, max_tokens, count, max_texts):
        for texts, width in (one.best, one.most):
            assert texts == 1 or texts * width <= max_tokens
        texts, width = one.most
        assert texts == max_texts or (texts + 1) * width > max_tokens
        assert one.holds(*one.best)
        assert one.best[0] == texts or (one.best[0] + 1) * one.best[1] > max_tokens
        assert one.best[1] % 8 == 0 or one.best[1] == width


@stable
@given(traffics, lengths, budgets, counts)
def test_they_are_the_best_there_are(
    mix: Traffic, max_length: int, max_tokens: int, count: int
) -> None:
    """By trying every choice: the cheapest, and none is cheaper by the second measure."""
    mix = mix.upto(max_length)
    ends = candidates(max_length, max_tokens, MOST_TEXTS)
    ends, count = (*ends[:6], *ends[-2:]), min(count, 5)
    ends = tuple(sorted(set(ends)))

    def costs(choice: tuple[int, ...]) -> tuple[Fraction, int]:
        def pays(length: int) -> int:
            return min(next(end for end in choice if end >= length), max_tokens)

        known = zip(mix.lengths.tolist(), mix.counts.tolist(), strict=True)
        return sum(Fraction(n) * pays(length) for length, n in known) + Fraction(0), sum(
            map(pays, ends)
        )

    found = chosen(mix, ends, max_tokens, count)
    size = min(count, len(ends))
    choices = [(*c, ends[-1]) for c in itertools.combinations(ends[:-1], size - 1)]
    assert found in choices
    assert costs(found) == min(map(costs, choices))


@stable
@given(traffics, lengths, budgets)
def test_another_profile_never_costs_more(mix: Traffic, max_length: int, max_tokens: int) -> None:
    mix = mix.upto(max_length)

    def cost(count: int) -> Fraction:
        ends = [p.most[1] for p in budgeted(mix, max_length, max_tokens, count)]
        known = zip(mix.lengths.tolist(), mix.counts.tolist(), strict=True)
        return sum(
            (Fraction(n) * min(next(e for e in ends if e >= length), max_tokens))
            for length, n in known
        ) + Fraction(0)

    found = [cost(count) for count in range(1, 8)]
    assert found == sorted(found, reverse=True)


def test_the_ends_follow_the_traffic() -> None:
    mix = traffic.of({100: 10.0, 700: 10.0, 3000: 1.0}.items())
    found = [profile.most[1] for profile in budgeted(mix, 8192, 16384, 4)]
    assert found == [128, 768, 3072, 8192]
    assert [p.best for p in budgeted(mix, 8192, 16384, 4)][:3] == [(128, 104), (21, 704), (5, 3000)]


def test_the_document_shows_the_default_profiles_and_their_memory() -> None:
    shown = (ROOT / "docs" / "profiles.md").read_text("utf-8")
    for profile in (found := resolve(Shaping(), 8192)):
        best = "x".join(map(str, profile.best))
        row = f"| {profile.least[1]} to {profile.most[1]} | {profile.most[0]} | {best} |"
        assert row in shown
    assert str(found[1]) == "1x65:32x360:32x512"
    assert f"    {found[1]}\n" in shown
    for tokens in (4096, 8192, 16384, 32768):
        profile = Profile((1, 1), (1, 1), (1, tokens))
        half, int8 = (predicted(profile, 1024, 4096, 1024, name) / 1e6 for name in ("fp16", "int8"))
        assert f"| {tokens} | {half:.0f} MB | {int8:.0f} MB |" in shown
    assert f"`{traffic.DEFAULT}`" in shown


@pytest.mark.parametrize(
    ("max_length", "ends"),
    [(3, [3]), (8, [8]), (64, [64]), (100, [64, 96, 100]), (128, [64, 96, 128])],
)
def test_a_short_model_has_fewer(max_length: int, ends: list[int]) -> None:
    assert [profile.most[1] for profile in resolve(Shaping(), max_length)] == ends


def test_what_is_best_is_where_the_tokens_are() -> None:
    """Ninety texts of 10 tokens are less work than ten of 200."""
    (found,) = budgeted(traffic.of([(10, 90), (200, 10)]), 256, 16384, 1)
    assert found.best == (64, 200)


def test_a_range_without_traffic_is_best_in_the_middle() -> None:
    found = budgeted(traffic.of([(10, 1)]), 128, 16384, 2)
    assert render(found) == "1x1:256x16:256x64,1x65:128x96:128x128"


@st.composite
def drawn_profiles(draw: st.DrawFn) -> Profile:
    texts = sorted(draw(st.tuples(*[st.integers(1, 64)] * 3)))
    widths = sorted(draw(st.tuples(*[st.integers(1, 8000)] * 3)))
    return Profile(*zip(texts, widths, strict=True))


@stable
@given(st.lists(drawn_profiles(), min_size=1, max_size=5).map(tuple))
def test_what_is_written_is_read_again(some: tuple[Profile, ...]) -> None:
    assert parse(render(some)) == some
    assert eval(repr(some)) == some


def test_the_syntax() -> None:
    found = parse(GIVEN.replace(",", " , "))
    assert found == (
        Profile((1, 1), (16, 64), (64, 128)),
        Profile((1, 129), (8, 256), (32, 512)),
    )
    assert str(found[0]) == "1x1:16x64:64x128"
    check(found, 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found '', expected LEAST:BEST:MOST"),
        ("1x1:16x64", "found '1x1:16x64', expected LEAST:BEST:MOST"),
        (f"{GIVEN},", "found '', expected LEAST"),
        ("1x1:16x64:64x", "found '1x1:16x64:64x', expected LEAST"),
        ("1x1:16x64:64x128:9x9", "expected LEAST:BEST:MOST"),
        ("-1x1:16x64:64x128", "expected LEAST:BEST:MOST"),
        ("1x1:16x64:64x99999999", "expected LEAST:BEST:MOST"),
        ("1x1:16x64:64x１28", "expected LEAST:BEST:MOST"),
        ("0x1:16x64:64x128", "sizes of 0x1:16x64:64x128 do not ascend"),
        ("1x0:16x64:64x128", "sizes of 1x0:16x64:64x128 do not ascend"),
        ("1x1:65x64:64x128", "do not ascend"),
        ("1x1:16x129:64x128", "do not ascend"),
        ("17x1:16x64:64x128", "do not ascend"),
        ("1x65:16x64:64x128", "do not ascend"),
        ("1x1:1x1:65x8192", "goes up to 532480 tokens, expected at most 524287"),
    ],
)
def test_what_is_no_profile(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x1:1x8:1x65", r"1x1:1x8:1x65 goes up to texts of 65 tokens, expected at most 64"),
        ("1x2:1x8:4x64", r"no profile holds 1x1; expected every length from 1 to 64"),
        ("1x1:1x8:4x63", r"no profile holds 1x64;"),
        ("1x1:1x8:4x31,1x33:1x40:2x64", r"no profile holds 1x32;"),
        ("2x1:2x8:4x64", r"no profile holds 1x1;"),
        ("1x1:1x8:4x64,6x9:6x9:8x16", r"no profile holds 5x9;"),
        ("1x1:1x8:1x64,3x9:3x9:4x16,2x9:2x9:2x15", r"no profile holds 2x16;"),
    ],
)
def test_profiles_that_do_not_run_every_text(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(parse(text), 64)


def test_none_at_all_and_bad_ones_from_code() -> None:
    with pytest.raises(InputError, match="there are no profiles"):
        check((), 64)
    with pytest.raises(InputError, match="do not ascend"):
        check((Profile((1, 1), (9, 8), (8, 64)),), 64)


@stable
@given(st.lists(drawn_profiles().filter(lambda p: p.most[1] < 100), max_size=4), st.data())
def test_what_check_accepts_runs_every_shape(some: list[Profile], data: st.DataObject) -> None:
    """A full profile is put beside drawn ones of more texts, which may leave a gap or not."""
    max_length = data.draw(st.integers(100, 120))
    texts = data.draw(st.integers(1, 64))
    some.append(Profile((1, 1), (1, 1), (texts, max_length)))

    def holes() -> list[tuple[int, int]]:
        return [
            (n, width)
            for width in range(1, max_length + 1)
            for n in range(1, max(p.most[0] for p in profiles.at(some, width)) + 1)
            if not any(profile.holds(n, width) for profile in some)
        ]

    if first := holes():
        with pytest.raises(InputError, match=f"no profile holds {first[0][0]}x{first[0][1]};"):
            check(some, max_length)
    else:
        check(some, max_length)


@stable
@given(traffics, st.integers(8, 600), budgets, counts, st.lists(st.integers(2, 600), max_size=60))
def test_every_batch_fits_a_profile(
    mix: Traffic, max_length: int, max_tokens: int, count: int, texts: list[int]
) -> None:
    built = budgeted(mix, max_length, max_tokens, count)
    cut = np.minimum(np.array(texts, np.int64), max_length)
    request = Ragged(np.zeros(cut.sum(), np.int32), offsets(cut))
    allowed = limits(built, max_length)
    for wide in (allowed, dataclasses.replace(allowed, max_tokens=10**9)):
        for batch in batches(request, wide):
            assert any(profile.holds(len(batch.rows), batch.width) for profile in built)


def test_limits() -> None:
    some = (*parse(GIVEN), Profile((1, 121), (1, 200), (33, 203)), *parse("1x513:1x600:2x1003"))
    found = limits(some, 1003, parallel=2)
    assert found.widths == (*range(8, 1001, 8), 1003)
    rows = dict(zip(found.widths, found.rows, strict=True))
    assert [rows[width] for width in (8, 120, 128, 136, 200, 208, 512, 520, 1003)] == [
        *(64, 64, 64, 33, 33, 32, 32, 2, 2)
    ]
    assert (found.max_tokens, found.max_length, found.pads, found.parallel) == (
        16384,
        1003,
        True,
        2,
    )
    assert limits(parse("1x1:1x5:2x5"), 5).widths == (5,)
    assert limits(parse(GIVEN), 8192) == limits(parse(GIVEN), 512)


def test_a_long_text_takes_few_short_ones_with_it() -> None:
    built = resolve(Shaping(), 8192)
    request = offsets([8192, *[20] * 100])
    tokens = Ragged(np.zeros(request[-1], np.int32), request)
    assert [len(b.rows) for b in batches(tokens, limits(built, 8192))] == [1, 100]


@pytest.mark.parametrize(
    ("hidden", "ffn", "precision", "reported", "error"),
    [
        (128, 512, "fp16", 46_202_880, 0),
        (1024, 4096, "fp16", 369e6, 0.002),
        (1024, 4096, "bf16", 369e6, 0.002),
        (1024, 4096, "int8", 503e6, 0.002),
    ],
)
def test_memory_is_predicted_as_tensorrt_rtx_1_7_reported_it(
    hidden: int, ffn: int, precision: str, reported: float, error: float
) -> None:
    profile = Profile((1, 1), (2, 8192), (2, 8192))
    found = predicted(profile, hidden, ffn, hidden, precision)
    assert found == pytest.approx(reported, rel=error)
    assert predicted(Profile((1, 1), (1, 1), (1, 8192)), hidden, ffn, None, precision) * 2 == found


def test_a_wide_colbert_head_takes_memory() -> None:
    profile = Profile((1, 1), (1, 8), (1, 8))
    assert predicted(profile, 8, 8, 100, "fp16") > predicted(profile, 8, 8, 8, "fp16")


# shaping


@pytest.mark.parametrize(
    ("shaping", "message"),
    [
        (Shaping(max_length=513), r"max_length is 513, expected 8 to 512 \(the model's\)"),
        (Shaping(max_length=7), "max_length is 7, expected 8 to 512"),
        (Shaping(max_tokens=0), "max_tokens is 0, expected 1 to 524287"),
        (Shaping(max_tokens=524288), "max_tokens is 524288, expected 1 to 524287"),
        (Shaping(count=0), "the number of profiles is 0, expected 1 to 16"),
        (Shaping(count=17), "the number of profiles is 17, expected 1 to 16"),
        (Shaping(profiles=parse(GIVEN), max_length=511), "expected at most 511, the longest text"),
        (Shaping(profiles=parse(GIVEN), max_tokens=1024), "so max_tokens has no meaning"),
        (Shaping(profiles=parse(GIVEN), count=2), "so the number of profiles has no meaning"),
        (
            Shaping(profiles=parse(GIVEN), traffic=traffic.declared()),
            "the profiles are given, so the traffic has no meaning: leave one out",
        ),
        (
            Shaping(profiles=parse("1x1:1x8:4x64")),
            "profiles end at 64 tokens, and the model takes 512: add .* pass --max-length 64",
        ),
        (Shaping(profiles=()), "there are no profiles"),
        (Shaping(profiles=parse(GIVEN) * 9), "18 profiles, expected at most 16"),
    ],
)
def test_shaping_that_contradicts_itself_or_the_model(shaping: Shaping, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(shaping, 512)


def test_shaping_is_resolved() -> None:
    assert resolve(Shaping(profiles=parse(GIVEN)), 512) == parse(GIVEN)
    short = parse("1x1:1x8:4x64")
    assert resolve(Shaping(profiles=short, max_length=64), 512) == short
    cut = resolve(Shaping(max_length=256, max_tokens=4096, count=2), 512)
    assert (len(cut), cut[-1].most) == (2, (16, 256))
    mix = traffic.declared("long")
    assert resolve(Shaping(traffic=mix), 8192) == budgeted(mix, 8192, 16384, 4)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("sm86", ("sm86",)),
        ("86", ("sm86",)),
        ("8.6", ("sm86",)),
        ("sm_86", ("sm86",)),
        ("SM86", ("sm86",)),
        ("sm120, 8.9,sm86,12.0", ("sm86", "sm89", "sm120")),
        ("121,75,80", ("sm75", "sm80", "sm121")),
    ],
)
def test_targets(text: str, target: tuple[str, ...]) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "sm86,", "8", "sm", "sm1234", "8.6.1", "ada", "sm90a", "086"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InputError, match=r"is no compute capability, expected one as sm86 or 8\.6"):
        parse_target(text)


def test_engines_without_profiles() -> None:
    expect_profiles("tensorrt", "--profiles")
    expect_profiles("tensorrt-rtx", "--profiles")
    with pytest.raises(InputError, match="openvino has no profiles: leave out --profiles"):
        expect_profiles("openvino", "--profiles")
