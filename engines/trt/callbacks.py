"""What TensorRT calls while it builds: a logger, a progress monitor, and a writer of the plan.

Classes of the library's own module, so they are made where it is known.
"""

from __future__ import annotations

import re
import threading
from types import ModuleType
from typing import Any, BinaryIO

from rich.progress import Progress


def writer(trt: ModuleType, file: BinaryIO) -> Any:
    """Return what the library writes to."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.failed: OSError | None = None

        def write(self, data: bytes) -> int:
            if self.failed is None:
                try:
                    return file.write(data)
                except OSError as error:  # which would not come through the library
                    self.failed = error
            return 0

    return Writer()


def logger(trt: ModuleType) -> Any:
    """Return a logger that keeps what the library says."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        ERROR = trt.ILogger.ERROR

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((int(severity), text))

        def of(self, severity: Any) -> tuple[str, ...]:
            return tuple(text for level, text in self.lines if level == int(severity))

        def warnings(self) -> tuple[str, ...]:
            return self.of(trt.ILogger.WARNING)

        def errors(self) -> str:
            found = (*self.of(trt.ILogger.INTERNAL_ERROR), *self.of(trt.ILogger.ERROR))
            return "; ".join(found) or "it gave no reason"

        def numbers(self, pattern: re.Pattern[str]) -> tuple[int, ...]:
            found = (pattern.search(text) for _, text in self.lines)
            return tuple(int(match[1]) for match in found if match)

    return Log()


def progress_monitor(trt: ModuleType, bars: Progress) -> Any:
    """Return a monitor that shows the library's phases, and can end the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = threading.Event()
            self.tasks: dict[str, Any] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            indent = "  " if parent else ""
            self.tasks[name] = bars.add_task(f"{indent}{name}", total=steps)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.tasks:
                bars.update(self.tasks[name], completed=step + 1)
            return not self.cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            if (task := self.tasks.pop(name, None)) is not None:
                bars.remove_task(task)

    return Monitor()
