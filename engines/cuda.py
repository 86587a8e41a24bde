"""The CUDA runtime: the device, its memory, streams, events and graphs.

A thin layer over cuda.bindings.runtime, whose functions return an error code and values, and let
other threads run while they wait. Devices are numbered as CUDA_VISIBLE_DEVICES leaves them.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.engines.faults import ABSENT, LOST, DeviceLostError
from m3rt.engines.faults import OutOfMemoryError as OutOfMemoryError
from m3rt.errors import EngineError, UnavailableError, missing
from m3rt.nvidia import Gpu

OTHERWISE = "or choose an engine for CPUs: openvino or cpu"

# Memory grows in steps of an eighth of its size or more, so that it seldom moves.
GRAIN = 2 << 20


_here = threading.local()  # device: what use last made this thread's own


def runtime(engine: str) -> Any:
    """Import cuda.bindings.runtime, which needs no driver.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("cuda"):
            raise
        raise missing("cuda-bindings", engine, f"the {engine} engine") from error


class Cuda:
    """Calls into the CUDA runtime for one device, with errors that say what to do.

    A thread has a current device, to which memory, streams and events belong that it makes: see
    use.
    """

    def __init__(self, module: Any, device: int = 0) -> None:
        self.module = module
        self.device = device
        self._lost = ""  # what was said when the device was lost

    def checked(self, function: str, *args: Any) -> Any:
        """Call a function, and return its one value, or None.

        Raises:
            OutOfMemoryError: there is not enough of it.
            UnavailableError: there is no device, or its driver is missing or too old.
            DeviceLostError: the device was lost; so does every later call.
            EngineError: anything else.
        """
        if self._lost:
            raise DeviceLostError(self._lost)
        code, *values = getattr(self.module, function)(*args)
        if code != self.module.cudaError_t.cudaSuccess:
            raise self._error(code, function, args)
        return values[0] if len(values) == 1 else tuple(values) or None

    def quietly(self, function: str, *args: Any) -> None:
        """Call a function that releases something; what fails then, is gone anyway."""
        with contextlib.suppress(Exception):
            getattr(self.module, function)(*args)

    def check(self) -> None:
        """Refuse to go on if the device was lost.

        Raises:
            DeviceLostError: it was.
        """
        if self._lost:
            raise DeviceLostError(self._lost)

    def use(self) -> None:
        """Make the device this thread's own; others may have changed it since the last time.

        Raises:
            UnavailableError: there is no such device.
        """
        self.checked("cudaSetDevice", self.device)
        _here.device = self.device

    @contextlib.contextmanager
    def borrow(self) -> Iterator[None]:
        """Make the device this thread's own for a while, to give back what is there; never raises.

        Garbage is collected at any moment, also while this thread works on another device.
        """
        before = getattr(_here, "device", self.device)
        self.quietly("cudaSetDevice", self.device)
        try:
            yield
        finally:
            if before != self.device:
                self.quietly("cudaSetDevice", before)

    def gpu(self) -> Gpu:
        """Return the device; takes none of its memory.

        Raises:
            UnavailableError: there is none.
        """
        count = self.checked("cudaGetDeviceCount")
        if not count:
            raise self._error(self.module.cudaError_t.cudaErrorNoDevice, "", ())
        if self.device >= count:
            raise UnavailableError(
                f"there is no device {self.device}, only {', '.join(map(str, range(count)))}: see "
                "CUDA_VISIBLE_DEVICES"
            )
        found = self.checked("cudaGetDeviceProperties", self.device)
        name = found.name.decode("utf-8", "replace").rstrip("\0")
        capability = (int(found.major), int(found.minor))
        return Gpu(self.device, name, capability, int(found.totalGlobalMem))

    def free(self) -> int:
        """Return the bytes of device memory that nobody uses."""
        free, _ = self.checked("cudaMemGetInfo")
        return int(free)

    def _error(self, code: Any, function: str, args: tuple[Any, ...]) -> Exception:
        name: str = code.name
        self.quietly("cudaGetLastError")  # or a later call of the library would report it
        if name == "cudaErrorMemoryAllocation":
            if function == "cudaHostAlloc":
                return OutOfMemoryError(f"the host has no {size(args[0])} more to pin")
            needed = size(args[0]) if function == "cudaMalloc" else f"{function} needs"
            _, free, _ = self.module.cudaMemGetInfo()
            return OutOfMemoryError(f"{needed} more device memory, {size(free or 0)} are free")
        said = f"{name}: {self._text(code)}"
        if name in ABSENT:
            return UnavailableError(f"no CUDA device can be used: {said}; {self._cure(name)}")
        if name in LOST:
            self._lost = f"the device was lost: {said} (in {function}); start the process again"
            return DeviceLostError(self._lost)
        return EngineError(f"CUDA failed: {said} (in {function})")

    def _text(self, code: Any) -> str:
        _, text = self.module.cudaGetErrorString(code)
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)

    def _cure(self, name: str) -> str:
        if name not in ("cudaErrorInsufficientDriver", "cudaErrorStubLibrary"):
            return f"see what nvidia-smi says and CUDA_VISIBLE_DEVICES, {OTHERWISE}"
        _, driver = self.module.cudaDriverGetVersion()
        _, needed = self.module.cudaRuntimeGetVersion()
        found = f"the driver here is for CUDA {cuda_version(driver)}" if driver else "none is here"
        # a driver runs all versions of its major one
        return f"install an NVIDIA driver for CUDA {needed // 1000} or newer ({found}), {OTHERWISE}"


class Memory:
    """Device or pinned host memory that grows. Growing moves it, and loses what it held."""

    def __init__(self, cuda: Cuda, pinned: bool = False) -> None:
        self.address = 0
        self.bytes = 0
        self._cuda = cuda
        self._pinned = pinned

    def holds(self, needed: int) -> bool:
        """Whether it need not move."""
        return needed <= self.bytes

    def ensure(self, needed: int) -> int:
        """Return the address of at least so many bytes.

        Nothing on the device may be using the memory when it grows.

        Raises:
            OutOfMemoryError: there is not so much; the memory is empty then.
        """
        if not self.holds(needed):
            self.release()  # before allocating, or both would have to fit
            room = rounded(needed)
            if self._pinned:
                flags = self._cuda.module.cudaHostAllocDefault
                self.address = int(self._cuda.checked("cudaHostAlloc", room, flags))
            else:
                self.address = int(self._cuda.checked("cudaMalloc", room))
            self.bytes = room
        return self.address

    def view(self, start: int, end: int) -> NDArray[np.uint8]:
        """Return bytes of pinned memory, as an array that dies with it."""
        if not (self._pinned and 0 <= start <= end <= self.bytes):
            raise ValueError(f"bytes {start} to {end} of {self.bytes}, pinned: {self._pinned}")
        kind = ctypes.c_uint8 * (end - start)
        found: NDArray[np.uint8] = np.ctypeslib.as_array(kind.from_address(self.address + start))
        return found

    def release(self) -> None:
        """Give the memory back."""
        address, self.address, self.bytes = self.address, 0, 0
        if address:
            self._cuda.quietly("cudaFreeHost" if self._pinned else "cudaFree", address)


class Event:
    """A point in a stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        flags = cuda.module.cudaEventDisableTiming | cuda.module.cudaEventBlockingSync
        self.handle = cuda.checked("cudaEventCreateWithFlags", flags)

    def wait(self) -> None:
        """Wait on the host until the device has come to it."""
        self._cuda.checked("cudaEventSynchronize", self.handle)

    def release(self) -> None:
        """Destroy it."""
        self._cuda.quietly("cudaEventDestroy", self.handle)


class Stream:
    """A queue of work on the device, which waits for no other."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = cuda.checked("cudaStreamCreateWithFlags", cuda.module.cudaStreamNonBlocking)

    def upload(self, to: int, source: int, count: int) -> None:
        """Queue a copy from pinned memory to the device."""
        kind = self._cuda.module.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.checked("cudaMemcpyAsync", to, source, count, kind, self.handle)

    def download(self, to: int, source: int, count: int) -> None:
        """Queue a copy from the device to pinned memory."""
        kind = self._cuda.module.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.checked("cudaMemcpyAsync", to, source, count, kind, self.handle)

    def record(self, event: Event) -> None:
        """Place an event behind what is queued."""
        self._cuda.checked("cudaEventRecord", event.handle, self.handle)

    def after(self, event: Event) -> None:
        """Let what is queued from now on wait for an event, as it was last recorded."""
        self._cuda.checked("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def begin_capture(self) -> None:
        """Take down what this thread queues, instead of running it."""
        # of this thread: others may allocate and wait meanwhile
        mode = self._cuda.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.checked("cudaStreamBeginCapture", self.handle, mode)

    def end_capture(self) -> Graph:
        """Return what was taken down, ready to launch."""
        graph = self._cuda.checked("cudaStreamEndCapture", self.handle)
        try:
            return Graph(self._cuda, self._cuda.checked("cudaGraphInstantiate", graph, 0))
        finally:
            self._cuda.quietly("cudaGraphDestroy", graph)

    def abandon_capture(self) -> None:
        """Leave the state of capturing, if it is in it."""
        with contextlib.suppress(Exception):
            _, graph = self._cuda.module.cudaStreamEndCapture(self.handle)
            if graph is not None and int(graph):
                self._cuda.quietly("cudaGraphDestroy", graph)
        self._cuda.quietly("cudaGetLastError")

    def launch(self, graph: Graph) -> None:
        """Queue a graph."""
        self._cuda.checked("cudaGraphLaunch", graph.handle, self.handle)

    def synchronize(self) -> None:
        """Wait on the host until all that is queued is done."""
        self._cuda.checked("cudaStreamSynchronize", self.handle)

    def drain(self) -> None:
        """Wait likewise, whatever comes of it."""
        self._cuda.quietly("cudaStreamSynchronize", self.handle)

    def release(self) -> None:
        """Destroy it."""
        self._cuda.quietly("cudaStreamDestroy", self.handle)


class Graph:
    """Work that was captured from a stream, with the addresses it had."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle

    def release(self) -> None:
        """Destroy it; if it is running, CUDA does so when it is done."""
        self._cuda.quietly("cudaGraphExecDestroy", self.handle)


def rounded(needed: int) -> int:
    """Return the bytes to allocate: at most an eighth more than needed, or two MiB."""
    step = max(GRAIN, 1 << max(0, needed.bit_length() - 4))
    return -(-needed // step) * step


def size(count: int) -> str:
    """Write bytes as people read them."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def cuda_version(number: int) -> str:
    """Write the version that CUDA gives as a number: 13050 is 13.5."""
    return f"{number // 1000}.{number % 1000 // 10}"
