"""What TensorRT says. It gives reasons to a logger alone, never in the errors it raises."""

from __future__ import annotations

import functools
import threading
from collections import deque
from typing import Any

KEPT = 50  # errors


class Errors:
    """The errors TensorRT logged and nobody has taken yet."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger  # what the library is given
        self._lines: deque[tuple[int, str]] = deque(maxlen=KEPT)  # by the thread that said it
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Keep an error; any thread may."""
        with self._lock:
            self._lines.append((threading.get_ident(), line))

    def take(self) -> str:
        """Return what came since the last time, as one line.

        What this thread was told, if anything: others run other devices, and one's being full
        must not be taken for another's.
        """
        here = threading.get_ident()
        with self._lock:
            own = [line for thread, line in self._lines if thread == here]
            lines = own or [line for _, line in self._lines]
            left = [(thread, line) for thread, line in self._lines if own and thread != here]
            self._lines.clear()
            self._lines.extend(left)
        return "; ".join(dict.fromkeys(lines)) or "it gave no reason"


@functools.cache
def errors(trt: Any) -> Errors:
    """Return the one logger of a library.

    One for the process: TensorRT keeps the first that it is given, and uses it for all.
    """
    severe = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                kept.add(message.strip())

    kept = Errors(Logger())
    return kept
