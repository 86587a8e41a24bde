"""The asking end of a benchmark: starts a process that measures, asks it, and ends it."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from m3rt.errors import EngineError

PATIENCE = 1800.0  # seconds without an answer; the longest text on a slow machine takes minutes
GRACE = 10.0  # seconds to end


def command(model: Path, engine: str, streams: int, devices: str | None = None) -> list[str]:
    """Return the command of the measuring end; -P, so that no file of the user's shadows ours."""
    found = [sys.executable, "-P", "-m", "m3rt.meter", str(model), engine, str(streams)]
    return found if devices is None else [*found, devices]


class Worker:
    """A process that answers lines of JSON; a context manager that ends it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._lines: queue.Queue[str | None] = queue.Queue()  # None: there will be no more

    def __enter__(self) -> Worker:
        self._log = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # it ends with its input
        if kind is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request, and return its answer; see m3rt.meter.

        Raises:
            EngineError: it could not be answered, or the process ended or said nothing.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineError(self._end()) from error
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer; for errors see ask."""
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise EngineError(f"no answer within {PATIENCE:.0f} s") from None
        if line is None:
            raise EngineError(self._end())
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise EngineError(f"its process said {line.strip()!r}, expected JSON") from None
        if "error" in found:
            raise EngineError(found["error"])
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put(None)

    def _end(self) -> str:
        """Return how the process ended, and the last thing it said."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        if code >= 0:
            return f"its process ended with {code}: {last}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"its process was ended by {name}; short of memory? It last said: {last}"
        return f"its process was ended by signal {-code}: {last}"
