"""Workers that stay, and take turns: starting one takes longer than most of what is measured."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from benchmarks.gpu.contenders import Entry
from benchmarks.gpu.nvml import Nvml, Watch
from benchmarks.peers.course import Course, command, log
from benchmarks.peers.process import PeerError, RefusedError, Worker

FULL = 0.6  # of the device's memory in use after a turn: whoever had it is ended
GRACE = 3.0  # seconds that are left for writing
STRIKES = 2  # crashes, until a contender is not started again in this call


class OutOfTimeError(Exception):
    """The time of this call is over; another one goes on."""


class Deadline:
    """The end of this call."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left to work in."""
        return self._end - time.monotonic() - GRACE

    def require(self, seconds: float) -> float:
        """Return the seconds that are left.

        Raises:
            OutOfTimeError: they are fewer than these.
        """
        left = self.left()
        if left < seconds:
            raise OutOfTimeError(f"{left:.0f} s are left")
        return left


class Session:
    """The workers of one call; a context manager that ends them."""

    def __init__(self, course: Course, deadline: Deadline, nvml: Nvml | None, start: float) -> None:
        self.course = course
        self.deadline = deadline
        self._start = start  # seconds that starting a worker may take: with fewer none is started
        self._nvml = nvml
        self._idle = self._used()  # bytes, before any worker
        self._alive: dict[str, Worker] = {}
        self._held: dict[str, int] = {}  # bytes of the device that a resting worker has
        self._strikes: dict[str, int] = {}
        self.ready: dict[str, dict[str, Any]] = {}  # what each said when it was loaded

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._alive):
            self.end(name)

    def given_up(self, entry: Entry) -> bool:
        """Whether it has crashed too often to be started again."""
        return self._strikes.get(entry.name, 0) >= STRIKES

    def ask(self, entry: Entry, requests: list[dict[str, Any]]) -> tuple[dict[str, Any], int, int]:
        """Let a contender answer requests in its turn, and rest.

        Returns:
            Its last answer; the most bytes of the device, and of the host, that it had.

        Raises:
            PeerError: it failed; it is still there only if this is a RefusedError.
            OutOfTimeError: the time is over.
        """
        try:
            return self._turn(entry, requests)
        except PeerError as error:
            if "memory" not in str(error) or not set(self._alive) - {entry.name}:
                raise
        # others that rest held some of it: once more, alone
        for name in list(self._alive):
            self.end(name)
        return self._turn(entry, requests)

    def end(self, name: str) -> None:
        """End a worker."""
        self._held.pop(name, None)
        # no answer is under way: its input is closed, and it is killed if it stays
        self._alive.pop(name).__exit__(None, None, None)

    def _turn(
        self, entry: Entry, requests: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], int, int]:
        with Watch(self._nvml) as watch:
            try:
                worker = self._alive.get(entry.name) or self._begin(entry)
                answer: dict[str, Any] = {}
                for request in requests:
                    answer = self._answer(entry, worker, request)
                most = worker.peak
                self._answer(entry, worker, {"do": "rest"})
            except RefusedError:
                raise
            except PeerError as error:
                self._kill(entry.name)
                if self.deadline.left() <= 0:
                    raise OutOfTimeError("in the middle of a turn") from error
                self._strikes[entry.name] = self._strikes.get(entry.name, 0) + 1
                raise
        others = sum(held for name, held in self._held.items() if name != entry.name)
        used = watch.most - others - self._idle
        self._held[entry.name] = max(0, self._used() - others - self._idle)
        if self._nvml and self._used() > FULL * self._nvml.memory()[1]:
            self.end(entry.name)
        return answer, max(0, used), most

    def _begin(self, entry: Entry) -> Worker:
        self.deadline.require(self._start)
        contender = entry.contender
        if contender.worker.endswith("sentence_transformers"):
            line = [*command(contender, self.course), "--prepare"]
            with Worker(line, log(contender, self.course)) as preparing:
                preparing.finish(self.deadline.require(self._start))
        worker = Worker(command(contender, self.course), log(contender, self.course)).__enter__()
        self._alive[entry.name] = worker
        patience = min(contender.patience, self.deadline.left())
        self.ready[entry.name] = worker.answer(patience)
        return worker

    def _answer(self, entry: Entry, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
        left = self.deadline.require(0)
        return worker.ask(min(entry.contender.patience, left), **request)

    def _kill(self, name: str) -> None:
        self._held.pop(name, None)
        if worker := self._alive.pop(name, None):
            worker.__exit__(PeerError, None, None)

    def _used(self) -> int:
        return self._nvml.memory()[0] if self._nvml else 0
