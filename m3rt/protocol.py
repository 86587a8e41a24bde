"""How retrieval is measured: modes, weights and lengths, as the M3-Embedding paper has them.

Sources: Chen et al., M3-Embedding, arXiv 2402.03216, section 4 and its footnotes; and the scripts
that reproduce it, FlagEmbedding's research/C_MTEB/MLDR and MKQA. See docs/eval.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from m3rt.errors import InputError
from m3rt.layouts import Layout
from m3rt.runtime import M3
from m3rt.score import Weights
from m3rt.types import Heads

DENSE, SPARSE, COLBERT, BOTH, ALL = MODES = ("dense", "sparse", "colbert", "dense+sparse", "all")
# colbert and all re-rank the candidates of dense
NEEDS: Mapping[str, Heads] = {
    DENSE: Heads.DENSE,
    SPARSE: Heads.SPARSE,
    COLBERT: Heads.DENSE | Heads.COLBERT,
    BOTH: Heads.DENSE | Heads.SPARSE,
    ALL: Heads.ALL,
}


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights of the heads in the modes that combine them."""

    both: Weights  # dense+sparse; ColBERT's does not count
    all: Weights


MIXTURES: Mapping[str, Mixture] = {
    "paper": Mixture(Weights(1, 0.3, 0), Weights(1, 0.3, 1)),
    "mldr": Mixture(Weights(0.2, 0.8, 0), Weights(0.15, 0.5, 0.35)),
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is searched, and how far."""

    modes: tuple[str, ...] | None = None  # None: all that the model has heads for
    mixture: Mixture = MIXTURES["paper"]
    depth: int = 200  # candidates of dense that colbert and all re-rank
    hits: int = 1000  # documents kept of the other modes
    max_length: int | None = None  # tokens of a document; None: the model's own
    query_max_length: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("depth", self.depth), ("hits", self.hits)):
            if value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")
        if self.modes is not None and (unknown := [m for m in self.modes if m not in MODES]):
            raise InputError(f"no mode {unknown[0]!r}; there are {', '.join(MODES)}")
        if self.modes == ():
            raise InputError(f"no mode was asked for; there are {', '.join(MODES)}")

    @property
    def heads(self) -> Heads:
        """What has to be encoded."""
        heads = Heads(0)
        for mode in self.modes or MODES:
            heads |= NEEDS[mode]
        return heads

    def fitted(self, model: M3) -> Protocol:
        """Return it with the modes that a model can do, in order, and lengths that it takes.

        Raises:
            InputError: a mode was asked for by name that needs a head the model lacks.
        """
        for mode in self.modes or ():
            model.require(NEEDS[mode])
        able = tuple(mode for mode in MODES if NEEDS[mode] in model.heads)
        if not able:
            raise InputError(
                f"a model with {', '.join(model.heads.names)} alone has nothing to search with: "
                "ColBERT re-ranks what the dense head finds"
            )
        return replace(
            self,
            modes=tuple(mode for mode in able if self.modes is None or mode in self.modes),
            max_length=least(self.max_length, model.max_length),
            query_max_length=least(self.query_max_length, model.max_length),
        )


def least(length: int | None, longest: int) -> int:
    """Return a length that a model takes."""
    return longest if length is None else min(length, longest)


# Other data sets are none of the paper's: their texts are not cut before the model's own length.
PROTOCOLS: Mapping[Layout, Protocol] = {
    Layout.MIRACL: Protocol(max_length=512, query_max_length=512),
    Layout.MKQA: Protocol(max_length=512, query_max_length=512),
    Layout.MLDR: Protocol(mixture=MIXTURES["mldr"], max_length=8192, query_max_length=512),
}


def of(layout: Layout) -> Protocol:
    """Return the protocol of a data set of this layout."""
    return PROTOCOLS.get(layout, Protocol())
