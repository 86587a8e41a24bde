"""cuda.bindings.runtime without a device, as strict as one.

Memory is real bytes at real addresses, filled with NaN where nobody wrote. A stream runs nothing
until something waits for it (or, ``restless``, whatever may run, at random moments): what lacks an
event or a wait gives garbage or breaks a rule, as on hardware. Of several devices, each has memory
and errors of its own, and a thread works on the one that it last set.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass
class Card:
    """One device."""

    memory: int  # bytes
    capability: tuple[int, int]
    used: int = 0
    largest: int = 0  # bytes ever in use
    sticky: Any = None  # the error it gives ever after


class Handle:
    """A stream, event or graph, as its owner sees it."""

    numbers = itertools.count(1)

    def __init__(self, device: int) -> None:
        self.number = next(self.numbers)
        self.device = device

    def __int__(self) -> int:
        return self.number


class Ticket:
    """An event as it was recorded once."""

    def __init__(self, stream: StreamQueue) -> None:
        self.stream = stream
        self.done = False


class StreamQueue(Handle):
    """Work that waits for something to wait for it."""

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.work: deque[Ticket | Callable[[], None]] = deque()  # a ticket of another: wait for it
        self.captured: list[Callable[[], None]] | None = None
        self.capturer = 0  # its thread
        self.invalid = False


class EventHandle(Handle):
    """An event."""

    ticket: Ticket | None = None


class GraphHandle(Handle):
    """A captured graph, or an instance of it."""

    def __init__(self, device: int, work: list[Callable[[], None]]) -> None:
        super().__init__(device)
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
                    return (failure.code, *[None] * values)
            return (OK, *(found if values > 1 else [found] * values))

        return call

    return decorate


def of_first(name: str) -> Any:
    """Make a field of the first device an attribute of the module."""

    def get(self: EmulatedCuda) -> Any:
        return getattr(self.cards[0], name)

    def put(self: EmulatedCuda, value: Any) -> None:
        setattr(self.cards[0], name, value)

    return property(get, put)


class EmulatedCuda:
    """Stands in for the module.

    Args:
        memory: bytes of each device.
        capability: compute capability of each device.
        restless: a seed, for streams that run on their own at random.
        devices: how many there are.

    Attributes:
        memory, capability, used, largest, sticky: of device 0; of others, see cards.
        contagious: whether a device that is lost takes the others with it.
    """

    STICKY = frozenset({"cudaErrorIllegalAddress", "cudaErrorLaunchFailure"})
    QUIET = frozenset({"cudaGetErrorString", "cudaGetLastError", "cudaDriverGetVersion"})

    memory, capability, used, largest, sticky = map(
        of_first, ("memory", "capability", "used", "largest", "sticky")
    )

    def __init__(
        self,
        memory: int = 1 << 30,
        capability: tuple[int, int] = (8, 6),
        restless: Any = None,
        devices: int = 1,
    ) -> None:
        for name in (
            *("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaHostAllocDefault"),
            *("cudaEventDisableTiming", "cudaEventBlockingSync", "cudaStreamNonBlocking"),
        ):
            setattr(self, name, getattr(real, name))
        self.lock = threading.RLock()
        self.cards = [Card(memory, capability) for _ in range(devices)]
        self.devices = devices  # that are found
        self.contagious = False
        self._current = threading.local()  # device, by thread
        self.calls: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()  # bytes, by name of the kind
        self.trace: list[str] = []  # calls, and what ran
        self.faults: dict[str, dict[int, Any]] = {}
        self.handles: dict[int, Handle] = {}
        # address: bytes, and the device; None: pinned, for all of them
        self.blocks: dict[int, tuple[NDArray[np.uint8], int | None]] = {}
        self._pages: dict[int, mmap.mmap] = {}  # freed ones, too, so that no address comes again
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

    def device(self) -> int:
        """Return this thread's device."""
        return getattr(self._current, "device", 0)

    def card(self) -> Card:
        """Return it."""
        return self.cards[self.device()]

    def lose(self, device: int, code: Any) -> None:
        """Let a device be lost, with all that waits on it."""
        for number in range(len(self.cards)) if self.contagious else (device,):
            self.cards[number].sticky = self.cards[number].sticky or code
            for queue in self.handles.values():
                if isinstance(queue, StreamQueue) and queue.device == number:
                    queue.work.clear()

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work, or capture it."""
        queue = self.find(stream, StreamQueue)
        if queue.device != self.device():
            raise Violation(f"the stream is of device {queue.device}, not {self.device()}")
        if queue.captured is None:
            queue.work.append(work)
        else:
            queue.captured.append(work)

    def capturing(self, stream: int) -> StreamQueue | None:
        """Return a stream that is capturing."""
        queue = self.find(stream, StreamQueue)
        return queue if queue.captured is not None else None

    def at(self, address: int, count: int, device: int | None) -> NDArray[np.uint8]:
        """Return bytes of a device (None: pinned), which must lie within one living allocation."""
        for start, (block, owner) in self.blocks.items():
            if start <= address and address + count <= start + len(block):
                if owner != device:
                    kind = "pinned" if owner is None else "device"
                    raise Violation(f"{address:#x} is {kind} memory of {owner}, not of {device}")
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
        for number in () if name in self.QUIET else self._meant(name, args):
            if code := self.cards[number].sticky:
                raise Failure(code)
        if name == "cudaStreamEndCapture" and self.faults.get(name):
            for queue in self._mine():
                queue.captured = None  # it ends, whatever it returns
        if code := self.faults.get(name, {}).get(self.calls[name]):
            if code.name in self.STICKY:
                self.lose(self.device(), code)
            raise Failure(code)
        if self._dice is not None and not any(self._mine()):
            for _ in range(self._dice.randrange(3)):
                self._stir(self._dice)

    def _meant(self, name: str, args: tuple[Any, ...]) -> set[int]:
        """Return the devices that a call has to do with."""
        if name in ("cudaSetDevice", "cudaGetDeviceProperties"):
            return {args[0]} & set(range(len(self.cards)))
        if name in ("cudaFree", "cudaFreeHost"):
            _, owner = self.blocks.get(args[0], (None, None))
            return {self.device() if owner is None else owner}
        of_handles = {arg.device for arg in args if isinstance(arg, Handle)}
        return of_handles or {self.device()}

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
            with contextlib.suppress(Failure):  # who comes back to the device is told
                self._one(dice.choice(ready))

    def _one(self, queue: StreamQueue) -> None:
        work = queue.work.popleft()
        if isinstance(work, Ticket):
            self._advance(work.stream, work)
            return
        try:
            work()
        except Failure as failure:
            if failure.code.name in self.STICKY:
                self.lose(queue.device, failure.code)
            raise

    def _advance(self, queue: StreamQueue, until: Ticket | None = None) -> None:
        """Run a stream to its end, or to an event, and what it waits for on others."""
        while queue.work and not (until and until.done):
            self._one(queue)
        if code := self.cards[queue.device].sticky:
            raise Failure(code)

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
        if isinstance(found, StreamQueue) and found.work:
            raise Violation("a stream was destroyed with work in it")
        del self.handles[int(handle)]

    # the module's own functions

    @api(1)
    def cudaGetDeviceCount(self) -> int:  # noqa: N802
        if not self.devices:
            raise Failure(Code.cudaErrorNoDevice)
        return self.devices

    @api(1)
    def cudaGetDevice(self) -> int:  # noqa: N802
        return self.device()

    @api()
    def cudaSetDevice(self, device: int) -> None:  # noqa: N802
        if not 0 <= device < self.devices:
            raise Failure(Code.cudaErrorInvalidDevice)
        self._current.device = device

    @api(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        card = self.cards[device]
        major, minor = card.capability
        return SimpleNamespace(
            name=b"Emulated GPU", major=major, minor=minor, totalGlobalMem=card.memory
        )

    @api(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self.card().memory - self.card().used, self.card().memory

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
        card = self.card()
        if card.used + count > card.memory:
            raise Failure(Code.cudaErrorMemoryAllocation)
        card.used += count
        card.largest = max(card.largest, card.used)
        return self._allocate(count, self.device())

    @api(1)
    def cudaHostAlloc(self, count: int, flags: int) -> int:  # noqa: N802
        self._unsafe()
        return self._allocate(count, None)

    def _allocate(self, count: int, device: int | None) -> int:
        pages = mmap.mmap(-1, max(1, count))
        block = np.frombuffer(pages, np.uint8)[:count]
        block[:] = POISON
        self.blocks[block.ctypes.data] = block, device
        self._pages[block.ctypes.data] = pages
        return int(block.ctypes.data)

    @api()
    def cudaFree(self, address: int) -> None:  # noqa: N802
        self._free(address, pinned=False)

    @api()
    def cudaFreeHost(self, address: int) -> None:  # noqa: N802
        self._free(address, pinned=True)

    def _free(self, address: int, pinned: bool) -> None:
        self._unsafe()
        block, owner = self.blocks.pop(address, (None, None))
        if block is None or (owner is None) != pinned:
            raise Violation(f"{address:#x} is not to be freed so")
        # the machine has its memory back, but nobody the address
        self._pages[address].madvise(mmap.MADV_DONTNEED)
        if owner is not None:
            self.cards[owner].used -= len(block)

    @api(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:  # noqa: N802
        if flags != real.cudaStreamNonBlocking:
            raise Violation("the stream waits for the default one")
        return self._made(StreamQueue(self.device()))

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
        return self._made(EventHandle(self.device()))

    @api()
    def cudaEventDestroy(self, event: Any) -> None:  # noqa: N802
        self._end(event, EventHandle)

    @api()
    def cudaEventRecord(self, event: Any, stream: Any) -> None:  # noqa: N802
        ticket = Ticket(self.find(stream, StreamQueue))
        self.find(event, EventHandle).ticket = ticket
        queue = self.find(stream, StreamQueue)
        if queue.device != self.find(event, EventHandle).device:
            raise Failure(Code.cudaErrorInvalidResourceHandle)
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

        device = self.find(stream, StreamQueue).device

        def copy() -> None:
            target, found = (device, None) if up else (None, device)
            self.at(to, count, target)[:] = self.at(source, count, found)
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
        return self._made(GraphHandle(queue.device, work))

    @api(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Handle:  # noqa: N802
        found = self.find(graph, GraphHandle)
        return self._made(GraphHandle(found.device, found.work))

    @api()
    def cudaGraphLaunch(self, graph: Any, stream: Any) -> None:  # noqa: N802
        found = self.find(graph, GraphHandle)
        if found.device != self.find(stream, StreamQueue).device:
            raise Violation(f"the graph is of device {found.device}")
        for work in found.work:
            self.enqueue(stream, work)

    @api()
    def cudaGraphDestroy(self, graph: Any) -> None:  # noqa: N802
        self._end(graph, GraphHandle)

    @api()
    def cudaGraphExecDestroy(self, graph: Any) -> None:  # noqa: N802
        self._end(graph, GraphHandle)
