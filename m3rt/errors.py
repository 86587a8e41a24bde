"""What can go wrong.

M3Error
├─ InputError        not text, too long, or a head the model does not have
├─ CheckpointError   a checkpoint that is missing, damaged or of another kind
├─ ArtifactError     a model directory that is missing, damaged or foreign
├─ ParityError       a model that differs from its checkpoint, or an engine from float32
├─ UnavailableError  a package, provider or device that is not there
└─ EngineError       a run that failed, or gave NaN or Inf

Each class carries the exit code of the command line. A message says what was found, what was
expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from m3rt.certificate import Certificate


class M3Error(Exception):
    """Anything m3rt raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(M3Error, ValueError):
    """Not text, too long, or a head the model does not have."""

    exit_code = 3


class ParityError(M3Error):
    """A model differs from its checkpoint, or an engine from float32, by more than it may."""

    exit_code = 4

    def __init__(
        self,
        message: str,
        parity: Mapping[str, Any] | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(message)
        self.parity = parity or {}  # the figures, in the form of Manifest.parity
        self.certificate = certificate  # what the quality gate found, if it was run


class ArtifactError(M3Error):
    """A model directory is missing, damaged or was written by something else."""

    exit_code = 5


class CheckpointError(M3Error):
    """A checkpoint is missing, damaged or of a kind that cannot be exported."""

    exit_code = 6


class UnavailableError(M3Error):
    """A package, an execution provider or a device is not there."""

    exit_code = 7


class EngineError(M3Error):
    """A run failed, or gave NaN or Inf."""

    exit_code = 8


def missing(package: str, extra: str, purpose: str) -> UnavailableError:
    """Return the error for a package that an extra would have installed."""
    return UnavailableError(
        f"{purpose} needs the package {package!r}, which is not installed: "
        f"pip install 'm3rt[{extra}]'"
    )
