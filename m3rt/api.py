"""Opening a model directory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from m3rt import artifact, engines
from m3rt.artifact import Artifact
from m3rt.engines import Asked
from m3rt.reranker import Reranker
from m3rt.runtime import M3
from m3rt.tokenizer import Tokenizer
from m3rt.types import Engine


def load(
    path: str | Path,
    engine: str = "auto",
    *,
    streams: int = 1,
    fallback: str | None = None,
    devices: Asked = None,
) -> M3:
    """Open a model directory with an engine.

    Args:
        path: what ``m3rt export`` wrote.
        engine: a name from ``m3rt doctor``, with a precision if you like: ``cpu:int8``. ``auto``
            takes the fastest near-lossless one that can run here, and ``M3.why`` says why.
        streams: batches that run at once, each on its share of the cores. 1, the default, is
            for latency: all cores work on one batch. As many as there are cores is for
            throughput, where callers are many and texts are long enough to wait for.
        fallback: an engine, named likewise, that computes a text again where the first one gave
            NaN or Inf, which is an error otherwise. Each time is logged under ``m3rt``, and
            counted in ``M3.recomputed``. It opens when it is needed. Where it is the same engine,
            it is not used.
        devices: GPUs to run on, all at once, each with an engine of its own: numbers, as CUDA
            gives them, or ``"all"``. On those that are named the engine must open; of all, it
            runs on those where it does, and what is left out is logged under ``m3rt``, as is a
            device that is lost later. By default, the first.

    Raises:
        ArtifactError: the directory is missing, damaged or foreign.
        InputError: it is a reranker; see load_reranker. Or devices are not numbers of GPUs, or the
            engine does not run on one.
        UnavailableError: the engine's package, provider or device is not there.
    """
    return start(artifact.read(path), engine, streams, fallback, devices)


def load_reranker(
    path: str | Path,
    engine: str = "auto",
    *,
    streams: int = 1,
    fallback: str | None = None,
    devices: Asked = None,
) -> Reranker:
    """Open the model directory of a reranker with an engine; arguments and errors as of load.

    Raises:
        InputError: it is an embedder; see load.
    """
    return start_reranker(artifact.read(path), engine, streams, fallback, devices)


def start(
    model: Artifact,
    engine: str,
    streams: int = 1,
    fallback: str | None = None,
    devices: Asked = None,
) -> M3:
    """Start an engine on a model directory that is open; see load."""
    model.expect(reranker=False)
    return M3(model.manifest, *parts(model, engine, streams, fallback, devices))


def start_reranker(
    model: Artifact,
    engine: str,
    streams: int = 1,
    fallback: str | None = None,
    devices: Asked = None,
) -> Reranker:
    """Start an engine on a reranker's directory that is open; see load_reranker."""
    model.expect(reranker=True)
    return Reranker(model.manifest, *parts(model, engine, streams, fallback, devices))


def start_any(model: Artifact, engine: str) -> M3 | Reranker:
    """Start an engine on a model directory that is open, whichever kind it is; see load."""
    if model.manifest.is_reranker:
        return start_reranker(model, engine)
    return start(model, engine)


def with_engine(model: Artifact, engine: Engine) -> M3 | Reranker:
    """Put a model directory that is open and an engine that runs together."""
    kind = Reranker if model.manifest.is_reranker else M3
    return kind(model.manifest, Tokenizer.of(model), engine)


def parts(
    model: Artifact, engine: str, streams: int, fallback: str | None, devices: Asked = None
) -> tuple[Tokenizer, Engine, str]:
    """Open the tokenizer and the engine: both take a second or so, and neither waits.

    Also return why it is this engine.
    """
    with ThreadPoolExecutor(1, "m3rt") as pool:
        loading = pool.submit(engines.start, model, engine, streams, fallback, devices)
        tokenizer = Tokenizer.of(model)
        opened, choice = loading.result()
        return tokenizer, opened, choice.why
