"""What this machine has, and which engines can run on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from m3rt import __version__, engines
from m3rt.engines import Probe

PACKAGES = (
    *("numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"),
    *("tensorrt-rtx", "torch", "transformers", "onnx", "optimum", "pyarrow"),
)
FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)  # as /proc/cpuinfo names them
PLANNED = ("openvino", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor."""

    model: str
    cores: int  # that this process may use
    flags: tuple[str, ...]  # those of FLAGS that it has


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    packages: Mapping[str, str | None]  # name to version; None: not installed
    cpu: Cpu
    memory: int | None  # bytes in all; None: unknown
    nvidia: tuple[str, ...]  # model of each device its driver lists
    engines: tuple[Probe, ...]

    @property
    def ready(self) -> bool:
        """Whether at least one engine can run."""
        return any(probe.ready for probe in self.engines)


def examine(proc: Path = Path("/proc")) -> Report:
    """Look at the machine. Only the engines' own libraries are imported, nothing is changed."""
    planned = [name for name in PLANNED if name not in engines.BACKENDS]
    return Report(
        packages={"python": platform.python_version(), "m3rt": __version__}
        | {name: version(name) for name in PACKAGES},
        cpu=cpu(proc / "cpuinfo"),
        memory=memory(proc / "meminfo"),
        nvidia=nvidia(proc / "driver/nvidia"),
        engines=(
            *map(probe, engines.BACKENDS),
            *(Probe(name, False, "this m3rt has no engine for it yet") for name in planned),
        ),
    )


def version(package: str) -> str | None:
    """Return the version installed, without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def probe(name: str) -> Probe:
    """Ask an engine whether it can run; a library that breaks on import is an answer, too."""
    try:
        return engines.probe(name)
    except (ImportError, OSError) as error:
        return Probe(name, False, f"cannot be imported: {error}")


def cpu(info: Path) -> Cpu:
    """Read /proc/cpuinfo."""
    fields = table(info)
    found = fields.get("flags", "").split()
    return Cpu(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        cores=engines.cores(),
        flags=tuple(flag for flag in FLAGS if flag in found),
    )


def memory(info: Path) -> int | None:
    """Read the total of /proc/meminfo, which counts in KiB."""
    total = table(info).get("MemTotal")
    return int(total.split()[0]) << 10 if total else None


def nvidia(driver: Path) -> tuple[str, ...]:
    """Read the model of each device from /proc/driver/nvidia."""
    devices = sorted(driver.glob("gpus/*/information"))
    return tuple(table(device).get("Model", "unknown") for device in devices)


def table(path: Path) -> dict[str, str]:
    """Read ``name: value`` lines, the first of each name; empty where there is no such file."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
