"""Results of benchmarks that nobody ran."""

from __future__ import annotations

from dataclasses import replace

from m3rt.doctor import Report
from m3rt.engines import Probe
from m3rt.nvidia import Driver
from m3rt.processor import Cpu
from m3rt.result import (
    SERIAL,
    STAGES,
    BatchLatency,
    EngineRun,
    Latency,
    LengthRate,
    MixFacts,
    MixRun,
    Model,
    Rate,
    Result,
    Settings,
    Spread,
)


def engine(name: str, speed: float, error: float) -> EngineRun:
    """Return a row: so many tokens a second, and so far from the checkpoint."""
    seconds = {"tokenise": 0.01, "plan": 0.001, "run": 4900 / speed, "post": 0.02}
    return EngineRun(
        engine=name,
        load_seconds=2.5,
        first_seconds=0.1,
        load_memory=2_500_000_000,
        mixes=tuple(
            MixRun(
                mix=mix,
                texts=64,
                tokens=4900,
                truncated=0,
                tokens_per_second=Spread.of([speed * 0.98, speed, speed * 1.01]),
                texts_per_second=Spread.of([speed / 77]),
                padding_share=0.125,
                seconds=seconds,
                us_per_token={stage: 1e6 * seconds[stage] / 4900 for stage in STAGES}
                | dict.fromkeys(SERIAL, 900.0),
                host_us_per_token=6.5,
                flops=speed * 0.6e9,
                peak_share=0.84,
                peak_memory=2_700_000_000,
            )
            for mix in ("mixed", "queries")
        ),
        latency=tuple(
            Latency.of(n, [n / speed * k for k in (1.0, 1.1, 1.3)]) for n in (16, 128, 512)
        ),
        lengths=tuple(
            LengthRate(n, max(1, 512 // n), Spread.of([speed * (1 - abs(n - 512) / 12000)]))
            for n in (16, 64, 128, 256, 512, 1024, 2048)
        ),
        batches=tuple(
            BatchLatency(n, 32, Spread.of([1e3 * n * 32 / speed + 20]))
            for n in (1, 2, 4, 8, 16, 32)
        ),
        accuracy={
            "texts": 92,
            "tokens": 2900,
            "longest": 1024,
            "tolerances": {},
            "dense": {"cosine_min": 1 - error, "cosine_mean": 1 - error / 2},
            "sparse": {"keys_differ": 0, "weight_error_max": error / 10, "top10_equal": 0.98},
            "colbert": {"cosine_min": 1 - 2 * error, "cosine_mean": 1 - error},
        },
    )


def result(*engines: EngineRun) -> Result:
    """Return a result of these engines."""
    cpu = Cpu("A CPU", 2, ("avx2", "avx512f"))
    return Result(
        created="2026-01-02T03:04:05+00:00",
        model=Model("models/m3", "BAAI/bge-m3", "5617a9f", 1024, 24, 4096),
        settings=Settings(),
        interleaved=True,
        machine=Report(
            packages={"python": "3.11.9", "m3rt": "0.1.0", "numpy": "2.4.6", "torch": None},
            cpu=cpu,
            memory=1 << 34,
            nvidia=Driver(None, (), "no NVIDIA driver"),
            engines=(Probe("cpu", True, "onnxruntime"),),
            auto="cpu:fp32",
            why="it is the only one",
        ),
        load_average=0.1,
        peak=(
            Rate("fp32", "numpy", (512, 1024, 4096), 1.5e11),
            Rate("fp32", "onnxruntime", (512, 1024, 4096), 1.76e11),
            Rate("int8", "onnxruntime", (512, 1024, 4096), 7.7e11),
        ),
        mixes=tuple(
            MixFacts(
                name, 64, 4900, {"min": 5, "p10": 8, "p50": 14, "p90": 240, "max": 488}, {"16": 64}
            )
            for name in ("mixed", "queries")
        ),
        engines=engines or (engine("cpu:fp32", 244.0, 1e-13), engine("cpu:int8", 610.0, 2e-3)),
    )


def with_error(run: EngineRun, reason: str) -> EngineRun:
    """Return a row of an engine that failed before anything was measured."""
    return EngineRun(run.engine, error=reason)


def renamed(run: EngineRun, name: str) -> EngineRun:
    """Return a row under another name."""
    return replace(run, engine=name)
