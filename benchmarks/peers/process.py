"""The driver's end of a worker: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parents[2]
# no library may wait for a hub that cannot be reached, or ask one that can
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class PeerError(Exception):
    """A worker could not start, crashed, hung, or said that its library failed."""


class RefusedError(PeerError):
    """A worker said that its library failed, and goes on."""


class Worker:
    """A running worker; a context manager that ends it."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = list(command)
        self.log = log  # its standard error
        self.peak = 0  # bytes of memory, as far as it said
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Worker:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.truncate(0)
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=os.environ | OFFLINE,
                text=True,
                start_new_session=True,  # so that ending it ends its children
            )
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        if kind is None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()  # the worker ends with its input
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            PeerError: an error was the answer, or none came within so many seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(self.crash()) from error
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            PeerError: an error was the answer, or none came within so many seconds.
        """
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise PeerError(f"no answer within {seconds:.0f} s") from None
        if line is None:
            raise PeerError(self.crash())
        found: dict[str, Any] = json.loads(line)
        self.peak = max(self.peak, found.pop("peak", 0))
        if "error" in found:
            raise RefusedError(found["error"])
        return found

    def finish(self, seconds: float) -> None:
        """Wait for the process to end by itself.

        Raises:
            PeerError: it failed, or has not ended within so many seconds.
        """
        try:
            if self._process.wait(seconds):
                raise PeerError(self.crash())
        except subprocess.TimeoutExpired:
            raise PeerError(f"has not ended within {seconds:.0f} s") from None

    def crash(self) -> str:
        """Return how the process ended and the last thing it said."""
        code = self._process.wait()
        return f"ended with {code}: {last_line(self.log)}"

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put(None)


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
