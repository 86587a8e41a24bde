"""What rounding does to each head, site by site: where a model is to be kept in higher precision.

A site is the input of one linear layer, or of several that read the same; it goes by the name of
the first weight, as export.calibrate has it. The table of word embeddings is one, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from m3rt.types import Heads

Harm = Mapping[str, Mapping[str, float]]  # by site and head; see export.sensitivity
WORDS = "embeddings.word_embeddings.weight"
SHOWN = 5  # sites that a message names
LEAST = 0.01  # of the harm, to be named

# from the checkpoint's names to what they are
LAYERS = {
    "attention.self.query.weight": "attention in",
    "attention.self.key.weight": "attention keys and values",
    "attention.output.dense.weight": "attention out",
    "intermediate.dense.weight": "feed-forward in",
    "output.dense.weight": "feed-forward out",
}


def layer(site: str) -> str:
    """Return what people call a site: layer 3 feed-forward in. Layers count from 0."""
    if site == WORDS:
        return "word embeddings"
    found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", site)
    if not found or found[2] not in LAYERS:
        return site
    return f"layer {found[1]} {LAYERS[found[2]]}"


def heads_of(mixtures: Iterable[str]) -> tuple[str, ...]:
    """Return the heads in some mixtures: those of dense+sparse are dense and sparse."""
    names = {name for mixture in mixtures for name in mixture.split("+")}
    if "all" in names:
        names |= set(Heads.ALL.names)
    return tuple(head for head in (Heads.ALL | Heads.SCORE).names if head in names)


def shares(harm: Harm, head: str) -> dict[str, float]:
    """Return which part of a head's harm each site does, the worst first; {} if there is none."""
    values = {site: max(0.0, by_head.get(head, 0.0)) for site, by_head in harm.items()}
    total = sum(values.values())
    if not total > 0:
        return {}
    return {site: values[site] / total for site in sorted(values, key=lambda s: -values[s])}


def order(harm: Harm, heads: Iterable[str]) -> tuple[str, ...]:
    """Return the sites by the harm they do to some heads, the worst first."""
    of_heads = [shares(harm, head) for head in heads]
    summed = {site: sum(of_head.get(site, 0.0) for of_head in of_heads) for site in harm}
    return tuple(sorted(summed, key=lambda site: -summed[site]))


def worst(harm: Harm, heads: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return the sites that do the most harm to each head, and which part of it."""
    found = {head: list(shares(harm, head).items())[:SHOWN] for head in heads}
    return {
        head: dict(sites[:1]) | {site: share for site, share in sites if share >= LEAST}
        for head, sites in found.items()
        if sites
    }


def told(found: Mapping[str, Mapping[str, float]]) -> str:
    """Write what worst found."""
    return "; ".join(
        f"most of the harm to {head}: "
        + ", ".join(f"{layer(site)} {share:.0%}" for site, share in sites.items())
        for head, sites in found.items()
    )
