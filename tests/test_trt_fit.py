"""Which TensorRT engines run on which GPUs."""

from __future__ import annotations

import dataclasses

import pytest

from m3rt.engines.trt.fit import fits
from m3rt.engines.trt.plan import PORTABLE, Plan
from m3rt.engines.trt.profiles import Profile
from m3rt.nvidia import Gpu

PLAN = Plan(
    key="0",
    library="tensorrt",
    version="10.13.2.6",
    target=("sm90",),
    profiles=(Profile((1, 1), (8, 64), (32, 512)),),
    memory=(1 << 20,),
    weights=1 << 20,
)
RTX = dataclasses.replace(PLAN, library="tensorrt_rtx", version="1.7.1.116")


def gpu(capability: tuple[int, int]) -> Gpu:
    return Gpu(0, "a GPU", capability, 1 << 34)


@pytest.mark.parametrize(
    ("plan", "target", "capability", "why"),
    [
        (PLAN, ("sm90",), (9, 0), None),
        (PLAN, ("sm86",), (8, 6), None),
        # TensorRT's plans are for one capability, not for those above it
        (PLAN, ("sm86",), (8, 9), "built for sm86, this GPU is a GPU (sm89)"),
        (PLAN, (PORTABLE,), (8, 6), "built for ampere+, this GPU is a GPU (sm86)"),
        (RTX, ("sm86", "sm120"), (12, 0), None),
        (RTX, ("sm75",), (7, 5), None),
        (RTX, ("sm86", "sm89"), (12, 0), "built for sm86, sm89, this GPU is a GPU (sm120)"),
        (RTX, (PORTABLE,), (8, 0), None),
        (RTX, (PORTABLE,), (12, 1), None),
        (RTX, (PORTABLE,), (7, 5), "built for ampere+, this GPU is a GPU (sm75)"),
        (RTX, (PORTABLE,), (9, 0), "tensorrt_rtx does not run on a GPU (sm90)"),
        (RTX, ("sm90",), (9, 0), "tensorrt_rtx does not run on a GPU (sm90)"),
        (RTX, (PORTABLE,), (10, 3), "tensorrt_rtx does not run on a GPU (sm103)"),
    ],
)
def test_targets(
    plan: Plan, target: tuple[str, ...], capability: tuple[int, int], why: str | None
) -> None:
    plan = dataclasses.replace(plan, target=target)
    assert fits(plan, plan.library, plan.version, gpu(capability)) == why


@pytest.mark.parametrize("plan", [PLAN, RTX])
def test_another_version_does_not_read_it(plan: Plan) -> None:
    found = fits(plan, plan.library, plan.version + "1", gpu((9, 0)))
    assert (
        found
        == f"built by {plan.library} {plan.version}, installed is {plan.library} {plan.version}1"
    )
