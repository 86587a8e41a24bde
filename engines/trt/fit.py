"""Whether a TensorRT engine that was built before runs here."""

from __future__ import annotations

from m3rt.engines.trt.plan import PORTABLE, Plan
from m3rt.nvidia import Gpu

RTX = "tensorrt_rtx"
PORTABLE_FROM = (8, 0)  # a portable engine leaves out Turing, which has to be named


def fits(plan: Plan, library: str, version: str, gpu: Gpu) -> str | None:
    """Say why an engine does not run here; None: it does.

    Args:
        plan: what the manifest says of the engine.
        library: that would run it.
        version: of the library, as installed here.
        gpu: where it would run.
    """
    if (plan.library, plan.version) != (library, version):
        # neither library reads what another version of it wrote
        return f"built by {plan.library} {plan.version}, installed is {library} {version}"
    if plan.library == RTX and unsupported(gpu):
        return f"{plan.library} does not run on {gpu}"
    if gpu.sm in plan.target:
        return None
    if plan.library == RTX and PORTABLE in plan.target and gpu.capability >= PORTABLE_FROM:
        return None
    return f"built for {', '.join(plan.target)}, this GPU is {gpu}"


def unsupported(gpu: Gpu) -> bool:
    """Whether TensorRT-RTX leaves a GPU out: it has no Hopper, and no Blackwell of data centres."""
    return gpu.capability == (9, 0) or gpu.capability[0] == 10
