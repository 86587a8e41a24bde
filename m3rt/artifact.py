"""A model directory: what m3rt export writes and everything else reads.

model.onnx         the portable graph: input_ids, attention_mask -> dense, sparse, colbert, or score
model.onnx.data    all weights, shared by every graph
packed.onnx        the same network over tokens packed end to end, for engines without padding
grouped.onnx       likewise, with attention over rectangles of texts
reference.npz      what the checkpoint itself gave for some texts; see m3rt.parity
ENGINE-PRECISION.* what m3rt build prepared for one engine
tokenizer.json     and config.json, ...: the checkpoint's own
manifest.json      this file's subject; written last
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

from m3rt.certificate import Certificate
from m3rt.errors import ArtifactError, InputError
from m3rt.types import Heads, Pooling

FORMAT = 1
MANIFEST = "manifest.json"
EXPORT = "run: m3rt export CHECKPOINT OUT"
SMALL = 64 << 20  # bytes; load() hashes files up to this size and only measures larger ones


@dataclass(frozen=True, slots=True)
class File:
    """Size in bytes and sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights came from."""

    checkpoint: str  # a directory's name, without its path, or a hub id
    revision: str | None  # the commit, for a hub id
    files: Mapping[str, File]  # weights read


@dataclass(frozen=True, slots=True)
class Build:
    """What ``m3rt build`` prepared for one engine in one precision."""

    files: tuple[str, ...]  # their sizes and hashes stand in Manifest.files
    versions: Mapping[str, str]
    recipe: Mapping[str, Any]  # how; see the engine, m3rt.export.quantize and m3rt.recovery
    parity: Mapping[str, Any]
    certificate: Certificate | None = None  # of reduced precision; older builds have none


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model directory holds."""

    source: Source
    architecture: str  # xlm-roberta, roberta or bert
    heads: tuple[str, ...]
    pooling: str  # see m3rt.types.Pooling
    hidden: int
    colbert_dim: int | None
    layers: int
    vocab: int
    max_length: int  # tokens, special tokens included
    pad_id: int
    unscored_ids: tuple[int, ...]  # special tokens, which get no lexical weight
    graphs: Mapping[str, str]  # form (portable, packed) to file name
    files: Mapping[str, File]
    versions: Mapping[str, str]  # of m3rt and of the libraries that made the files
    parity: Mapping[str, Any] = field(default_factory=dict)  # head to figures; see m3rt/parity.py
    builds: Mapping[str, Build] = field(default_factory=dict)  # by engine and precision: cpu:int8
    cls_interval: int | None = None  # for mcls pooling: tokens from one CLS token to the next
    format: int = FORMAT

    @property
    def head_flags(self) -> Heads:
        """The heads as flags."""
        return Heads.parse(self.heads)

    @property
    def is_reranker(self) -> bool:
        """Whether it scores pairs, and has no embeddings."""
        return Heads.SCORE in self.head_flags


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model directory and its manifest."""

    path: Path
    manifest: Manifest

    def expect(self, reranker: bool) -> None:
        """Refuse a reranker where an embedder is expected, and the reverse.

        Raises:
            InputError: names what it is, and what takes it.
        """
        if self.manifest.is_reranker and not reranker:
            raise InputError(
                f"{self.path} is a reranker: it scores pairs, and has no embeddings. Use m3rt "
                "rerank, or m3rt.load_reranker"
            )
        if reranker and not self.manifest.is_reranker:
            raise InputError(
                f"{self.path} is an embedder: it embeds single texts, and does not score pairs. "
                "Use m3rt encode, or m3rt.load"
            )

    def graph(self, form: str) -> Path:
        """Return the graph of this form.

        Raises:
            ArtifactError: the directory has none.
        """
        if form not in self.manifest.graphs:
            raise ArtifactError(f"{self.path} has no {form} graph; {EXPORT}")
        return self.path / self.manifest.graphs[form]

    def built(self, choice: str, file: str) -> Path:
        """Return a file that ``m3rt build`` wrote for an engine and precision, as cpu:int8.

        Raises:
            ArtifactError: it was not built.
        """
        if choice not in self.manifest.builds:
            engine, _, precision = choice.partition(":")
            raise ArtifactError(
                f"{self.path} has not been built for {choice}; "
                f"run: m3rt build {self.path} --engine {engine} --precision {precision}"
            )
        return self.path / file


def read(path: str | Path) -> Artifact:
    """Open a model directory; files up to 64 MiB are hashed, larger ones only measured.

    Raises:
        ArtifactError: it is missing, not a model directory, of another format, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; {EXPORT}")
    if not path.is_dir():
        raise ArtifactError(f"{path} is a file, expected a model directory; {EXPORT}")
    if not (path / MANIFEST).is_file():
        looks_like = "a checkpoint" if (path / "config.json").is_file() else "something else"
        raise ArtifactError(f"{path} has no {MANIFEST} (it looks like {looks_like}); {EXPORT}")
    artifact = Artifact(path, parse(path / MANIFEST))
    check(artifact, largest=SMALL)
    return artifact


def check(
    artifact: Artifact, largest: int | None = None, progress: Callable[[int], None] | None = None
) -> None:
    """Compare every file with the manifest; hash those up to ``largest`` bytes (None: all).

    Raises:
        ArtifactError: names the first file that is missing, cut or changed.
    """
    for name, expected in artifact.manifest.files.items():
        file = artifact.path / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; {EXPORT}")
        size = file.stat().st_size
        if size != expected.bytes:
            raise ArtifactError(
                f"{file} has {size} bytes, expected {expected.bytes}: cut or changed; {EXPORT}"
            )
        if largest is not None and size > largest:
            continue
        if sha256(file, progress) != expected.sha256:
            raise ArtifactError(f"{file} is damaged: its sha256 is not the manifest's; {EXPORT}")


def parse(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ArtifactError: it is not JSON, not ours, of a newer format, or lacks a field.
    """
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}): cut or foreign; {EXPORT}") from error
    if not isinstance(data, dict) or "format" not in data or "graphs" not in data:
        raise ArtifactError(f"{path} was not written by m3rt; {EXPORT}")
    if data["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {data['format']}, this m3rt reads {FORMAT}; "
            "export again with this version"
        )
    try:
        source = data.pop("source")
        manifest = Manifest(
            source=Source(
                checkpoint=source["checkpoint"],
                revision=source["revision"],
                files=files(source["files"]),
            ),
            files=files(data.pop("files")),
            builds={
                name: Build(
                    files=tuple(entry["files"]),
                    versions=entry["versions"],
                    recipe=entry["recipe"],
                    parity=entry["parity"],
                    certificate=Certificate.read(found)
                    if (found := entry.get("certificate"))
                    else None,
                )
                for name, entry in data.pop("builds").items()
            },
            heads=tuple(data.pop("heads")),
            unscored_ids=tuple(data.pop("unscored_ids")),
            **data,
        )
        manifest.head_flags  # noqa: B018 - refuses unknown names
        check_pooling(manifest)
        built = [name for build in manifest.builds.values() for name in build.files]
        for name in [*manifest.files, *manifest.graphs.values(), *built]:
            if Path(name).name != name:
                raise ValueError(f"file name {name!r} leaves the directory")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged: {error!r}; {EXPORT}") from error
    return manifest


def check_pooling(manifest: Manifest) -> None:
    """Refuse a pooling that is not known, or whose interval is not there.

    Raises:
        ValueError: says what was found.
    """
    needed = Pooling(manifest.pooling) is Pooling.MCLS
    interval = manifest.cls_interval
    if needed != (interval is not None) or (interval is not None and index(interval) < 1):
        raise ValueError(f"pooling is {manifest.pooling}, and cls_interval {interval}")


def files(data: Mapping[str, Any]) -> dict[str, File]:
    """Read a table of files."""
    return {name: File(int(entry["bytes"]), str(entry["sha256"])) for name, entry in data.items()}


def dump(manifest: Manifest) -> str:
    """Write a manifest as JSON."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def describe(path: Path, progress: Callable[[int], None] | None = None) -> File:
    """Measure and hash a file."""
    return File(path.stat().st_size, sha256(path, progress))


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hash a file; progress is told the bytes of each step."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


@contextlib.contextmanager
def staged(out: Path, force: bool = False) -> Iterator[Path]:
    """Give a directory to fill, which becomes ``out`` if the block ends well, or vanishes.

    A process killed outright leaves a hidden directory beside ``out``, never ``out`` itself;
    the next call removes it.

    Raises:
        InputError: out is there already and force is off, or it is no model directory.
    """
    out = out.resolve()  # renames then replace what a link points to
    if out.exists():
        if not force:
            raise InputError(f"{out} is there already; choose another name, or pass --force")
        if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
            raise InputError(f"{out} is not a model directory: --force will not replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for stale in out.parent.glob(f"{glob.escape(prefix)}*"):
        if not alive(stale.name.removeprefix(prefix).split("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    part = out.parent / f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    part.mkdir()
    try:
        yield part
        if out.exists():
            # two renames: rename cannot replace a directory that holds files
            old = part.with_name(part.name + "-old")
            out.rename(old)
            part.rename(out)
            shutil.rmtree(old)
        else:
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def alive(pid: str) -> bool:
    """Whether a process of this number runs."""
    if os.name == "nt":
        return True  # signal 0 is Ctrl-C there; what is left behind is not cleaned
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
