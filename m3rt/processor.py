"""The processor: its name, the cores this process may use, and what it can multiply."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)  # as /proc/cpuinfo names them
INT8 = {"avx512_vnni", "avx_vnni", "amx_int8"}
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor."""

    model: str
    cores: int  # that this process may use
    flags: tuple[str, ...]  # those of FLAGS that it has

    @property
    def exact_int8(self) -> bool:
        """Whether products of uint8 and int8 add up in 32 bits.

        Older x86 adds pairs of them in 16 bits, which overflow. Other processors are fine.
        """
        return "avx2" not in self.flags or bool(INT8 & set(self.flags))


def read(info: Path = CPUINFO) -> Cpu:
    """Read /proc/cpuinfo; without one, flags stay empty."""
    fields = table(info)
    found = fields.get("flags", "").split()
    return Cpu(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        cores=cores(),
        flags=tuple(flag for flag in FLAGS if flag in found),
    )


def cores() -> int:
    """Return how many processors this process may use: a container's share, not the host's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


def table(path: Path) -> dict[str, str]:
    """Read ``name: value`` lines, the first of each name; empty where there is no such file."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
