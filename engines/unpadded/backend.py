"""ONNX Runtime on NVIDIA GPUs without padding, in float16: opening what was built."""

from __future__ import annotations

import os

from m3rt.artifact import Artifact
from m3rt.engines import Choice
from m3rt.engines import ort as exported
from m3rt.engines.cuda import Cuda, runtime, size
from m3rt.engines.unpadded import files
from m3rt.engines.unpadded.engine import RECTANGLES, VARLEN, Kept, Unpadded
from m3rt.engines.unpadded.files import FORCED, FORMS, graph_file, weights_file
from m3rt.engines.unpadded.session import Session
from m3rt.errors import InputError, UnavailableError
from m3rt.nvidia import Gpu
from m3rt.types import Engine

TOKENS = 16384  # of one step; matrix products are at their full speed from some 8192 on

# cuDNN's attention is faster than flash attention on Hopper and later, for long texts; it needs
# rectangles. Neither was measured here.
LONG, HOPPER = 2048, (9, 0)

# Batches on their way: one arrives while another computes and others are fetched.
SLOTS = 4


def load(artifact: Artifact, choice: Choice, streams: int, device: int = 0) -> Engine:
    """Open what ``m3rt build`` wrote.

    Raises:
        ArtifactError: it was not built, or is damaged.
        UnavailableError: the provider or the device is not there, or memory is short.
        EngineError: it cannot run.
    """
    if not (found := exported.probe(choice.engine, device)).ready:
        raise UnavailableError(found.detail)
    cuda = Cuda(runtime(choice.engine), device)
    gpu = cuda.gpu()
    graphs = {form: artifact.built(str(choice), graph_file(choice, form)) for form in FORMS}
    positions = files.positions(artifact, choice)
    needed = artifact.built(str(choice), weights_file(choice)).stat().st_size
    if needed > (free := cuda.free()):
        raise UnavailableError(
            f"{choice} needs {size(needed)} of the device's memory and more to compute, and "
            f"{size(free)} of {size(gpu.memory)} are free: end what else uses it"
        )
    kept = Kept(TOKENS, long_from(gpu))
    exported.preload()
    cuda.use()
    session = Session(cuda, max(SLOTS, streams))
    try:
        session.open(graphs, files.arrays(artifact, choice), files.rebuild(artifact, choice))
        engine = Unpadded(str(choice), session, artifact.manifest, positions, kept)
        engine.warm_up()
    except BaseException:
        session.release()
        raise
    return engine


def long_from(gpu: Gpu) -> int | None:
    """Return the tokens of a text from which on attention runs in rectangles; None: never.

    Raises:
        InputError: the environment asks for what there is not.
    """
    forced = os.environ.get(FORCED, "")
    if forced not in ("", *FORMS):
        raise InputError(f"{FORCED} is {forced!r}, expected {' or '.join(FORMS)}")
    if forced:
        return {VARLEN: None, RECTANGLES: 0}[forced]
    return LONG if gpu.capability >= HOPPER else None
