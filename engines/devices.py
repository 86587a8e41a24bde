"""Which GPUs an engine runs on, and an engine on each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from m3rt import nvidia
from m3rt.engines.replicas import LOG, Replicas, close
from m3rt.errors import ArtifactError, EngineError, InputError, M3Error, UnavailableError
from m3rt.nvidia import Gpu
from m3rt.types import Engine

ALL = "all"

Asked = Sequence[int] | str | None  # numbers, also as "0,1"; "all"; None: the first GPU


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs that were asked for, under CUDA's numbers, as CUDA_VISIBLE_DEVICES leaves them."""

    numbers: tuple[int, ...] = (0,)
    named: bool = False  # each of the numbers was asked for: on every one the engine must run
    all: bool = False  # every GPU that is there and on which the engine runs

    @classmethod
    def read(cls, asked: Asked) -> Devices:
        """Read what was asked for.

        Raises:
            InputError: it is empty, names one twice, or names none.
        """
        if asked is None:
            return cls()
        if isinstance(asked, str) and asked == ALL:
            return cls(all=True)
        expected = f"expected numbers of GPUs, as 0,1, or {ALL}"
        try:
            parts = asked.split(",") if isinstance(asked, str) else list(asked)
            numbers = tuple(int(str(part)) for part in parts)  # not 1.5, nor True
        except (TypeError, ValueError):
            raise InputError(f"devices is {asked!r}, {expected}") from None
        if not numbers or min(numbers) < 0:
            raise InputError(f"devices is {asked!r}, {expected}")
        if twice := [str(n) for n in dict.fromkeys(numbers) if numbers.count(n) > 1]:
            raise InputError(f"devices is {asked!r}, and names {', '.join(twice)} more than once")
        return cls(numbers, named=True)

    @property
    def first(self) -> Devices:
        """The first one alone."""
        return Devices(self.numbers[:1])

    def among(self, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
        """Return those that are meant.

        Args:
            gpus: all that are there.

        Raises:
            UnavailableError: one is not there.
        """
        if self.all:
            return tuple(gpus)
        there = {gpu.index: gpu for gpu in gpus}
        if absent := [str(n) for n in self.numbers if n not in there]:
            found = ", ".join(f"{n} is {gpu}" for n, gpu in there.items())
            raise UnavailableError(
                f"there is no device {' or '.join(absent)}: {found or 'there is none'}; see "
                f"{nvidia.VISIBLE}"
            )
        return tuple(there[n] for n in self.numbers)

    def open(self, name: str, load: Callable[[int], Engine]) -> Engine:
        """Open an engine on each device.

        One after the other: the library of an engine has one log for all, and the first leaves
        kernels for the next.

        Args:
            name: of the engine.
            load: opens it on a device of a number.

        Returns:
            The engine itself where there is one, else Replicas.

        Raises:
            UnavailableError: a device is not there, or the engine does not open on one that was
                named, or on none.
            ArtifactError: as for UnavailableError, where it was built for other devices.
            EngineError: as for UnavailableError, or the engines are not alike.
        """
        if not self.named and not self.all:
            return load(self.numbers[0])  # without asking the driver
        driver = nvidia.read()
        if self.all and not driver.gpus:
            raise UnavailableError(f"there is no device for {name}: {driver.why}")
        opened: dict[int, Engine] = {}
        failed: dict[int, M3Error] = {}
        try:
            for gpu in self.among(driver.gpus):
                try:
                    opened[gpu.index] = load(gpu.index)
                except (ArtifactError, EngineError, UnavailableError) as error:
                    if self.named:
                        raise type(error)(f"device {gpu.index}: {error}") from error
                    # without what the frames of its traceback hold on the device
                    failed[gpu.index] = error.with_traceback(None)
            if not opened:
                # a plan for other devices says less than why it does not open where it fits
                raise min(failed.values(), key=lambda error: isinstance(error, ArtifactError))
            if failed:
                reasons = "; ".join(f"{number}: {error}" for number, error in failed.items())
                LOG.warning("%s runs on %s alone, not on %s", name, listed(opened), reasons)
            return Replicas(opened) if len(opened) > 1 else next(iter(opened.values()))
        except BaseException:
            for engine in opened.values():
                close(engine)
            raise


FIRST = Devices()


def listed(numbers: Collection[int]) -> str:
    """Write devices as people do: device 0, or devices 0, 1."""
    names = ", ".join(map(str, numbers))
    return f"device {names}" if len(numbers) == 1 else f"devices {names}"
