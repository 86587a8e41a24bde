"""TensorRT or TensorRT-RTX: whichever an engine asks for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from m3rt.engines import BACKENDS
from m3rt.errors import UnavailableError, missing


def library(engine: str) -> Any:
    """Import an engine's library.

    Raises:
        UnavailableError: it is not installed, or cannot be imported.
    """
    backend = BACKENDS[engine]
    try:
        return import_module(backend.package)
    except ModuleNotFoundError as error:
        if error.name != backend.package:
            raise
        raise missing(backend.package, backend.extra, f"the {engine} engine") from error
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"{backend.package} cannot be imported: {error}; install it again: "
            f"pip install --force-reinstall 'm3rt[{backend.extra}]'"
        ) from error
