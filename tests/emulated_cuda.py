"""cuda.bindings.runtime without a device, as strict as one.

Memory is real bytes at real addresses, filled with NaN where nobody wrote. A stream runs nothing
until something waits for it (or, ``restless``, whatever may run, at random moments): what lacks an
event or a wait gives garbage or breaks a rule, as on hardware.
"""

from __future__ import annotations

import functools
import itertools
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real
from numpy.typing import NDArray

OK = real.cudaError_t.cudaSuccess
Code = real.cudaError_t
POISON = 0xFF  # as float16 and float32, NaN; as int32, -1


class Violation(BaseException):
    """A rule was broken: on hardware, garbage or the end of the process. Not to be caught."""


class Failure(Exception):  # noqa: N818
    """What a function returns as its code."""

    def __init__(self, code: Any) -> None:
        super().__init__(code)
        self.code = code


class Handle:
    """A stream, event or graph, as its owner sees it."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self.numbers)

    def __int__(self) -> int:
        return self.number


class Ticket:
    """An event as it was recorded once."""

    def __init__(self, stream: StreamQueue) -> None:
        self.stream = stream
        self.done = False


class StreamQueue(Handle):
    """Work that waits for something to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.work: deque[Ticket | Callable[[], None]] = deque()  # a ticket of another: wait for it
        self.captured: list[Callable[[], None]] | None = None
        self.capturer = 0  # its thread
        self.invalid = False


class EventHandle(Handle):
    """An event."""

    ticket: Ticket | None = None


class GraphHandle(Handle):
    """A captured graph, or an instance of it."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        super().__init__()
        self.work = work


def api(values: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function return a code and values, count its calls, and fail as told."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__

        @functools.wraps(function)
        def call(self: EmulatedCuda, *args: Any) -> Any:
            with self.lock:
                try:
                    self.enter(name, args)
                    found = function(self, *args)
                except Failure as failure:
                    if failure.code.name in self.STICKY:
                        self.sticky = failure.code
                    return (failure.code, *[None] * values)
            return (OK, *(found if values > 1 else [found] * values))

        return call

    return decorate


class EmulatedCuda:
    """Stands in for the module.

    Args:
        memory: bytes of the device.
        capability: compute capability.
        restless: a seed, for streams that run on their own at random.
    """

    STICKY = frozenset({"cudaErrorIllegalAddress", "cudaErrorLaunchFailure"})
    QUIET = frozenset({"cudaGetErrorString", "cudaGetLastError", "cudaDriverGetVersion"})

    def __init__(
        self, memory: int = 1 << 30, capability: tuple[int, int] = (8, 6), restless: Any = None
    ) -> None:
        for name in (
            *("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaHostAllocDefault"),
            *("cudaEventDisableTiming", "cudaEventBlockingSync", "cudaStreamNonBlocking"),
        ):
            setattr(self, name, getattr(real, name))
        self.lock = threading.RLock()
        self.memory = memory
        self.capability = capability
        self.devices = 1
        self.sticky: Any = None
        self.calls: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()  # bytes, by name of the kind
        self.trace: list[str] = []  # calls, and what ran
        self.faults: dict[str, dict[int, Any]] = {}
        self.used = 0
        self.largest = 0  # bytes ever in use
        self.handles: dict[int, Handle] = {}
        self.blocks: dict[int, tuple[NDArray[np.uint8], bool]] = {}  # address: bytes, pinned
        self._freed: list[NDArray[np.uint8]] = []  # kept, so that no address comes again
        self._dice = None if restless is None else random.Random(restless)

    # what tests ask for

    def fail(self, function: str, code: Any, *nth: int) -> None:
        """Let calls of a function fail, counted from now."""
        start = self.calls[function]
        self.faults.setdefault(function, {}).update({start + n: code for n in nth})

    def live(self) -> int:
        """Count what was not released."""
        return len(self.blocks) + len(self.handles)

    # what the emulated library asks for

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work, or capture it."""
        queue = self.find(stream, StreamQueue)
        if queue.captured is None:
            queue.work.append(work)
        else:
            queue.captured.append(work)

    def capturing(self, stream: int) -> StreamQueue | None:
        """Return a stream that is capturing."""
        queue = self.find(stream, StreamQueue)
        return queue if queue.captured is not None else None

    def at(self, address: int, count: int, pinned: bool = False) -> NDArray[np.uint8]:
        """Return bytes, which must lie within one living allocation of that kind."""
        for start, (block, kind) in self.blocks.items():
            if start <= address and address + count <= start + len(block):
                if kind != pinned:
                    raise Violation(f"{address:#x} is {'pinned' if kind else 'device'} memory")
                return block[address - start : address - start + count]
        raise Violation(f"{count} bytes at {address:#x} are not of one living allocation")

    def find(self, handle: Any, kind: type[Any]) -> Any:
        """Return what a handle stands for."""
        found = self.handles.get(int(handle))
        if not isinstance(found, kind):
            raise Violation(f"{handle} is no living {kind.__name__}")
        return found

    def enter(self, name: str, args: tuple[Any, ...]) -> None:
        """Begin a call."""
        self.calls[name] += 1
        self.trace.append(name)
        if self.sticky and name not in self.QUIET:
            raise Failure(self.sticky)
        if name == "cudaStreamEndCapture" and self.faults.get(name):
            for queue in self._mine():
                queue.captured = None  # it ends, whatever it returns
        if code := self.faults.get(name, {}).get(self.calls[name]):
            raise Failure(code)
        if self._dice is not None and not any(self._mine()):
            for _ in range(self._dice.randrange(3)):
                self._stir(self._dice)

    def _stir(self, dice: random.Random) -> None:
        """Run one piece of work that nothing holds back."""
        ready = [
            queue
            for queue in self.handles.values()
            if isinstance(queue, StreamQueue)
            and queue.work
            and not (isinstance(queue.work[0], Ticket) and not queue.work[0].done)
        ]
        if ready:
            self._one(dice.choice(ready))

    def _one(self, queue: StreamQueue) -> None:
        work = queue.work.popleft()
        if isinstance(work, Ticket):
            self._advance(work.stream, work)
        else:
            work()

    def _advance(self, queue: StreamQueue, until: Ticket | None = None) -> None:
        """Run a stream to its end, or to an event, and what it waits for on others."""
        while queue.work and not (until and until.done):
            self._one(queue)

    def _mine(self) -> list[StreamQueue]:
        """Return the streams that this thread is capturing."""
        me = threading.get_ident()
        queues = [queue for queue in self.handles.values() if isinstance(queue, StreamQueue)]
        return [queue for queue in queues if queue.captured is not None and queue.capturer == me]

    def _unsafe(self) -> None:
        """Refuse what may not be called while this thread captures."""
        for queue in self._mine():
            queue.invalid = True
            raise Failure(Code.cudaErrorStreamCaptureUnsupported)

    def _made(self, handle: Handle) -> Handle:
        self.handles[int(handle)] = handle
        return handle

    def _end(self, handle: Any, kind: type[Any]) -> None:
        found = self.find(handle, kind)
        if isinstance(found, StreamQueue) and found.work and not self.sticky:
            raise Violation("a stream was destroyed with work in it")
        del self.handles[int(handle)]

    # the module's own functions

    @api(1)
    def cudaGetDeviceCount(self) -> int:  # noqa: N802
        if not self.devices:
            raise Failure(Code.cudaErrorNoDevice)
        return self.devices

    @api(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        major, minor = self.capability
        return SimpleNamespace(
            name=b"Emulated GPU", major=major, minor=minor, totalGlobalMem=self.memory
        )

    @api(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self.memory - self.used, self.memory

    @api(1)
    def cudaDriverGetVersion(self) -> int:  # noqa: N802
        return 12040

    @api(1)
    def cudaRuntimeGetVersion(self) -> int:  # noqa: N802
        return 13050

    @api(1)
    def cudaGetErrorString(self, code: Any) -> bytes:  # noqa: N802
        text: bytes = real.cudaGetErrorString(code)[1]
        return text

    @api()
    def cudaGetLastError(self) -> None:  # noqa: N802
        return None

    @api(1)
    def cudaMalloc(self, count: int) -> int:  # noqa: N802
        self._unsafe()
        if self.used + count > self.memory:
            raise Failure(Code.cudaErrorMemoryAllocation)
        self.used += count
        self.largest = max(self.largest, self.used)
        return self._allocate(count, pinned=False)

    @api(1)
    def cudaHostAlloc(self, count: int, flags: int) -> int:  # noqa: N802
        self._unsafe()
        return self._allocate(count, pinned=True)

    def _allocate(self, count: int, pinned: bool) -> int:
        whole = np.full(count + 256, POISON, np.uint8)
        skip = -whole.ctypes.data % 256
        block = whole[skip : skip + count]
        self.blocks[block.ctypes.data] = block, pinned
        return int(block.ctypes.data)

    @api()
    def cudaFree(self, address: int) -> None:  # noqa: N802
        self._free(address, pinned=False)

    @api()
    def cudaFreeHost(self, address: int) -> None:  # noqa: N802
        self._free(address, pinned=True)

    def _free(self, address: int, pinned: bool) -> None:
        self._unsafe()
        block, kind = self.blocks.pop(address, (None, None))
        if block is None or kind != pinned:
            raise Violation(f"{address:#x} is not to be freed so")
        block[:] = POISON
        self._freed.append(block)
        self.used -= 0 if pinned else len(block)

    @api(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:  # noqa: N802
        if flags != real.cudaStreamNonBlocking:
            raise Violation("the stream waits for the default one")
        return self._made(StreamQueue())

    @api()
    def cudaStreamDestroy(self, stream: Any) -> None:  # noqa: N802
        self._end(stream, StreamQueue)

    @api()
    def cudaStreamSynchronize(self, stream: Any) -> None:  # noqa: N802
        self._unsafe()
        queue = self.find(stream, StreamQueue)
        if queue.captured is not None:
            queue.invalid = True
            raise Failure(Code.cudaErrorStreamCaptureUnsupported)
        self._advance(queue)

    @api()
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:  # noqa: N802
        queue, ticket = self.find(stream, StreamQueue), self.find(event, EventHandle).ticket
        if queue.captured is not None:
            raise Violation("a capture waits for what is not part of it")
        if ticket is not None:
            queue.work.append(ticket)

    @api(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Handle:  # noqa: N802
        return self._made(EventHandle())

    @api()
    def cudaEventDestroy(self, event: Any) -> None:  # noqa: N802
        self._end(event, EventHandle)

    @api()
    def cudaEventRecord(self, event: Any, stream: Any) -> None:  # noqa: N802
        ticket = Ticket(self.find(stream, StreamQueue))
        self.find(event, EventHandle).ticket = ticket
        self.enqueue(stream, functools.partial(setattr, ticket, "done", True))

    @api()
    def cudaEventSynchronize(self, event: Any) -> None:  # noqa: N802
        self._unsafe()
        ticket = self.find(event, EventHandle).ticket
        if ticket is not None:
            self._advance(ticket.stream, ticket)

    @api()
    def cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, count: int, kind: Any, stream: Any
    ) -> None:
        up = kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.copied[kind.name] += count

        def copy() -> None:
            self.at(to, count, pinned=not up)[:] = self.at(source, count, pinned=up)
            self.trace.append("uploaded" if up else "downloaded")

        self.enqueue(stream, copy)

    @api()
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:  # noqa: N802
        if mode != real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise Violation("other threads could not allocate")
        queue = self.find(stream, StreamQueue)
        queue.captured, queue.capturer, queue.invalid = [], threading.get_ident(), False

    @api(1)
    def cudaStreamEndCapture(self, stream: Any) -> Handle:  # noqa: N802
        queue = self.find(stream, StreamQueue)
        if queue.captured is None:
            raise Failure(Code.cudaErrorIllegalState)
        if queue.capturer != threading.get_ident():
            raise Failure(Code.cudaErrorStreamCaptureWrongThread)
        work, queue.captured = queue.captured, None
        if queue.invalid:
            raise Failure(Code.cudaErrorStreamCaptureInvalidated)
        return self._made(GraphHandle(work))

    @api(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Handle:  # noqa: N802
        return self._made(GraphHandle(self.find(graph, GraphHandle).work))

    @api()
    def cudaGraphLaunch(self, graph: Any, stream: Any) -> None:  # noqa: N802
        for work in self.find(graph, GraphHandle).work:
            self.enqueue(stream, work)

    @api()
    def cudaGraphDestroy(self, graph: Any) -> None:  # noqa: N802
        self._end(graph, GraphHandle)

    @api()
    def cudaGraphExecDestroy(self, graph: Any) -> None:  # noqa: N802
        self._end(graph, GraphHandle)
