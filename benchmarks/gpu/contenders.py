"""Who takes part on a GPU: m3rt's engines for it, and peers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.peers.contenders import ALL, DENSE, Contender, Precision, ours
from m3rt.engines import BACKENDS
from m3rt.engines.unpadded.files import FORCED, FORMS

COMMON = ("parity", "mixed", "latency", "lengths")  # parts that every runtime takes part in
REFERENCE = "torch fp32"  # what the others' outputs are compared with
BASE = "m3rt cuda:fp16"  # what the others are beside


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender, and what is measured of it."""

    contender: Contender
    parts: tuple[str, ...] = COMMON
    wave: int = 1  # those of a later wave come when the earlier one is through
    spec: str | None = None  # the m3rt engine that is built for it

    @property
    def name(self) -> str:
        """What it is called in the result."""
        return self.contender.name


def engine(
    spec: str,
    parts: tuple[str, ...] = COMMON,
    wave: int = 1,
    suffix: str = "",
    **options: Any,
) -> Entry:
    """Return one of m3rt's engines."""
    name, _, precision = spec.partition(":")
    made = replace(
        ours(spec, precision),  # type: ignore[arg-type] # one of PRECISIONS
        name=f"m3rt {name}:{precision}{suffix}",
        options={"engine": spec} | options,
        patience=120.0,
    )
    return Entry(made, parts, wave, spec)


def peer(
    name: str,
    worker: str,
    precision: Precision,
    device: str,
    heads: tuple[str, ...] = ALL,
    default_batch: int | None = None,
    **options: Any,
) -> Contender:
    """Return a runtime that reads the checkpoint; with a default, its user chooses a batch size."""
    return Contender(
        name,
        f"benchmarks.peers.{worker}",
        precision,
        heads,
        "checkpoint",
        options={"device": device} | options,
        batches=() if default_batch is None else (16, 64),
        default_batch=default_batch,
        patience=120.0,
    )


def peers(device: str, compiler: str) -> tuple[Entry, ...]:
    """Return the other runtimes, in fp16 on a GPU; elsewhere in fp32, to see that they run."""
    gpu = device.startswith("cuda")
    precision: Precision = "fp16" if gpu else "fp32"
    torch: dict[str, Any] = {"dtype": "float16" if gpu else "float32"}
    sentences: dict[str, Any] = {"backend": "torch", "model_kwargs": torch}
    return (
        Entry(
            peer(
                f"FlagEmbedding {precision}", "flagembedding", precision, device, ALL, 256, fp16=gpu
            )
        ),
        Entry(peer(f"torch SDPA {precision}", "sdpa", precision, device, **torch)),
        Entry(
            peer(
                f"sentence-transformers {precision}",
                "sentence_transformers",
                precision,
                device,
                DENSE,
                32,
                **sentences,
            )
        ),
        Entry(peer(f"m3serve {precision}", "m3serve", precision, device, ALL, 256, fp16=gpu)),
        Entry(
            peer(
                f"torch SDPA {precision}, unsorted", "sdpa", precision, device, sort=False, **torch
            ),
            ("mixed",),
        ),
        Entry(
            peer(
                f"torch SDPA {precision}, compiled",
                "sdpa",
                precision,
                device,
                compile=compiler,
                **torch,
            ),
            wave=2,
        ),
    )


def entries(tiny: bool = False) -> tuple[Entry, ...]:
    """Return all, the most important first."""
    if tiny:
        return (
            Entry(peer(REFERENCE, "sdpa", "fp32", "cpu", dtype="float32"), ("parity",)),
            engine("cpu:fp32", (*COMMON, "budgets")),
            *(
                engine("cpu:fp32", ("paths",), 1, f" {path}", environment={FORCED: path})
                for path in FORMS
            ),
            *peers("cpu", "aot_eager"),
            engine("cpu-padded:fp32", wave=2),
            engine("tensorrt:fp16", wave=2),
        )
    others = [
        f"{name}:{precision}"
        for name, backend in BACKENDS.items()
        if backend.gpu
        for precision in backend.precisions
        if f"m3rt {name}:{precision}" != BASE
    ]
    spec = BASE.removeprefix("m3rt ")
    return (
        Entry(peer(REFERENCE, "sdpa", "fp32", "cuda:0", dtype="float32"), ("parity",)),
        engine(spec, (*COMMON, "budgets")),
        *(engine(spec, ("paths",), 1, f" {path}", environment={FORCED: path}) for path in FORMS),
        *peers("cuda:0", "inductor"),
        *(engine(other, wave=2) for other in others),
    )
