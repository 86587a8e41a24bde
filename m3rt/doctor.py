"""What this machine has, and which engines can run on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from m3rt import __version__, engines, processor
from m3rt.engines import Probe
from m3rt.errors import UnavailableError
from m3rt.processor import Cpu, table

PACKAGES = (
    *("numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"),
    *("tensorrt-rtx", "torch", "transformers", "onnx", "optimum", "pyarrow"),
)
PLANNED = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    packages: Mapping[str, str | None]  # name to version; None: not installed
    cpu: Cpu
    memory: int | None  # bytes in all; None: unknown
    nvidia: tuple[str, ...]  # model of each device its driver lists
    engines: tuple[Probe, ...]
    auto: str | None  # engine and precision that auto stands for; None: no engine can run
    why: str

    @property
    def ready(self) -> bool:
        """Whether at least one engine can run."""
        return any(probe.ready for probe in self.engines)


def examine(proc: Path = Path("/proc")) -> Report:
    """Look at the machine. Only the engines' own libraries are imported, nothing is changed."""
    planned = [name for name in PLANNED if name not in engines.BACKENDS]
    auto, why = automatic()
    return Report(
        packages={"python": platform.python_version(), "m3rt": __version__}
        | {name: version(name) for name in PACKAGES},
        cpu=processor.read(proc / "cpuinfo"),
        memory=memory(proc / "meminfo"),
        nvidia=nvidia(proc / "driver/nvidia"),
        engines=(
            *map(probe, engines.BACKENDS),
            *(Probe(name, False, "this m3rt has no engine for it yet") for name in planned),
        ),
        auto=auto,
        why=why,
    )


def automatic() -> tuple[str | None, str]:
    """Return the engine and precision that ``auto`` stands for here, and why."""
    try:
        choice = engines.automatic()
    except (UnavailableError, ImportError, OSError) as error:
        return None, str(error)
    return str(choice), choice.why


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


def memory(info: Path) -> int | None:
    """Read the total of /proc/meminfo, which counts in KiB."""
    total = table(info).get("MemTotal")
    return int(total.split()[0]) << 10 if total else None


def nvidia(driver: Path) -> tuple[str, ...]:
    """Read the model of each device from /proc/driver/nvidia."""
    devices = sorted(driver.glob("gpus/*/information"))
    return tuple(table(device).get("Model", "unknown") for device in devices)
