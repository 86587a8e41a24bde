"""One engine on several devices: a copy of it on each, behind one queue.

All in one process: what a device gives is the caller's array, and goes through no pipe.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from m3rt.engines.faults import DeviceLostError
from m3rt.errors import EngineError
from m3rt.types import Batch, Engine, Heads, Limits, Raw

LOG = logging.getLogger("m3rt.devices")  # what m3rt says of texts is placed in their file


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """An engine on a device."""

    device: int
    engine: Engine


class Replicas:
    """Engines that are alike, each on a device of its own, as one engine.

    A batch goes to whichever has a place first. A device that is lost is left out from then on,
    and its batches run on the others; when the last one is lost, its error is the caller's.

    Args:
        engines: by the number of the device; two or more.

    Raises:
        EngineError: they are not alike.
    """

    def __init__(self, engines: Mapping[int, Engine]) -> None:
        first, *others = (Replica(*both) for both in engines.items())
        for other in others:
            if found := difference(first, other):
                raise EngineError(f"{found}: choose devices that are alike")
        self._all = (first, *others)
        self._alive = self._all  # replaced, never written in
        self._lock = threading.Lock()
        self._idle: queue.SimpleQueue[Replica] = queue.SimpleQueue()
        places = [[one] * one.engine.limits.parallel for one in self._all]
        for turn in zip_longest(*places):  # each device one, before any gets its second
            for place in filter(None, turn):
                self._idle.put(place)
        self.name = first.engine.name
        parallel = sum(map(len, places))
        self.limits: Limits = dataclasses.replace(first.engine.limits, parallel=parallel)

    @property
    def devices(self) -> tuple[int, ...]:
        """The numbers of the devices that are in use."""
        return tuple(one.device for one in self._alive)

    @property
    def recomputed(self) -> int:
        """The texts so far that fallbacks of the engines computed again."""
        return sum(getattr(one.engine, "recomputed", 0) for one in self._all)

    def run(self, batch: Batch, heads: Heads) -> Raw:
        """Compute the heads asked for; callers beyond the number of places wait.

        Raises:
            DeviceLostError: the last device was lost.
            EngineError: an engine failed for another reason; no other tries again.
        """
        while True:
            place = self._idle.get()
            if place not in self._alive:
                continue  # a place of a device that is lost is not put back
            try:
                return place.engine.run(batch, heads)
            except DeviceLostError as error:
                if not self._others(place, error):
                    raise
            finally:
                # the last device keeps its places, lost or not: nobody waits for ever
                if place in self._alive:
                    self._idle.put(place)

    def warm_up(self) -> None:
        """Let each engine load its kernels."""
        for one in self._alive:
            if warm_up := getattr(one.engine, "warm_up", None):
                warm_up()

    def close(self) -> None:
        """Give back the devices' memory; no engine runs any more."""
        for one in self._all:
            close(one.engine)

    def _others(self, lost: Replica, error: DeviceLostError) -> bool:
        """Leave a device out, and say so once; return whether there are others."""
        with self._lock:
            if lost not in self._alive:
                return True  # another batch of it was first
            if len(self._alive) == 1:
                return False
            self._alive = tuple(one for one in self._alive if one is not lost)
        left = ", ".join(map(str, self.devices))
        LOG.warning(
            "device %d is left out, %s has %s left: %s", lost.device, self.name, left, error
        )
        return True


def close(engine: Engine) -> None:
    """Close an engine, if it is of those that can be."""
    if end := getattr(engine, "close", None):
        end()


def difference(one: Replica, other: Replica) -> str:
    """Say in what two engines differ; nothing where they are alike."""
    pairs = {"name": (one.engine.name, other.engine.name)}
    for field in dataclasses.fields(Limits):
        if field.name != "parallel":
            pairs[field.name] = tuple(getattr(e.engine.limits, field.name) for e in (one, other))
    for name, (left, right) in pairs.items():
        if left != right:
            return f"{name} is {left} on device {one.device}, {right} on device {other.device}"
    return ""
