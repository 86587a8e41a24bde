"""TensorRT and TensorRT-RTX as ONNX Runtime's providers: the typed graph, for each profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from m3rt.artifact import MANIFEST, Artifact
from m3rt.engines import Choice, Order, Probe, providers
from m3rt.engines.cached import cached
from m3rt.engines.cuda import size
from m3rt.engines.faults import OutOfMemoryError, full
from m3rt.engines.ort import compute
from m3rt.engines.padding import pad
from m3rt.engines.providers import Provider, opened
from m3rt.engines.trt.backend import rebuild
from m3rt.engines.trt.build import predictions
from m3rt.engines.trt.profiles import Profile, parse, render
from m3rt.engines.trt.rectangles import Rectangles, unpadded
from m3rt.engines.trt.shaping import Shaping, resolve
from m3rt.engines.trt.tensors import INPUTS, Tensor, outputs
from m3rt.errors import ArtifactError, EngineError, InputError, UnavailableError
from m3rt.graph import Graph
from m3rt.types import Batch, Engine, Heads, Raw

FORMS = {"ort-tensorrt": "typed", "ort-tensorrt-rtx": "typed"}
TYPES = {"int32": "tensor(int32)", "float32": "tensor(float)", "float16": "tensor(float16)"}
PAGE = 4096  # weights are mapped from where they stand


@dataclass(frozen=True, slots=True)
class Built:
    """What the manifest says of a build."""

    profiles: tuple[Profile, ...]
    graph: str  # sha256 of it and its weights
    weights: int  # bytes


class Profiled(Rectangles):
    """A session for each profile."""

    def __init__(
        self,
        name: str,
        sessions: Sequence[ort.InferenceSession],
        profiles: Sequence[Profile],
        artifact: Artifact,
        parallel: int,
    ) -> None:
        manifest = artifact.manifest
        super().__init__(name, profiles, manifest.max_length, manifest.pad_id, parallel)
        self._sessions = tuple(sessions)
        # a run has outputs: to warm up, any
        self._any = next(head for head in Heads if head in manifest.head_flags)

    def _step(self, batch: Batch, heads: Heads) -> Raw:
        """Run a batch that a profile holds."""
        session = self._sessions[self._profile(len(batch.rows), batch.width)]
        ids, mask = pad(batch, self._pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int32)}
        try:
            out: dict[str, Any] = compute(session, heads or self._any, inputs)
        except EngineError as error:
            if full(str(error)):
                raise OutOfMemoryError(str(error)) from error
            raise
        out = {name: array for name, array in out.items() if name in heads.names}
        return unpadded(out, batch.tokens.starts, mask)


def precision(name: str) -> str:
    """Return the best near-lossless precision: attention is fused in float16."""
    return "fp16"


def probe(name: str, device: int = 0) -> Probe:
    """Say whether the provider is there, with its library and a device."""
    try:
        return Probe(name, True, str(providers.find(name, device)))
    except UnavailableError as error:
        return Probe(name, False, str(error))


def buildable(name: str, precision: str = "") -> Probe:
    """Say that a build is possible anywhere: it is a graph, which the provider compiles."""
    return Probe(name, True, f"onnxruntime {ort.__version__}; it compiles on the GPU when opened")


def expect(choice: Choice, shaping: Shaping, max_length: int) -> None:
    """Refuse profiles that cannot be, and any target.

    Raises:
        InputError: says which.
    """
    resolve(shaping, max_length)
    if shaping.target:
        raise InputError(
            f"{choice.engine} compiles on the GPU that it runs on: leave out --target, or choose "
            "tensorrt-rtx, which builds for others"
        )


def build(order: Order) -> Mapping[str, object]:
    """Write the graph, with its weights beside it.

    Raises:
        InputError: the profiles cannot be.
    """
    assert isinstance(order.graph, Graph)
    found = resolve(order.shaping, order.artifact.manifest.max_length)
    save(order.graph, order.out / file_of(order.choice))
    graph, weights = order.graph.sha256, order.graph.nbytes
    return {"profiles": render(found), "graph": graph, "weights": weights}


def save(graph: Graph, path: Path) -> None:
    """Write a graph that is in memory, and its weights, one after the other, to a second file."""
    import onnx  # who made the graph has it

    model = onnx.load_model_from_string(graph.proto)
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.name not in graph.weights:
                continue
            array = graph.weights[tensor.name]
            start = file.seek(-(-file.tell() // PAGE) * PAGE)
            file.write(array.view(np.uint8).data)
            del tensor.external_data[:]
            for key, value in (
                ("location", data.name),
                ("offset", start),
                ("length", array.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())


def load(artifact: Artifact, choice: Choice, streams: int, device: int = 0) -> Engine:
    """Open a session for each profile; what the provider compiles is kept beside the graph.

    Of the engines that they build, TensorRT's provider runs the first profile alone, and that of
    TensorRT-RTX one that is chosen for all threads at once. So each profile has an engine, and a
    copy of the weights.

    Raises:
        ArtifactError: the graph was not built, or is another.
        UnavailableError: the provider, its library or a device is not there, or memory is short.
        EngineError: the provider cannot compile or run it.
    """
    provider = providers.find(choice.engine, device)
    path = artifact.built(str(choice), file_of(choice))
    again = rebuild(artifact, choice)
    built = read(artifact, choice, again)
    check_memory(artifact, choice, built, provider, again)
    home = home_of(artifact.path) / f"{path.stem}.cache"
    sessions = []
    for profile in built.profiles:
        one = partial(opened, provider, path, profile, again)
        session = cached(home, built.graph[:12], key(provider, built, profile), one)
        if reason := unlike(session, outputs(artifact.manifest)):
            raise ArtifactError(f"{path} is not the graph of this model: {reason}; {again}")
        sessions.append(session)
    engine = Profiled(str(choice), sessions, built.profiles, artifact, streams)
    engine.warm_up()
    return engine


def read(artifact: Artifact, choice: Choice, again: str) -> Built:
    """Read what a build was made for.

    Raises:
        ArtifactError: the manifest does not say.
    """
    try:
        recipe = artifact.manifest.builds[str(choice)].recipe
        found = parse(str(recipe["profiles"]))
        return Built(found, str(recipe["graph"]), int(recipe["weights"]))
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{artifact.path} does not say how it was built for {choice} ({error!r}); {again}"
        ) from error


def check_memory(
    artifact: Artifact, choice: Choice, built: Built, provider: Provider, again: str
) -> None:
    """Refuse what the GPU cannot hold: weights and activations, once for each profile.

    Raises:
        UnavailableError: says what it takes, and what there is.
    """
    memory = predictions(artifact, built.profiles, choice.precision)
    needed = len(built.profiles) * built.weights + sum(memory)
    if needed > provider.gpu.memory:
        raise UnavailableError(
            f"{choice} needs {size(needed)} of the device's memory for {len(built.profiles)} "
            f"profiles, each with the weights, and {provider.gpu} has {size(provider.gpu.memory)}: "
            f"build with a smaller --profile-count or --max-tokens; {again}"
        )


def key(provider: Provider, built: Built, profile: Profile) -> str:
    """Return what stands for all that an engine depends on."""
    gpu = provider.gpu
    parts = [
        built.graph,
        str(profile),
        provider.name,
        provider.version,
        gpu.name,
        gpu.sm,
        gpu.memory,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def unlike(session: ort.InferenceSession, tensors: Sequence[Tensor]) -> str:
    """Say in what a graph differs from what it should be; nothing if it does not."""
    for found, expected in ((session.get_inputs(), INPUTS), (session.get_outputs(), tensors)):
        there = {one.name: one.type for one in found}
        wanted = {tensor.name: TYPES[tensor.dtype.name] for tensor in expected}
        if there != wanted:
            return f"it has {told(there)}, not {told(wanted)}"
    return ""


def told(types: Mapping[str, str]) -> str:
    """Write names and types."""
    return ", ".join(f"{name} {kind}" for name, kind in sorted(types.items()))


def home_of(path: Path) -> Path:
    """Return the model directory; a build on trial stands in a folder of it."""
    return next((one for one in (path, *path.parents) if (one / MANIFEST).is_file()), path)


def file_of(choice: Choice) -> str:
    """Return the name of the graph's file."""
    return f"{choice.engine}-{choice.precision}.onnx"
