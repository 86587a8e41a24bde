"""A TensorRT engine on the device: its contexts, and the memory they compute in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from m3rt.engines.cuda import Cuda, Memory, OutOfMemoryError, size
from m3rt.engines.pipeline import Pipeline, Step
from m3rt.engines.slots import Layout, Slot
from m3rt.engines.trt.log import Errors
from m3rt.engines.trt.tensors import INPUTS, Tensor, places
from m3rt.errors import EngineError
from m3rt.types import Bools, Ints


class Session(Pipeline):
    """Contexts, one for each profile, that share a stream, its activations and the weights."""

    def __init__(
        self, cuda: Cuda, errors: Errors, outputs: Sequence[Tensor], slots: int, graphs: bool
    ) -> None:
        super().__init__(cuda, slots, graphs)
        self._errors = errors
        self._outputs = tuple(outputs)
        self.before_release: Callable[[], None] | None = None
        self._held: list[Any] = []  # each depends on those before it
        self._contexts: list[Any] = []
        self._context: Any = None  # that was prepared last
        self._activations = Memory(cuda)

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
    ) -> Layout:
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
        layout = places((*INPUTS, *self._outputs), *ids.shape)
        inputs = {"input_ids": ids, "attention_mask": mask}
        self.send(slot, Step((index, *ids.shape), ids.size, layout, inputs), wanted)
        return layout

    def _prepare(self, slot: Slot, step: Step) -> None:
        """Give a context its shapes and addresses."""
        index, *shape = step.key
        with self._library():
            self._context = context = self._contexts[index]
            for tensor in INPUTS:
                if not context.set_input_shape(tensor.name, tuple(shape)):
                    raise self._failure(f"shape {tuple(shape)} of {tensor.name}")
            needed = int(context.update_device_memory_size_for_shapes())
            if needed <= 0:  # so it says that it cannot tell
                raise self._failure(f"no memory size for {tuple(shape)}")
            if not self._activations.holds(needed):
                self._compute.synchronize()  # steps before this one use it
                self._graphs.clear()
                self._activations.ensure(needed)
            context.set_device_memory(self._activations.address, self._activations.bytes)
            for name, address in slot.addresses(step.layout).items():
                if not context.set_tensor_address(name, address):
                    raise self._failure(f"address of {name}")
            if lacking := context.infer_shapes():
                raise self._failure(f"not enough is known of {', '.join(lacking)}")
            for tensor in self._outputs:  # a larger one would write over its neighbours
                found, place = (
                    tuple(context.get_tensor_shape(tensor.name)),
                    step.layout[tensor.name],
                )
                if found != place.shape:
                    raise self._failure(f"{tensor.name} is {found}, not {place.shape}")

    def _execute(self) -> None:
        with self._library():
            if not self._context.execute_async_v3(int(self._compute.handle)):
                raise self._failure("execution")

    def _discard(self) -> None:
        self._errors.take()

    def _end(self) -> None:
        if self.before_release is not None:
            with contextlib.suppress(Exception):
                self.before_release()
        self._context = None
        self._contexts.clear()
        while self._held:
            self._held.pop()
        self._activations.release()

    def _failure(self, said: str) -> EngineError:
        """Return the error for a call of TensorRT that failed, with the reason it logged."""
        self._compute.synchronize()  # raises if the device was lost
        said = f"TensorRT failed: {said}: {self._errors.take()}"
        if "out of memory" in said.lower():
            return OutOfMemoryError(f"{said}; {size(self.cuda.free())} are free")
        return EngineError(said)
