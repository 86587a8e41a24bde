"""Which attention kernels a build really runs, as ONNX Runtime itself tells.

It chooses by types, shapes, masks and the GPU, and takes a slow kernel without a word where
none of the fast ones fits. A switch of the environment makes it print each choice, to the
standard output of the process: so it is asked in a process of its own.

    python -m m3rt.engines.unpadded.kernels MODEL DEVICE TOKENS [TOKENS ...]
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from m3rt import artifact, engines
from m3rt.errors import EngineError
from m3rt.types import Batch, Heads, ragged

SWITCH = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"  # read when a session is opened
CHOSEN = re.compile(r"Operator=(\w+).*?SdpaKernel=(\w+)")
FAST = {
    "PackedMultiHeadAttention": ("FLASH_ATTENTION",),
    "MultiHeadAttention": ("CUDNN_FLASH_ATTENTION", "FLASH_ATTENTION"),
}
LENGTHS = (16, 512, 2048, 8192)  # tokens of texts that tell
PATIENCE = 300.0  # seconds
LOG = logging.getLogger("m3rt.kernels")
MODULE = "m3rt.engines.unpadded.kernels"  # this one, also where it is __main__

Kernels = Mapping[str, Mapping[str, int]]  # operator to kernel to how often it ran


def ask(
    model: Path, lengths: Sequence[int], device: int = 0, patience: float = PATIENCE
) -> dict[str, dict[str, int]]:
    """Run texts of so many tokens, each alone, and return what ran.

    Raises:
        EngineError: they could not be run, or ONNX Runtime told nothing.
    """
    command = [sys.executable, "-P", "-m", MODULE, str(model), str(device), *map(str, lengths)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, SWITCH: "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"no answer within {patience:.0f} s from {' '.join(command)}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the kernels of {model} cannot be told: {last}")
    if not (found := read(done.stdout)):
        raise EngineError(f"ONNX Runtime does not tell which kernels it ran, though {SWITCH} is 1")
    return found


def read(said: str) -> dict[str, dict[str, int]]:
    """Count the choices in what ONNX Runtime printed."""
    found: dict[str, Counter[str]] = {}
    for operator, kernel in CHOSEN.findall(said):
        found.setdefault(operator, Counter())[kernel] += 1
    return {operator: dict(counts) for operator, counts in found.items()}


def slow(found: Kernels) -> list[str]:
    """Say which attentions did not run in a fast kernel; nothing if all did."""
    return [
        f"{count} of {operator} ran in {kernel}, expected {' or '.join(FAST[operator])}"
        for operator, counts in found.items()
        for kernel, count in counts.items()
        if kernel not in FAST.get(operator, (kernel,))
    ]


def warn(model: Path) -> None:
    """Warn where an attention does not run in a fast kernel here, or nothing is told of it."""
    try:
        found = slow(ask(model, LENGTHS))
    except EngineError as error:
        found = [str(error)]
    for one in found:
        LOG.warning("%s: attention may be slow on this GPU: %s", model, one)


def main(model: str, device: str, *lengths: str) -> None:
    """Run the texts in this process, for ONNX Runtime to print what it chose."""
    opened = artifact.read(model)
    engine = engines.load(opened, "cuda:fp16", devices=[int(device)])
    for length in (n for n in map(int, lengths) if n <= opened.manifest.max_length):
        ids = ragged([np.full(length, opened.manifest.pad_id, np.int32)], np.int32)
        engine.run(Batch(ids, np.arange(1), length), Heads.ALL & opened.manifest.head_flags)


if __name__ == "__main__":
    if os.environ.get(SWITCH):
        main(*sys.argv[1:])
    else:
        model, device, *lengths = sys.argv[1:]
        try:
            print(json.dumps(ask(Path(model), list(map(int, lengths)), int(device))))  # noqa: T201
        except EngineError as error:
            raise SystemExit(str(error)) from error
