"""What CUDA reports: which errors mean that a device is lost, and which that there is none."""

from __future__ import annotations

import re

from m3rt.errors import EngineError

# After these the process can use the device no more: every further call fails.
LOST = frozenset(
    f"cudaError{name}"
    for name in (
        *("Assert", "Contained", "ContextIsDestroyed", "ECCUncorrectable", "ExternalDevice"),
        *("HardwareStackError", "IllegalAddress", "IllegalInstruction", "InvalidAddressSpace"),
        *("InvalidPc", "LaunchFailure", "LaunchTimeout", "MisalignedAddress"),
        *("MpsClientTerminated", "NvlinkUncorrectable", "TensorMemoryLeak", "Unknown"),
    )
)
# The same as numbers: ONNX Runtime writes no names.
LOST_NUMBERS = frozenset(
    (*(214, 220, 226, 700, 702, 709, 710), *range(714, 720), *(721, 810, 911, 999))
)
# The device cannot be used at all, or not now.
ABSENT = frozenset(
    f"cudaError{name}"
    for name in (
        *("CompatNotSupportedOnDevice", "DevicesUnavailable", "InitializationError"),
        *("InsufficientDriver", "InvalidDevice", "MpsConnectionFailed", "NoDevice"),
        *("OperatingSystem", "StubLibrary", "SystemDriverMismatch", "SystemNotReady"),
    )
)


FULL = re.compile(
    "out of memory|failed to allocate|bad_alloc|alloc_failed|available memory", re.IGNORECASE
)


class OutOfMemoryError(EngineError):
    """The device, or pinned memory, is full. Engines run smaller batches instead."""


class DeviceLostError(EngineError):
    """The process can use the device no more; others it may."""


def lost(said: str) -> bool:
    """Whether what ONNX Runtime says of an error means that the device was lost."""
    found = re.search(r"\bCUDA failure (\d+):", said)
    return found is not None and int(found[1]) in LOST_NUMBERS


def full(said: str) -> bool:
    """Whether what ONNX Runtime says of an error means that there is no memory left."""
    return FULL.search(said) is not None
