"""What an environment lacks of the GPU benchmark: python -m benchmarks.gpu.wheels.

Prints a line for each package that is not there and must be carried, as pip takes it; for a peer
only what its own metadata asks for is followed. It imports the standard library alone.
"""

from __future__ import annotations

import re
from importlib import metadata

WANTED = {  # package: version, "" for any
    "onnxruntime-gpu": "1.31.1",
    "FlagEmbedding": "1.4.2",
    "m3serve": "0.2.3",
    "sentence-transformers": "",
    "transformers": "",
    "torch": "",
    "tokenizers": "",
    "onnx": "",
    "onnx-ir": "",
    "onnxscript": "",
    "safetensors": "",
    "typer": "",
    "rich": "",
    "numpy": "",
}


def missing() -> list[str]:
    """Return the packages that are not there, or there in another version, and their needs."""
    found: dict[str, str] = {}
    for name, version in WANTED.items():
        wanted = f"{name}=={version}" if version else name
        try:
            there = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = wanted
            continue
        if version and there != version:
            found[name] = f"{wanted}  # {there} is there"
        for need in metadata.requires(name) or ():
            if "extra" in need or ("platform" in need and "linux" not in need):
                continue
            other = re.split(r"[^\w.-]", need)[0]
            try:
                metadata.version(other)
            except metadata.PackageNotFoundError:
                found.setdefault(other, f"{other}  # {name} needs it")
    return list(found.values())


if __name__ == "__main__":
    print("\n".join(missing()) or "nothing is missing")  # noqa: T201
