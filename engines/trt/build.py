"""What ``m3rt build`` does for TensorRT: shapes, memory, the engine, and a look at its kernels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from m3rt import nvidia
from m3rt.artifact import Artifact
from m3rt.engines import Choice, Order, Probe
from m3rt.engines.trt import builder, kernels
from m3rt.engines.trt.fit import RTX
from m3rt.engines.trt.library import library
from m3rt.engines.trt.plan import PORTABLE, Plan, file_of
from m3rt.engines.trt.profiles import Profile, predicted
from m3rt.engines.trt.shaping import Shaping, resolve
from m3rt.errors import EngineError, UnavailableError
from m3rt.graph import Graph
from m3rt.nvidia import Gpu

ROOM = 64 << 20  # bytes that a library may reserve for its products


def buildable(engine: str, precision: str = "") -> Probe:
    """Say whether an engine can be built here: TensorRT-RTX needs no GPU for it."""
    try:
        trt = library(engine)
    except UnavailableError as error:
        return Probe(engine, False, str(error))
    named = f"{trt.__name__} {trt.__version__}"
    if trt.__name__ == RTX:
        return Probe(engine, True, f"{named}, which builds without a GPU, too")
    driver = nvidia.read()
    if not driver.gpus:
        return Probe(engine, False, f"{named} builds on the GPU that it builds for: {driver.why}")
    return Probe(engine, True, f"{named}, {driver.gpus[0]}")


def expect(choice: Choice, shaping: Shaping, max_length: int) -> None:
    """Refuse profiles and targets that cannot be.

    Raises:
        InputError: says which.
        UnavailableError: the library is not installed.
    """
    resolve(shaping, max_length)
    builder.check_target(library(choice.engine), shaping.target, choice.precision)


def build(order: Order) -> Mapping[str, object]:
    """Build an engine, and refuse one that is slower or less exact than it should be.

    Raises:
        EngineError: the library failed; or attention is not fused, or a product is not of the
            precision asked for.
        InputError: the profiles or the target cannot be.
        UnavailableError: the memory of the GPU here does not suffice for weights and activations.
    """
    assert isinstance(order.graph, Graph)
    trt, choice, manifest = library(order.choice.engine), order.choice, order.artifact.manifest
    profiles = resolve(order.shaping, manifest.max_length)
    driver = nvidia.read()
    gpu = driver.gpus[0] if driver.gpus else None
    named = f"{trt.__name__} {trt.__version__}"
    expected = predictions(order.artifact, profiles, choice.precision)
    for_here = gpu is not None and gpu.sm in (order.shaping.target or (gpu.sm,))
    if gpu and for_here:  # before minutes are spent
        check_memory(gpu, order.graph.nbytes, expected, profiles)
    path = order.out / file_of(str(choice))
    made = builder.build(
        trt, order.graph, profiles, order.shaping.target, path, timings(trt, gpu), order.bars
    )
    memory = made.memory if len(made.memory) == len(profiles) else expected
    check_fused(memory, expected, profiles, named)
    if gpu and for_here:
        check_memory(gpu, made.weights, memory, profiles)
    found = kernels.read(path)
    warnings = list(made.warnings)
    try:
        check(found, manifest.layers, profiles, choice.precision, order.graph.half, named)
    except EngineError as error:
        if trt.__name__ == RTX:
            raise
        warnings.append(f"as far as its text can be read: {error}")  # known from the other library
    target = order.shaping.target or ((PORTABLE,) if trt.__name__ == RTX else (sm(gpu),))
    plan = Plan(
        key=builder.key(order.graph, choice.precision, profiles, named, target),
        library=trt.__name__,
        version=trt.__version__,
        target=tuple(target),
        profiles=profiles,
        memory=memory,
        weights=made.weights or order.graph.nbytes,
    )
    return {"plan": plan.dump(), "kernels": told(found), "warnings": warnings}


def predictions(artifact: Artifact, profiles: Sequence[Profile], precision: str) -> tuple[int, ...]:
    """Return the bytes of activations that each profile is expected to take at its most."""
    manifest = artifact.manifest
    ffn = int(json.loads((artifact.path / "config.json").read_bytes())["intermediate_size"])
    return tuple(
        predicted(profile, manifest.hidden, ffn, manifest.colbert_dim, precision)
        for profile in profiles
    )


def check_fused(
    memory: Sequence[int], expected: Sequence[int], profiles: Sequence[Profile], named: str
) -> None:
    """Refuse an engine whose memory can only be that of unfused attention.

    Raises:
        EngineError: says of which profile.
    """
    for found, wanted, profile in zip(memory, expected, profiles, strict=True):
        if found > 2 * wanted + ROOM:
            raise EngineError(
                f"{named} takes {found / 1e6:.0f} MB for activations of {profile}, expected "
                f"{wanted / 1e6:.0f} MB: attention is not fused; try another --precision, or the "
                "version of the library that m3rt is tested with"
            )


def sm(gpu: Gpu | None) -> str:
    """Return the compute capability of the GPU that an engine was built on."""
    assert gpu is not None  # see builder
    return gpu.sm


def check(
    found: kernels.Kernels | None,
    layers: int,
    profiles: Sequence[Profile],
    precision: str,
    half: Sequence[str],
    named: str,
) -> None:
    """Refuse what is slower or less exact than it should be, as far as the plan tells.

    Raises:
        EngineError: says what.
    """
    if found is None:
        return
    if faults := list(kernels.faults(found, layers, len(profiles), precision, half)):
        raise EngineError(
            f"{named} built something else than was asked for: {'; '.join(faults[:3])}; try "
            "another --precision, or the version of the library that m3rt is tested with"
        )


def check_memory(
    gpu: Gpu, weights: int, activations: Sequence[int], profiles: Sequence[Profile]
) -> None:
    """Refuse an engine that the GPU here cannot hold.

    Raises:
        UnavailableError: says what it takes, and what there is.
    """
    if (needed := weights + max(activations)) > gpu.memory:
        raise UnavailableError(
            f"the engine takes {needed / 1e9:.1f} GB for weights and the largest profile, "
            f"{max(p.most[0] * p.most[1] for p in profiles)} tokens; {gpu} has "
            f"{gpu.memory / 1e9:.1f} GB: pass a smaller --max-tokens"
        )


def told(found: kernels.Kernels | None) -> Mapping[str, object]:
    """Return what the manifest keeps of the kernels; {} where the plan does not tell."""
    if found is None:
        return {}
    return {
        "launches": found.launches,
        "attentions": found.attentions,
        "accumulators": sorted(found.accumulators),
        "products": sorted({f"{'x'.join(p.inputs)}->{p.output}" for p in found.products}),
    }


def timings(trt: ModuleType, gpu: Gpu | None) -> Path | None:
    """Return where timings of kernels are kept; TensorRT-RTX takes none when it builds."""
    if trt.__name__ == RTX or gpu is None:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "m3rt" / f"{trt.__name__}-{trt.__version__}-{gpu.sm}.timings"
