"""Opening a model directory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from m3rt import artifact, engines
from m3rt.artifact import Artifact
from m3rt.runtime import M3
from m3rt.tokenizer import Tokenizer


def load(path: str | Path, engine: str = "auto", *, streams: int = 1) -> M3:
    """Open a model directory with an engine.

    Args:
        path: what ``m3rt export`` wrote.
        engine: a name from ``m3rt doctor``, with a precision if you like: ``cpu:int8``. ``auto``
            takes the fastest near-lossless one that can run here.
        streams: batches that run at once, each on its share of the cores. 1, the default, is
            for latency: all cores work on one batch. As many as there are cores is for
            throughput, where callers are many and texts are long enough to wait for.

    Raises:
        ArtifactError: the directory is missing, damaged or foreign.
        UnavailableError: the engine's package, provider or device is not there.
    """
    return start(artifact.read(path), engine, streams)


def start(model: Artifact, engine: str, streams: int = 1) -> M3:
    """Start an engine on a model directory that is open; see load."""
    with ThreadPoolExecutor(1, "m3rt") as pool:
        # both take a second or so, and one does not wait for the other
        loading = pool.submit(engines.load, model, engine, streams)
        tokenizer = Tokenizer.from_file(model.path / "tokenizer.json")
        return M3(model.manifest, tokenizer, loading.result())
