"""Folders that a library fills once: whole, or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from m3rt.artifact import alive
from m3rt.errors import EngineError

T_co = TypeVar("T_co", covariant=True)


class Open(Protocol[T_co]):
    """Opens something that keeps files in a folder."""

    def __call__(self, folder: Path | None, fresh: bool = False) -> T_co:
        """Open it; with fresh the folder is empty, and to be filled. None: nothing is kept.

        Raises:
            EngineError: it cannot.
        """


def cached(home: Path, kind: str, key: str, opened: Open[T_co]) -> T_co:
    """Open something on its folder, which is filled where it is not there.

    A library writes into it as it likes. So it is filled under another name; one that cannot be
    read is filled again, and where nothing can be written, nothing is kept.

    Args:
        home: the folder of folders; all of it may be deleted.
        kind: of what the folder is; those of another kind are of no use any more.
        key: which of its kind.
        opened: opens it.

    Raises:
        EngineError: it cannot be opened.
    """
    kept = home / f"{kind}-{key}"
    try:
        if kept.is_dir():
            with contextlib.suppress(EngineError):
                return opened(kept)
            shutil.rmtree(kept)
        clear(home, kind)
        fill(kept, opened)
    except OSError:
        return opened(None)
    try:
        return opened(kept)
    except EngineError:  # as where the disk is full, which libraries do not tell
        shutil.rmtree(kept, ignore_errors=True)
        return opened(None)


def fill(kept: Path, opened: Callable[[Path, bool], object]) -> None:
    """Make a folder; it is there only when it is whole."""
    part = kept.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}")
    part.mkdir(parents=True)
    try:
        opened(part, True)
        with contextlib.suppress(OSError):  # another process was first
            part.rename(kept)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def clear(home: Path, kind: str) -> None:
    """Remove folders of another kind, and what processes left that were killed."""
    for folder in home.iterdir() if home.is_dir() else ():
        of_the_dead = folder.name.startswith(".") and not alive(folder.name[1:].split("-")[0])
        if of_the_dead or not folder.name.startswith((".", f"{kind}-")):
            shutil.rmtree(folder, ignore_errors=True)
