"""Batches to a network on the device and back, one copied while another computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from m3rt.engines.cuda import Cuda, Graph, Stream
from m3rt.engines.graphs import Graphs
from m3rt.engines.slots import Layout, Slot
from m3rt.errors import EngineError, M3Error

# At exit a daemon thread may hold a lock or a slot for ever: after so many seconds go on without.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One run of the network."""

    key: tuple[int, ...]  # with the slot, all that addresses and shapes depend on
    tokens: int  # that are computed, padding included
    layout: Layout  # inputs first
    inputs: Mapping[str, NDArray[Any]]  # by name, in this order
    host: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # those that stay on the host


class Pipeline(ABC):
    """Streams and slots, and a network that runs between them.

    Copies have streams of their own, so that those of one slot run while another computes. The
    device does all computing in the order of one stream: so one memory for activations is enough.
    """

    def __init__(self, cuda: Cuda, slots: int, graphs: bool) -> None:
        self.cuda = cuda
        self._lock = threading.Lock()
        self._closed = False
        self._graphs = Graphs(graphs)
        self._streams = [Stream(cuda) for _ in range(3)]
        self._upload, self._compute, self._download = self._streams
        self.slots = [Slot(cuda) for _ in range(slots)]
        # the last one back goes out first: a lone caller meets the graphs of its own last step
        self._idle: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in self.slots:
            self._idle.put(slot)

    @abstractmethod
    def _prepare(self, slot: Slot, step: Step) -> None:
        """Give the network its shapes and addresses."""

    @abstractmethod
    def _execute(self) -> None:
        """Queue what was prepared on the stream that computes.

        Raises:
            EngineError: the library failed.
        """

    @abstractmethod
    def _end(self) -> None:
        """Give back all that the network holds; never raises. The device is idle."""

    @abstractmethod
    def _failure(self, said: str) -> EngineError:
        """Return the error for what the library raised; raises if the device was lost."""

    @abstractmethod
    def _discard(self) -> None:
        """Forget what the library said of a capture that failed."""

    def send(self, slot: Slot, step: Step, wanted: Collection[str]) -> None:
        """Send a batch through the device.

        Args:
            slot: lent to the caller, who waits for its ``downloaded``.
            step: what to run.
            wanted: names of the outputs to copy to the host.

        Raises:
            OutOfMemoryError: the batch does not fit.
            EngineError: CUDA or the library failed. Drain before the slot is used again.
        """
        layout = step.layout
        with self._lock:
            self.cuda.check()
            if self._closed:
                raise EngineError("the engine was closed")
            self.cuda.use()
            self._reserve(slot, step, wanted)
            for name, array in step.inputs.items():
                slot.array(layout[name])[...] = array
            end = max(layout[name].end for name in step.inputs)  # one copy for all
            self._upload.upload(slot.device.address, slot.host.address, end)
            self._upload.record(slot.uploaded)
            self._compute.after(slot.uploaded)
            self._run(slot, step)
            self._compute.record(slot.computed)
            self._download.after(slot.computed)
            for name in wanted:
                start = layout[name].start
                to, source = slot.host.address + start, slot.device.address + start
                self._download.download(to, source, layout[name].bytes)
            self._download.record(slot.downloaded)

    def reserve(self, room: int) -> None:
        """Make every slot so many bytes large: one that grows later, costs all graphs.

        Raises:
            OutOfMemoryError: they do not fit.
        """
        with self._lock:
            self.cuda.use()
            self._graphs.clear()
            for slot in self.slots:
                slot.device.ensure(room)
                slot.host.ensure(room)

    @contextlib.contextmanager
    def lend(self) -> Iterator[Slot]:
        """Lend a slot; callers beyond their number wait."""
        slot = self._idle.get()
        try:
            yield slot
        except BaseException:
            self.drain()  # its next user must find it idle
            raise
        finally:
            self._idle.put(slot)

    def drain(self) -> None:
        """Wait until the device has nothing to do, whatever comes of it."""
        with self._lock:
            if not self._closed:
                for stream in self._streams:
                    stream.drain()

    def close(self) -> None:
        """Give everything back, when callers have brought back their slots."""
        back = []
        with contextlib.suppress(queue.Empty):
            for _ in self.slots:
                back.append(self._idle.get(timeout=PATIENCE))
        self.release()
        for slot in back:
            self._idle.put(slot)  # who comes later is told that it was closed, and does not wait

    def release(self) -> None:
        """Give everything back, what depends on other things first. Never raises.

        Callers have left; at exit some may be stuck.
        """
        locked = self._lock.acquire(timeout=PATIENCE)
        try:
            if self._closed:
                return
            self._closed = True
            with self.cuda.borrow():
                for stream in self._streams:
                    stream.drain()
                self._graphs.stop()
                self._end()
                parts: list[Slot | Stream] = [*self.slots, *self._streams]
                for part in parts:
                    part.release()
        finally:
            if locked:
                self._lock.release()

    @contextlib.contextmanager
    def _library(self) -> Iterator[None]:
        """Turn what the library raises into our error."""
        try:
            yield
        except M3Error:
            raise
        except Exception as error:  # the bindings have no common class for their errors
            raise self._failure(str(error)) from error

    def _reserve(self, slot: Slot, step: Step, wanted: Collection[str]) -> None:
        """Make a slot large enough; its last user waited, so nothing is using it."""
        layout = step.layout
        room = max(place.end for place in layout.values())
        if not slot.device.holds(room):
            self._graphs.clear()
            slot.device.ensure(room)
        slot.host.ensure(max(layout[name].end for name in (*step.inputs, *wanted)))

    def _run(self, slot: Slot, step: Step) -> None:
        """Queue the network itself."""
        key = (slot, step.key)
        graph = self._graphs.find(key)
        if graph is None:
            self._prepare(slot, step)
            if self._graphs.due(key):
                graph = self._capture()
            if graph is None:
                self._execute()
            self._graphs.keep(key, step.tokens, graph)
        if graph is not None:
            self._compute.launch(graph)

    def _capture(self) -> Graph | None:
        """Capture a step; where that cannot be done, do without graphs."""
        graph = None
        try:
            with contextlib.suppress(Exception):
                self._compute.begin_capture()
                self._execute()
                graph = self._compute.end_capture()
        finally:  # an interrupted one, too, must not leave the stream capturing
            if graph is None:
                self._compute.abandon_capture()
                self._graphs.stop()
                self._discard()
        return graph
