"""Kernels that TensorRT-RTX compiled for a device, kept in a file beside the plan."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any


class Kernels:
    """A runtime cache and its file. Without it, every start would compile them again."""

    def __init__(self, config: Any, path: Path) -> None:
        self.config = config  # the library's IRuntimeConfig, which is told of the cache
        self._cache = config.create_runtime_cache()
        self._path = path
        self._stored = b""
        with contextlib.suppress(OSError):
            stored = path.read_bytes()
            # one of another version or device is as good as none
            if stored and self._cache.deserialize(stored):
                self._stored = stored
        config.set_runtime_cache(self._cache)

    def write(self) -> None:
        """Store what came new; where the directory cannot be written, it is not kept."""
        found = bytes(memoryview(self._cache.serialize()))
        if found == self._stored:
            return
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            part.write_bytes(found)
            part.replace(self._path)
            self._stored = found
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
