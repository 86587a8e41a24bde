"""Optimisation profiles: the shapes that a TensorRT engine is built for.

As text, a profile is ``least:best:most``, each as texts x tokens of the longest:
``1x1:16x64:64x128,1x129:8x256:32x512`` are two.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

from m3rt.engines.catalog import AHEAD
from m3rt.errors import InputError
from m3rt.traffic import Traffic
from m3rt.types import Limits

STEP = 8  # widths are whole multiples: tensor cores compute in such steps anyway
# More texts than that gain nothing: even short queries are some thousand tokens then.
MOST_TEXTS = 256
# A rectangle may take so many times what its texts take alone. The engine computes padding like
# any other token; but each batch costs launches, and short texts should not run one by one.
SLACK = 1.5
# Elements of a tensor are counted in 31 bits. The largest is ffn a token, 4096 in BGE-M3.
MOST_TOKENS = (1 << 31) // 4096 - 1

SYNTAX = "expected LEAST:BEST:MOST, each TEXTSxTOKENS, joined by commas: 1x1:16x64:64x128"
SHAPES = re.compile(":".join([r"([0-9]{1,7})x([0-9]{1,7})"] * 3))


@dataclass(frozen=True, slots=True)
class Profile:
    """Bounds of the shapes that one set of kernels runs, each as (texts, tokens of the longest)."""

    least: tuple[int, int]
    best: tuple[int, int]  # what the kernels are chosen for
    most: tuple[int, int]

    def __str__(self) -> str:
        return ":".join(f"{texts}x{width}" for texts, width in (self.least, self.best, self.most))

    def holds(self, texts: int, width: int) -> bool:
        """Whether it runs this shape."""
        return all(
            low <= size <= high
            for low, size, high in zip(self.least, (texts, width), self.most, strict=True)
        )


def budgeted(
    traffic: Traffic,
    max_length: int,
    max_tokens: int,
    count: int,
    max_texts: int = MOST_TEXTS,
) -> tuple[Profile, ...]:
    """Choose profiles that share the lengths among them, each with the same budget of tokens.

    A profile is a rectangle of shapes: it must take its most texts at its longest length, and the
    memory of that is kept for it. So with memory for max_tokens, a profile that goes up to ``hi``
    tokens takes ``max_tokens // hi`` texts. That is what the ends are chosen by. Short texts in a
    profile for long ones run in batches of few: the fixed cost of a batch, its launches, is shared
    by ``max_tokens // hi``, so a text pays in proportion to ``hi``. The ends are those for which
    the texts of the traffic pay least. Among equals, those for which texts of all lengths do.

    What kernels are best for is the length in the middle of the range's tokens, not of its texts:
    that is where the time goes. One profile may serve single queries and batches of them; then it
    is the batches that it is best for, as a single query takes little time with any kernel.

    Args:
        traffic: the lengths to choose for; longer texts count as of max_length.
        max_length: the longest text.
        max_tokens: most tokens of a batch, padding included; but a text longer than it runs alone.
        count: how many profiles; fewer where there are not so many ends worth having.
        max_texts: most texts of a batch.

    Returns:
        Profiles by length, which hold each length from 1 to max_length once.
    """
    traffic = traffic.upto(max_length)
    ends = chosen(traffic, candidates(max_length, max_tokens, max_texts), max_tokens, count)
    found = []
    for before, most in pairwise((0, *ends)):
        width = typical(traffic, before + 1, most)
        texts, best = (min(max_texts, max(1, max_tokens // size)) for size in (most, width))
        found.append(Profile((1, before + 1), (min(best, texts), width), (texts, most)))
    return tuple(found)


def candidates(max_length: int, max_tokens: int, max_texts: int) -> tuple[int, ...]:
    """Return the lengths where a profile may end: powers of two, halves between, and the last.

    All but the last are whole multiples of 8. Of the short ones, for which max_texts is the limit
    and not max_tokens, only the last is there: the others allow no more texts.
    """
    powers = [2**i for i in range(max_length.bit_length())]
    rounded = {-(-end // STEP) * STEP for power in powers for end in (power, power + power // 2)}
    ends = sorted({*(end for end in rounded if end < max_length), max_length})
    first = max((end for end in ends if end * max_texts <= max_tokens), default=0)
    return tuple(end for end in ends if end >= first)


def chosen(traffic: Traffic, ends: Sequence[int], max_tokens: int, count: int) -> tuple[int, ...]:
    """Return the ends for which the traffic pays least, by dynamic programming.

    A text pays the end of its profile, but at most max_tokens: it runs alone then, and no end
    changes that. In fractions, so that equal costs are equal on every machine.

    Args:
        traffic: the lengths, none of them after the last end.
        ends: those there are, ascending; the last is always chosen.
        max_tokens: of a batch.
        count: how many to choose, at most.
    """
    texts = [Fraction(0)] * len(ends)  # by the first end that takes them
    for length, number in zip(traffic.lengths.tolist(), traffic.counts.tolist(), strict=True):
        texts[bisect_left(ends, length)] += Fraction(number)
    upto = [Fraction(0), *accumulate(texts)]
    pays = [0, *(min(end, max_tokens) for end in ends)]
    # by how many of the ends are dealt with: what the traffic pays, what one text at each end
    # would, and the ends chosen
    best = {0: (Fraction(0), 0, tuple[int, ...]())}
    for _ in range(min(count, len(ends))):
        best = {
            i: min(
                (
                    cost + (upto[i] - upto[j]) * pays[i],
                    even + (i - j) * pays[i],
                    (*before, ends[i - 1]),
                )
                for j, (cost, even, before) in best.items()
                if j < i
            )
            for i in range(min(best) + 1, len(ends) + 1)
        }
    return best[len(ends)][2]


def typical(traffic: Traffic, least: int, most: int) -> int:
    """Return the width to choose kernels for; the middle of the range if it has no traffic."""
    there = traffic.between(least, most)
    length = there.median_of_tokens() if there else (least + most) // 2
    return min(most, -(-length // STEP) * STEP)


def parse(text: str) -> tuple[Profile, ...]:
    """Read profiles as the user writes them.

    Raises:
        InputError: it is not their syntax, or a profile's sizes do not ascend.
    """
    found = []
    for part in text.split(","):
        sizes = SHAPES.fullmatch(part.strip())
        if not sizes:
            raise InputError(f"found {part.strip()[:60]!r}, {SYNTAX}")
        a, b, c, d, e, f = map(int, sizes.groups())
        found.append(Profile((a, b), (c, d), (e, f)))
        ordered(found[-1])
    return tuple(found)


def render(profiles: Sequence[Profile]) -> str:
    """Write profiles as parse reads them."""
    return ",".join(map(str, profiles))


def ordered(profile: Profile) -> None:
    """Refuse a profile whose best is not between least and most, or that is too small or large."""
    if not (min(profile.least) >= 1 and profile.holds(*profile.best)):
        raise InputError(
            f"the sizes of {profile} do not ascend, expected 1 <= least <= best <= most, of the "
            "texts and of the tokens"
        )
    texts, width = profile.most
    if texts * width > MOST_TOKENS:
        raise InputError(
            f"{profile} goes up to {texts * width} tokens, expected at most {MOST_TOKENS} "
            "in a batch"
        )


def check(profiles: Sequence[Profile], max_length: int) -> None:
    """Refuse profiles that do not run every text.

    Profiles may overlap. But a text of each length from 1 to max_length must fit, alone and in any
    number up to the most that a profile takes at this length.

    Raises:
        InputError: the sizes of one do not ascend or it ends after max_length, or a shape is in
            none.
    """
    if not profiles:
        raise InputError(f"there are no profiles; {SYNTAX}")
    for profile in profiles:
        ordered(profile)
        if profile.most[1] > max_length:
            raise InputError(
                f"{profile} goes up to texts of {profile.most[1]} tokens, expected at most "
                f"{max_length}, the longest text"
            )
    # what holds a length changes only where a profile begins or has ended
    changes = {1, *(p.least[1] for p in profiles), *(p.most[1] + 1 for p in profiles)}
    for width in sorted(changes - {max_length + 1}):
        reached = 0
        for least, most in sorted((p.least[0], p.most[0]) for p in at(profiles, width)):
            if least > reached + 1:
                break
            reached = max(reached, most)
        wanted = max((p.most[0] for p in at(profiles, width)), default=1)
        if reached < wanted:
            raise InputError(
                f"no profile holds {reached + 1}x{width}; expected every length from 1 to "
                f"{max_length} tokens in one, and every number of texts from 1 to the most"
            )


def at(profiles: Sequence[Profile], width: int) -> Iterator[Profile]:
    """Return the profiles that take texts of a width."""
    return (profile for profile in profiles if profile.least[1] <= width <= profile.most[1])


def limits(profiles: Sequence[Profile], max_length: int, parallel: int = 1) -> Limits:
    """Return what an engine with these profiles can run at once.

    Its widths are whole multiples of 8, so that there are few shapes, and the longest text.

    Args:
        profiles: such as check accepts.
        max_length: the model's; profiles that end before it are the limit.
        parallel: batches that run at once.
    """
    max_length = min(max_length, max(profile.most[1] for profile in profiles))
    widths = (*range(STEP, max_length, STEP), max_length)
    max_tokens = max(texts * width for texts, width in (p.most for p in profiles))
    return Limits(
        max_tokens=max_tokens,
        max_length=max_length,
        pads=True,
        widths=widths,
        rows=tuple(max(p.most[0] for p in at(profiles, width)) for width in widths),
        slack=SLACK,
        parallel=parallel,
        ahead=AHEAD * max_tokens,
    )


def predicted(
    profile: Profile, hidden: int, ffn: int, colbert_dim: int | None, precision: str
) -> int:
    """Predict the bytes of activations that a profile takes at its most.

    A prediction, in proportion to the tokens; what the library reports is what counts. The worst
    moment is taken to be inside a layer's feed-forward part. For each token, there is the residual
    (float32), its normalised copy (16 bits), what is between the two matrices before and after GELU
    (16 bits each; with int8 or fp8, in float32 after GELU until it is quantised), and the mask. Or
    it is the end of the ColBERT head, in float32 and in 16 bits. Attention is fused: nothing grows
    with the square of the length. That is what TensorRT-RTX 1.7 reports for fp16 with hidden sizes
    of 128 and 1024, and for int8 with 1024; for fp8 nothing has been compared.
    """
    between = 6 * ffn if precision in ("int8", "fp8") else 4 * ffn
    a_token = 6 * hidden + max(between, 6 * (colbert_dim or 0)) + 4
    texts, width = profile.most
    return texts * width * a_token
