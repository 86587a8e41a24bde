"""What a model directory's manifest says of a TensorRT engine, which TensorRT calls a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from m3rt.engines.trt.profiles import Profile

PORTABLE = "ampere+"  # the target of TensorRT-RTX where none is named


@dataclass(frozen=True, slots=True)
class Plan:
    """How a plan was built, and what it will take. Stands in the build's recipe, as ``plan``."""

    key: str  # sha256 of all that it was made from and for
    library: str  # tensorrt or tensorrt_rtx
    version: str  # of the library; no other runs it
    target: tuple[str, ...]  # compute capabilities, as sm86; or PORTABLE alone
    profiles: tuple[Profile, ...]
    memory: tuple[int, ...]  # bytes of activations of each profile at its most
    weights: int  # bytes

    def dump(self) -> dict[str, Any]:
        """Return it as the manifest keeps it."""
        return asdict(self)

    @classmethod
    def read(cls, recipe: Mapping[str, Any]) -> Plan:
        """Read what dump gave, from a build's recipe.

        Raises:
            KeyError, TypeError, ValueError: it is not there, or not whole.
        """
        found = recipe["plan"]
        return cls(
            key=str(found["key"]),
            library=str(found["library"]),
            version=str(found["version"]),
            target=tuple(map(str, found["target"])),
            profiles=tuple(
                Profile(*(pair(one[name]) for name in ("least", "best", "most")))
                for one in found["profiles"]
            ),
            memory=tuple(map(int, found["memory"])),
            weights=int(found["weights"]),
        )


def file_of(spec: str) -> str:
    """Return the name of the file of an engine and precision, as tensorrt:fp16."""
    return f"{spec.replace(':', '-')}.plan"


def pair(value: Any) -> tuple[int, int]:
    """Read a shape."""
    texts, width = value
    return int(texts), int(width)
