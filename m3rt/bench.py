"""Measures engines on one model: ``m3rt bench``. See docs/bench.md.

Each engine has a process of its own, so that load time and peak memory are its own and thread
pools do not meet. The processes stay and take turns, one at work at a time, so that a machine
that gets slower or faster does so for all of them; where they would not fit into memory together,
one engine is finished before the next begins.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from m3rt import doctor, mixes, peak
from m3rt.artifact import Artifact
from m3rt.course import BATCH_LENGTH, LENGTHS, Job, Sample, Turns, measure
from m3rt.errors import InputError
from m3rt.mixes import Mix
from m3rt.result import EngineRun, MixFacts, Model, Result, Settings
from m3rt.tokenizer import Tokenizer
from m3rt.types import Ints

Say = Callable[[str], None]

MEMORY_FACTOR = 1.5  # of the largest file, the weights: what an engine may need while it loads


def run(
    model: Artifact,
    engines: Sequence[str],
    texts: Sequence[str],
    settings: Settings,
    say: Say = lambda step: None,
) -> Result:
    """Measure.

    Args:
        model: the model directory.
        engines: specs, as m3rt.load takes them.
        texts: names of built-in mixes, or files; see mixes.py.
        settings: how.
        say: is told each step before it begins.

    Raises:
        InputError: a mix cannot be read, or the model is a reranker. What goes wrong with an
            engine stands in its row.
    """
    if model.manifest.is_reranker:
        raise InputError(
            f"{model.path} is a reranker: m3rt bench measures embedders; to run it, see m3rt rerank"
        )
    created = datetime.now(UTC)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    tokenizer = Tokenizer.of(model)
    longest = model.manifest.max_length
    read = tuple(mixes.read(name, tokenizer, longest) for name in dict.fromkeys(texts))
    machine = doctor.examine()
    say("this machine's matrix products")
    job = Job(
        settings=settings,
        mixes=read,
        lengths={mix.name: tokenizer.lengths(mix.texts) for mix in read},
        samples=samples(tokenizer, {*settings.lengths, *LENGTHS, BATCH_LENGTH}, longest),
        model=described(model),
        colbert_dim=(model.manifest.colbert_dim or 0) if "colbert" in settings.heads else 0,
        peak=peak.measure(machine.cpu.cores),
    )
    together = fit(model, len(engines), machine.memory)
    turns = [measure(model.path, engine, job) for engine in engines]
    groups = [turns] if together else [[one] for one in turns]
    return Result(
        created=created.isoformat(timespec="seconds"),
        model=job.model,
        settings=settings,
        interleaved=together and len(engines) > 1,
        machine=machine,
        load_average=load,
        peak=job.peak,
        mixes=tuple(facts(mix, np.minimum(job.lengths[mix.name], longest)) for mix in read),
        engines=tuple(found for group in groups for found in in_turn(group, say)),
    )


def samples(tokenizer: Tokenizer, lengths: set[int], longest: int) -> dict[int, Sample]:
    """Make a text of each length that the model takes."""
    wanted = sorted(length for length in lengths if length <= longest)
    texts = list(mixes.of_lengths(tokenizer, wanted))
    tokens = tokenizer.lengths(texts).tolist()
    return {length: Sample(*both) for length, *both in zip(wanted, texts, tokens, strict=True)}


def described(model: Artifact) -> Model:
    """Return what a result says of the model."""
    manifest = model.manifest
    ffn = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        ffn = int(json.loads((model.path / "config.json").read_bytes())["intermediate_size"])
    return Model(
        path=str(model.path),
        checkpoint=manifest.source.checkpoint,
        revision=manifest.source.revision,
        hidden=manifest.hidden,
        layers=manifest.layers,
        ffn=ffn,
    )


def facts(mix: Mix, lengths: Ints) -> MixFacts:
    """Return what a result says of a mix."""
    points = np.quantile(lengths, (0, 0.1, 0.5, 0.9, 1), method="inverted_cdf").tolist()
    names = ("min", "p10", "p50", "p90", "max")
    bins: dict[str, int] = {}
    # 2 ** (b - 1) < length <= 2 ** b
    for length in sorted(lengths.tolist()):
        name = str(1 << (length - 1).bit_length())
        bins[name] = bins.get(name, 0) + 1
    quantiles = dict(zip(names, map(int, points), strict=True))
    return MixFacts(mix.name, len(mix.texts), int(lengths.sum()), quantiles, bins)


def fit(model: Artifact, engines: int, memory: int | None) -> bool:
    """Whether so many engines may be open at once, by a guess on the safe side."""
    size = max(file.bytes for file in model.manifest.files.values())
    return memory is not None and engines * MEMORY_FACTOR * size <= memory / 2


def in_turn(turns: Sequence[Turns], say: Say) -> list[EngineRun]:
    """Let each do its next step in turn, until all have ended."""
    ended: dict[int, EngineRun] = {}
    steps = [""] * len(turns)
    with contextlib.ExitStack() as stack:
        for one in turns:
            stack.enter_context(contextlib.closing(one))  # which ends its process
        while len(ended) < len(turns):
            for i, one in enumerate(turns):
                if i not in ended:
                    say(steps[i])
                    try:
                        steps[i] = next(one)
                    except StopIteration as stop:
                        ended[i] = stop.value
    return [ended[i] for i in range(len(turns))]
