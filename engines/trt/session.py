"""A TensorRT engine on the device: its contexts, and the streams that feed them."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from m3rt.engines.cuda import Cuda, Graph, Memory, OutOfMemoryError, Stream, size
from m3rt.engines.trt.log import Errors
from m3rt.engines.trt.slots import INPUTS, Place, Slot, Tensor, places
from m3rt.errors import EngineError, M3Error
from m3rt.types import Bools, Ints

# Up to so many tokens a step is so short that starting its kernels one by one may take longer
# than running them; a graph starts all at once.
GRAPH_TOKENS = 1024
GRAPHS = 64  # each takes some memory on the device

# At exit a daemon thread may hold a lock or a slot for ever: after so many seconds go on without.
PATIENCE = 10.0

Key = tuple[Slot, int, int, int]  # slot, profile, texts, width: all that addresses depend on


class Graphs:
    """CUDA graphs of small steps; those not used for longest go first."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self._kept: OrderedDict[Key, Graph | None] = OrderedDict()  # None: it ran once

    def find(self, key: Key) -> Graph | None:
        """Return the graph of a step."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def due(self, key: Key) -> bool:
        """Whether to capture a step: the first time, the library still allocates and chooses."""
        _, _, texts, width = key
        return self.on and texts * width <= GRAPH_TOKENS and key in self._kept

    def keep(self, key: Key, graph: Graph | None) -> None:
        """Remember that a step ran, or its graph."""
        _, _, texts, width = key
        if not self.on or texts * width > GRAPH_TOKENS:
            return
        self._kept[key] = graph
        if len(self._kept) > GRAPHS:
            _, oldest = self._kept.popitem(last=False)
            if oldest is not None:
                oldest.release()

    def clear(self) -> None:
        """Forget all, for memory that they use moves."""
        for graph in self._kept.values():
            if graph is not None:
                graph.release()
        self._kept.clear()

    def stop(self) -> None:
        """Do without from now on."""
        self.clear()
        self.on = False


class Session:
    """Contexts, one for each profile, that share a stream, its activations and the weights.

    Copies have streams of their own, so that those of one slot run while another computes. The
    device does all computing in the order of one stream: so one memory for activations is enough.
    """

    def __init__(
        self,
        cuda: Cuda,
        errors: Errors,
        outputs: Sequence[Tensor],
        slots: int,
        graphs: bool,
    ) -> None:
        self.cuda = cuda
        self._errors = errors
        self._outputs = tuple(outputs)
        self._lock = threading.Lock()
        self._closed = False
        self.before_release: Callable[[], None] | None = None
        self._held: list[Any] = []  # each depends on those before it
        self._contexts: list[Any] = []
        self._graphs = Graphs(graphs)
        self._activations = Memory(cuda)
        self._streams = [Stream(cuda) for _ in range(3)]
        self._upload, self._compute, self._download = self._streams
        self.slots = [Slot(cuda) for _ in range(slots)]

    def open(self, held: Iterable[Any], contexts: Iterable[Any]) -> None:
        """Take contexts, one for each profile.

        Args:
            held: what they need alive; each depends on those before it.
            contexts: in the order of the profiles.

        Raises:
            EngineError: a context cannot be had.
        """
        self._held.extend(held)
        with self._library():
            for index, context in enumerate(contexts):
                if context is None:
                    raise self._failure(f"no context for profile {index}")
                self._contexts.append(context)
                if not context.set_optimization_profile_async(index, int(self._compute.handle)):
                    raise self._failure(f"profile {index} cannot be set")
        self._compute.synchronize()

    def enqueue(
        self, slot: Slot, index: int, ids: Ints, mask: Bools, wanted: Collection[str]
    ) -> dict[str, Place]:
        """Send a batch through the device.

        Args:
            slot: lent to the caller, who waits for its ``downloaded``.
            index: of the profile.
            ids: (texts, width).
            mask: likewise.
            wanted: names of the outputs to copy to the host.

        Returns:
            Where the outputs will be in the slot.

        Raises:
            OutOfMemoryError: the batch does not fit.
            EngineError: CUDA or TensorRT failed. Drain before the slot is used again.
        """
        texts, width = ids.shape
        layout = places((*INPUTS, *self._outputs), texts, width)
        with self._lock:
            self.cuda.check()
            if self._closed:
                raise EngineError("the engine was closed")
            self._reserve(slot, layout, wanted)
            slot.array(layout["input_ids"])[:] = ids
            slot.array(layout["attention_mask"])[:] = mask
            end = layout["attention_mask"].end  # inputs come first: one copy for both
            self._upload.upload(slot.device.address, slot.host.address, end)
            self._upload.record(slot.uploaded)
            self._compute.after(slot.uploaded)
            self._run(slot, index, layout)
            self._compute.record(slot.computed)
            self._download.after(slot.computed)
            for name in wanted:
                start = layout[name].start
                to, source = slot.host.address + start, slot.device.address + start
                self._download.download(to, source, layout[name].bytes)
            self._download.record(slot.downloaded)
        return layout

    def drain(self) -> None:
        """Wait until the device has nothing to do, whatever comes of it."""
        with self._lock:
            if not self._closed:
                for stream in self._streams:
                    stream.drain()

    def release(self) -> None:
        """Give everything back, what depends on other things first. Never raises.

        Callers have left; at exit some may be stuck.
        """
        locked = self._lock.acquire(timeout=PATIENCE)
        try:
            if self._closed:
                return
            self._closed = True
            for stream in self._streams:
                stream.drain()
            if self.before_release is not None:
                with contextlib.suppress(Exception):
                    self.before_release()
            self._graphs.stop()
            self._contexts.clear()
            while self._held:
                self._held.pop()
            parts: list[Slot | Memory | Stream] = [*self.slots, self._activations, *self._streams]
            for part in parts:
                part.release()
        finally:
            if locked:
                self._lock.release()

    def _reserve(self, slot: Slot, layout: dict[str, Place], wanted: Collection[str]) -> None:
        """Make a slot large enough; its last user waited, so nothing is using it."""
        room = max(place.end for place in layout.values())
        if not slot.device.holds(room):
            self._graphs.clear()
            slot.device.ensure(room)
        last_input = layout[INPUTS[-1].name].end
        slot.host.ensure(max([last_input, *(layout[name].end for name in wanted)]))

    def _run(self, slot: Slot, index: int, layout: dict[str, Place]) -> None:
        """Queue the network itself."""
        texts, width = layout["input_ids"].shape
        key = (slot, index, texts, width)
        graph = self._graphs.find(key)
        if graph is None:
            context = self._contexts[index]
            with self._library():
                self._prepare(context, slot, layout)
                if self._graphs.due(key):
                    graph = self._capture(context)
                if graph is None and not self._execute(context):
                    raise self._failure("execution")
            self._graphs.keep(key, graph)
        if graph is not None:
            self._compute.launch(graph)

    def _prepare(self, context: Any, slot: Slot, layout: dict[str, Place]) -> None:
        """Give a context its shapes and addresses."""
        for tensor in INPUTS:
            if not context.set_input_shape(tensor.name, layout[tensor.name].shape):
                raise self._failure(f"shape {layout[tensor.name].shape} of {tensor.name}")
        needed = int(context.update_device_memory_size_for_shapes())
        if needed <= 0:  # so it says that it cannot tell
            raise self._failure(f"no memory size for {layout[INPUTS[0].name].shape}")
        if not self._activations.holds(needed):
            self._compute.synchronize()  # steps before this one use it
            self._graphs.clear()
            self._activations.ensure(needed)
        context.set_device_memory(self._activations.address, self._activations.bytes)
        for name, address in slot.addresses(layout).items():
            if not context.set_tensor_address(name, address):
                raise self._failure(f"address of {name}")
        if lacking := context.infer_shapes():
            raise self._failure(f"not enough is known of {', '.join(lacking)}")
        for tensor in self._outputs:  # a larger one would write over its neighbours
            found = tuple(context.get_tensor_shape(tensor.name))
            if found != layout[tensor.name].shape:
                raise self._failure(f"{tensor.name} is {found}, not {layout[tensor.name].shape}")

    def _execute(self, context: Any) -> bool:
        return bool(context.execute_async_v3(int(self._compute.handle)))

    def _capture(self, context: Any) -> Graph | None:
        """Capture a step; where that cannot be done, do without graphs."""
        graph = None
        try:
            with contextlib.suppress(Exception):
                self._compute.begin_capture()
                if self._execute(context):
                    graph = self._compute.end_capture()
        finally:  # an interrupted one, too, must not leave the stream capturing
            if graph is None:
                self._compute.abandon_capture()
                self._graphs.stop()
                self._errors.take()
        return graph

    @contextlib.contextmanager
    def _library(self) -> Iterator[None]:
        """Turn what TensorRT raises into our error."""
        try:
            yield
        except M3Error:
            raise
        except Exception as error:  # the binding has no common class for its errors
            raise self._failure(str(error)) from error

    def _failure(self, what: str) -> EngineError:
        """Return the error for a call of TensorRT that failed, with the reason it logged."""
        self._compute.synchronize()  # raises if the device was lost
        said = f"TensorRT failed: {what}: {self._errors.take()}"
        if "out of memory" in said.lower():
            return OutOfMemoryError(f"{said}; {size(self.cuda.free())} are free")
        return EngineError(said)
