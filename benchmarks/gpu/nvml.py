"""What NVIDIA's management library says of the first GPU: memory, clocks, power. Nothing is set.

It starts no CUDA, takes no memory of the device, and answers while others compute there.
"""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
CLOCKS = {"sm_mhz": 1, "memory_mhz": 2}  # nvmlClockType_t
PAUSE = 0.01  # seconds between two looks


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Nvml:
    """The library on one device."""

    def __init__(self, library: Any, device: ctypes.c_void_p) -> None:
        self._library = library
        self._device = device

    def memory(self) -> tuple[int, int]:
        """Return the bytes in use, by whatever process, and in all."""
        found = Memory()
        if self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(found)):
            return 0, 0
        return int(found.used), int(found.total)

    def describe(self) -> dict[str, Any]:
        """Return name, driver, memory, and the clocks, power and temperature of now."""
        found: dict[str, Any] = {
            "gpu": self._text("nvmlDeviceGetName", self._device),
            "driver": self._text("nvmlSystemGetDriverVersion"),
            "memory_bytes": self.memory()[1],
        }
        found |= {
            name: self._number("nvmlDeviceGetClockInfo", kind) for name, kind in CLOCKS.items()
        }
        found["power_mw"] = self._number("nvmlDeviceGetPowerUsage")
        found["celsius"] = self._number("nvmlDeviceGetTemperature", 0)
        return found

    def _text(self, function: str, *arguments: Any) -> str | None:
        text = ctypes.create_string_buffer(96)
        failed = getattr(self._library, function)(*arguments, text, ctypes.c_uint(len(text)))
        return None if failed else text.value.decode(errors="replace")

    def _number(self, function: str, *arguments: int) -> int | None:
        number = ctypes.c_uint()
        values = map(ctypes.c_uint, arguments)
        failed = getattr(self._library, function)(self._device, *values, ctypes.byref(number))
        return None if failed else number.value


def open_nvml(library: str = LIBRARY) -> Nvml | None:
    """Open the library; None: there is none, or no device."""
    try:
        found = ctypes.CDLL(library)
    except OSError:
        return None
    device = ctypes.c_void_p()
    if found.nvmlInit_v2() or found.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return None
    return Nvml(found, device)


class Watch:
    """The most bytes of the device in use while it is open."""

    def __init__(self, nvml: Nvml | None) -> None:
        self.most = 0
        self._nvml = nvml
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while self._nvml:
            self.most = max(self.most, self._nvml.memory()[0])
            if self._done.wait(PAUSE):
                return
