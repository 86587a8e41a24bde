"""The files of a build for an unpadded engine: both forms of the graph, and their weights once."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rt.artifact import Artifact
from m3rt.engines.catalog import Choice
from m3rt.engines.unpadded.feed import Positions
from m3rt.errors import ArtifactError
from m3rt.graph import Graph

FORMS = ("varlen", "rectangles")
FORCED = "M3RT_CUDA_ATTENTION"  # environment: the only form to run, to compare them
UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)  # what numpy raises


def graph_file(choice: Choice, form: str) -> str:
    """Return the name of the file of a form."""
    return f"{choice.engine}-{choice.precision}.{form}.onnx"


def weights_file(choice: Choice) -> str:
    """Return the name of the file of weights: numpy's npz, not compressed, by initializer."""
    return f"{choice.engine}-{choice.precision}.npz"


def write(graph: Graph, choice: Choice, out: Path) -> Mapping[str, object]:
    """Write a graph that ``export.unpadded`` made; return what the manifest is to keep of it.

    The graphs name the places of their constants within the file of weights, so that they are whole
    by themselves. ONNX Runtime wants to see that file, also where it is given the values.
    """
    assert graph.rectangles is not None
    weights = out / weights_file(choice)
    # numpy's stub takes allow_pickle: bool
    np.savez(weights, **graph.weights)  # type: ignore[arg-type]
    places = dict(arrays_in(weights))
    for form, proto in zip(FORMS, (graph.proto, graph.rectangles), strict=True):
        (out / graph_file(choice, form)).write_bytes(placed(proto, weights.name, places))
    return {**graph.recipe, "graph": graph.sha256}


def arrays_in(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Give name, first byte and size of every array in a file that numpy.savez wrote."""
    with zipfile.ZipFile(path) as found, path.open("rb") as file:
        for entry in found.infolist():
            # an entry has a header of its own, whose last part is as long as it says
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            start = entry.header_offset + 30 + name + extra
            file.seek(start)
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            first = file.tell()
            yield entry.filename.removesuffix(".npy"), (first, start + entry.file_size - first)


def placed(proto: bytes, location: str, places: Mapping[str, tuple[int, int]]) -> bytes:
    """Return a model whose external constants say where they are in a file."""
    onnx = import_module("onnx")
    model = onnx.load_model_from_string(proto)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            del tensor.external_data[:]
            first, size = places[tensor.name]
            for key, value in (("location", location), ("offset", first), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
    data: bytes = model.SerializeToString()
    return data


def read(artifact: Artifact, choice: Choice) -> Graph:
    """Read what write gave. The weights take their size in memory.

    Raises:
        ArtifactError: the model was not built for it, or the files are damaged.
    """
    varlen, rectangles = (
        artifact.built(str(choice), graph_file(choice, form)).read_bytes() for form in FORMS
    )
    weights = dict(arrays(artifact, choice))
    recipe = artifact.manifest.builds[str(choice)].recipe
    try:
        sha256 = str(recipe["graph"])
    except KeyError as error:
        raise damaged(artifact, choice, error) from error
    half = tuple(name for name, array in weights.items() if array.dtype == np.float16)
    return Graph(varlen, weights, sha256, half, rectangles, recipe)


def arrays(artifact: Artifact, choice: Choice) -> Iterator[tuple[str, NDArray[Any]]]:
    """Read the weights of a build, one after the other: together they take gigabytes.

    Raises:
        ArtifactError: the model was not built for it, or the file is damaged.
    """
    path = artifact.built(str(choice), weights_file(choice))
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                yield name, file[name]
    except UNREADABLE as error:
        raise damaged(artifact, choice, error) from error


def positions(artifact: Artifact, choice: Choice) -> Positions:
    """Return how a build's recipe says that positions are counted.

    Raises:
        ArtifactError: the model was not built for it, or the manifest does not say.
    """
    artifact.built(str(choice), weights_file(choice))
    try:
        return Positions.read(artifact.manifest.builds[str(choice)].recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(artifact, choice, error) from error


def damaged(artifact: Artifact, choice: Choice, error: Exception) -> ArtifactError:
    """Return the error for files that are not as they were written."""
    return ArtifactError(
        f"{artifact.path} is damaged in what was built for {choice} ({error!r}); "
        f"{rebuild(artifact, choice)}"
    )


def rebuild(artifact: Artifact, choice: Choice) -> str:
    """Return the command that builds again."""
    return (
        f"run: m3rt build {artifact.path} --engine {choice.engine} "
        f"--precision {choice.precision} --force"
    )
