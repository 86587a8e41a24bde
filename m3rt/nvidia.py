"""NVIDIA's graphics processors, as their driver tells of them; no package is needed.

The driver obeys CUDA_VISIBLE_DEVICES, so devices are those that this process may use, under the
numbers that CUDA gives them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
VISIBLE = "CUDA_VISIBLE_DEVICES"
# values of CUdevice_attribute
MAJOR, MINOR = 75, 76

Loader = Callable[[], Any]  # opens the driver's library, or raises OSError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor."""

    index: int
    name: str
    capability: tuple[int, int]
    memory: int  # bytes in all

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it: sm86."""
        return f"sm{self.capability[0]}{self.capability[1]}"

    def __str__(self) -> str:
        return f"{self.name} ({self.sm})"


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver says."""

    cuda: str | None  # newest version of CUDA that it runs, as 12.8; None: it does not say
    gpus: tuple[Gpu, ...]
    why: str = ""  # why there is no GPU


class DriverError(Exception):
    """A call of the driver failed."""


def library() -> ctypes.CDLL:
    """Open the driver's library."""
    return ctypes.CDLL(LIBRARY)


def missing(load: Loader = library) -> str | None:
    """Say why no driver is installed, without starting it; None: one is."""
    try:
        load()
    except OSError as error:
        absent = "No such file" in str(error)  # as on every machine without a GPU
        return "no NVIDIA driver" if absent else f"no NVIDIA driver: {error}"
    return None


def read(load: Loader = library) -> Driver:
    """Ask the driver for its devices; one that is missing or fails has none.

    This starts the driver in this process, and CUDA does not work in a process forked from one
    where it was started. So ask only where a GPU may be used.
    """
    if why := missing(load):
        return Driver(None, (), why)
    cuda = load()
    version = None
    try:
        version = version_of(cuda)
        call(cuda, "cuInit", 0)
        count = number(cuda, "cuDeviceGetCount")
        gpus = tuple(describe(cuda, index) for index in range(count))
    except DriverError as error:
        return Driver(version, (), f"the NVIDIA driver fails: {error}{hidden()}")
    return Driver(version, gpus, "" if gpus else f"the NVIDIA driver has no device{hidden()}")


def describe(cuda: Any, index: int) -> Gpu:
    """Ask for a device."""
    device = ctypes.c_int(number(cuda, "cuDeviceGet", index))
    name = ctypes.create_string_buffer(256)
    call(cuda, "cuDeviceGetName", name, len(name), device)
    memory = ctypes.c_size_t()
    call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (number(cuda, "cuDeviceGetAttribute", key, device) for key in (MAJOR, MINOR))
    return Gpu(index, name.value.decode(errors="replace"), (major, minor), memory.value)


def version_of(cuda: Any) -> str:
    """Ask for the newest version of CUDA; the driver writes 12.8 as 12080."""
    version = number(cuda, "cuDriverGetVersion")
    return f"{version // 1000}.{version % 1000 // 10}"


def number(cuda: Any, function: str, *arguments: Any) -> int:
    """Call a function whose first argument is where it writes an int."""
    found = ctypes.c_int()
    call(cuda, function, ctypes.byref(found), *arguments)
    return found.value


def call(cuda: Any, function: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        DriverError: it is not there, or did not return CUDA_SUCCESS.
    """
    try:
        status = getattr(cuda, function)(*arguments)
    except AttributeError as error:
        raise DriverError(f"it has no {function}") from error
    if status:
        raise DriverError(f"{function} gave {name_of(cuda, status)}")


def name_of(cuda: Any, status: int) -> str:
    """Return an error's name: CUDA_ERROR_NO_DEVICE."""
    name = ctypes.c_char_p()
    try:
        cuda.cuGetErrorName(status, ctypes.byref(name))
    except AttributeError:
        return f"error {status}"
    return f"error {status}" if name.value is None else name.value.decode()


def hidden() -> str:
    """Name the variable that hides devices, where it is set."""
    value = os.environ.get(VISIBLE)
    return "" if value is None else f" ({VISIBLE} is {value!r})"
