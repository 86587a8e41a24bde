"""Which kernels a TensorRT plan launches: whether attention is fused, and what products multiply.

TensorRT-RTX writes its launch plan as text into what it builds. The text is not documented, so
nothing at run time depends on it: it tells a build that is slower or less exact than it should be,
before anyone has a GPU at hand.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

LAUNCH = re.compile(rb'\n  (?:function|fully_connected|runtime_fusion)=\{ name="?([^ "]+)"?')
PRODUCT = re.compile(
    rb'fully_connected=\{ name="([^"]+)" output=\{"([^"]+)" \} input=\{([^}\n]*)\}'
)
TENSOR = re.compile(rb'tensor=\{[^\n]{0,4000}?name="([^"\n]+)"[^\n]{0,4000}?type=(\w+)')
PROFILE = re.compile(r" \[profile \d+\]")  # said of all but the first
TRAITS = re.compile(rb"fmha::[A-Za-z]+_([a-z0-9_]+)_traits")
TRUNK = "encoder."  # what the names of the linear layers inside the network begin with
EIGHT_BITS = {"int8": "int8", "fp8": "fp8_e4m3"}  # as the text names them


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer, or several that were joined into one."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]  # types: half, bf16, int8, fp8_e4m3, float
    output: str


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a plan launches, all profiles together."""

    launches: int
    attentions: int  # fused: one kernel for the scores, the softmax and the mixing
    accumulators: frozenset[str]  # of those, as hmma_fp32 or hmma_fp16
    products: tuple[Product, ...]


def read(path: Path) -> Kernels | None:
    """Read a plan; None where it has no such text."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        return parse(plan)


def parse(plan: bytes | mmap.mmap) -> Kernels | None:
    """Read the text in a plan."""
    names = [match[1] for match in LAUNCH.finditer(plan)]
    if not names:
        return None
    types: dict[bytes, str] = {}
    products = []
    # each profile declares its tensors first, under names that others use for other tensors
    records = [*TENSOR.finditer(plan), *PRODUCT.finditer(plan)]
    for match in sorted(records, key=lambda match: match.start()):
        if match.re is TENSOR:
            types[match[1]] = match[2].decode()
            continue
        inputs = re.findall(rb'"([^"]+)"', match[3])[:2]
        products.append(
            Product(
                tuple(PROFILE.sub("", match[1].decode()).split("+")),
                tuple(types.get(name, "?") for name in inputs),
                types.get(match[2], "?"),
            )
        )
    return Kernels(
        # a fusion at run time lists the product that it is part of once more
        launches=len(names) - sum(b"Fc" in name for name in names),
        attentions=sum(b"gemm_mha" in name for name in names),
        accumulators=frozenset(match[1].decode() for match in TRAITS.finditer(plan)),
        products=tuple(products),
    )


def faults(
    found: Kernels, layers: int, profiles: int, precision: str, half: Collection[str]
) -> Iterator[str]:
    """Say what is slower or less exact than it should be.

    Args:
        found: the kernels.
        layers: of the network.
        profiles: of the plan.
        precision: what was asked for.
        half: linear layers that the graph has in half precision, whatever the others are.
    """
    if found.attentions != layers * profiles:
        yield (
            f"attention is fused {found.attentions} times, expected {layers} layers in {profiles} "
            "profiles: unfused, it holds the scores of all pairs of tokens"
        )
    if any("fp16" in name for name in found.accumulators):
        yield f"attention adds up in {', '.join(sorted(found.accumulators))}, expected float32"
    if precision in EIGHT_BITS:
        wanted = (EIGHT_BITS[precision],) * 2
        inside = [p for p in found.products if p.names[0].startswith(TRUNK)]
        for product in inside:
            if product.inputs != wanted and not set(product.names) <= set(half):
                yield f"{'+'.join(product.names)} multiplies {product.inputs}, expected {wanted}"
        if not inside:
            yield f"no product of {wanted} was found"
