"""What auto stands for, on machines with GPUs and without; the driver and TensorRT are stood in."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime as ort
import pytest

import m3rt
from m3rt import artifact, doctor, engines, nvidia, processor
from m3rt.artifact import Artifact, Build
from m3rt.engines import NEAR_LOSSLESS, Choice, Probe, ov
from m3rt.engines import ort as onnxruntime_engine
from m3rt.engines.trt.plan import PORTABLE, Plan
from m3rt.engines.trt.profiles import Profile
from m3rt.nvidia import Driver, Gpu
from tests.fake import FakeEngine

H200 = Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000)
RTX5090 = Gpu(0, "NVIDIA GeForce RTX 5090", (12, 0), 32_000_000_000)
VERSIONS = {"tensorrt": "10.13.2.6", "tensorrt_rtx": "1.7.1.116"}
CUDA = "CUDAExecutionProvider"


@dataclasses.dataclass
class Machine:
    """What a test's machine has."""

    gpus: tuple[Gpu, ...] = ()
    why: str = ""  # there are no GPUs
    libraries: tuple[str, ...] = ("tensorrt", "tensorrt_rtx")
    opens: bool = True  # what TensorRT loads
    started: int = 0  # times that the driver was
    imported: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a driver, TensorRT and TensorRT-RTX; without CUDA in ONNX Runtime."""
    made = Machine()

    def read() -> Driver:
        made.started += 1
        return Driver("12.8", made.gpus, made.why)

    def probe(name: str, device: int = 0) -> Probe:
        package = engines.BACKENDS[name].package
        there = package in made.libraries
        return Probe(name, there, package if there else f"needs the package {package!r}")

    def load(found: Artifact, choice: Choice, streams: int, device: int) -> FakeEngine:
        if not made.opens:
            raise m3rt.UnavailableError("no memory")
        engine = FakeEngine()
        engine.name = str(choice)
        return engine

    trt = ModuleType("m3rt.engines.trt.backend")
    trt.__dict__.update(probe=probe, load=load)
    monkeypatch.setitem(sys.modules, "m3rt.engines.trt.backend", trt)
    for name, version in VERSIONS.items():
        library = ModuleType(name)
        library.__dict__["__version__"] = version
        monkeypatch.setitem(sys.modules, name, library)

    def spy(name: str) -> ModuleType:
        made.imported.append(name)
        return import_module(name)

    monkeypatch.setattr(engines, "import_module", spy)
    monkeypatch.setattr(nvidia, "missing", lambda: None)
    monkeypatch.setattr(nvidia, "read", read)
    monkeypatch.setattr(ov, "precision", lambda name: "fp32")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    return made


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "missing", lambda: "no NVIDIA driver: [libcuda]")


@pytest.fixture
def provider(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime with CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])


def build(spec: str, *target: str, **changes: Any) -> Build:
    """What the manifest has of a TensorRT engine."""
    package = engines.BACKENDS[spec.partition(":")[0]].package
    plan = Plan(
        key="0",
        library=package,
        version=VERSIONS[package],
        target=target,
        profiles=(Profile((1, 1), (8, 64), (32, 512)),),
        memory=(1 << 20,),
        weights=1 << 20,
    )
    recipe = {"plan": dataclasses.replace(plan, **changes).dump()}
    return Build(files=(), versions={}, recipe=recipe, parity={})


def model_with(model_dir: Path, builds: Mapping[str, Build]) -> Artifact:
    """A model with builds."""
    found = artifact.read(model_dir)
    return dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, builds=builds))


def every(*target: str) -> dict[str, Build]:
    """A build of each kind."""
    specs = [
        f"{name}:{precision}"
        for name in ("tensorrt-rtx", "tensorrt")
        for precision in ("fp8", "int8", "bf16", "fp16")
    ]
    return {spec: build(spec, *target) for spec in specs}


@pytest.mark.usefixtures("no_driver")
def test_auto_prefers_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov, "precision", lambda name: "bf16")
    assert str(engines.automatic()) == "openvino:bf16"
    assert engines.automatic().why.startswith("this processor multiplies bf16; openvino ")
    monkeypatch.setattr(ov, "precision", lambda name: "fp32")
    assert str(engines.automatic()) == "cpu:fp32"
    assert engines.automatic().why.startswith("no engine has fast bf16 here; onnxruntime")
    assert engines.automatic().why.endswith("; no GPU: no NVIDIA driver: [libcuda]")


@pytest.mark.usefixtures("no_driver")
def test_openvino_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_engine, "probe", lambda name: Probe(name, False, "not there"))
    monkeypatch.setattr(ov, "precision", lambda name: "fp32")
    assert str(engines.automatic()) == "openvino:fp32"


def test_a_broken_library_is_passed_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        if name == "m3rt.engines.ov":
            raise ImportError("libopenvino.so: cannot open")
        return sys.modules[name]

    monkeypatch.setattr(engines, "import_module", broken)
    assert str(engines.automatic()) == "cpu:fp32"
    found = engines.probe("openvino")
    assert found == Probe("openvino", False, "cannot be imported: libopenvino.so: cannot open")


@pytest.mark.parametrize("place", range(len(NEAR_LOSSLESS)))
def test_the_best_engine_that_is_built_and_near_lossless(
    place: int, machine: Machine, model_dir: Path
) -> None:
    machine.gpus = (RTX5090,)
    better = [f"{name}:{precision}" for name, precision in NEAR_LOSSLESS[:place]]
    builds = {spec: one for spec, one in every("sm120").items() if spec not in better}
    choice = engines.automatic(model_with(model_dir, builds))
    assert (choice.engine, choice.precision) == NEAR_LOSSLESS[place]
    assert choice.why == f"built for this GPU, {RTX5090}; not yet measured on a GPU"


def test_int8_and_fp8_are_taken_only_when_asked_for(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (RTX5090,)
    lossy = {spec: one for spec, one in every("sm120").items() if spec.endswith("8")}
    model = model_with(model_dir, lossy)
    assert len(model.manifest.builds) == 4
    choice = engines.automatic(model)
    assert str(choice) == "cpu:fp32"
    assert f"{model_dir} has no TensorRT engine in fp16 or bf16" in choice.why
    assert str(engines.choose("tensorrt:fp8", model)) == "tensorrt:fp8"
    assert machine.started == 0


def test_what_does_not_fit_is_passed_over_with_its_reason(
    machine: Machine, model_dir: Path
) -> None:
    machine.gpus = (RTX5090,)
    damaged = dataclasses.replace(build("tensorrt:bf16"), recipe={})
    builds = {
        "tensorrt:fp16": build("tensorrt:fp16", "sm86"),
        "tensorrt:bf16": damaged,
        "tensorrt-rtx:fp16": build("tensorrt-rtx:fp16", PORTABLE, version="1.6.0"),
        "tensorrt-rtx:bf16": build("tensorrt-rtx:bf16", PORTABLE),
    }
    choice = engines.automatic(model_with(model_dir, builds))
    assert str(choice) == "tensorrt-rtx:bf16"
    assert choice.why == (
        f"built for this GPU, {RTX5090}; not yet measured on a GPU"
        f"; no tensorrt:fp16: built for sm86, this GPU is {RTX5090}"
        "; no tensorrt:bf16: the manifest does not say what it was built for (KeyError('plan')); "
        "build it again"
        "; no tensorrt-rtx:fp16: built by tensorrt_rtx 1.6.0, installed is tensorrt_rtx 1.7.1.116"
    )


def test_a_plan_of_the_other_library(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (RTX5090,)
    other = build("tensorrt-rtx:fp16", "sm120", version=VERSIONS["tensorrt"])
    why = engines.automatic(model_with(model_dir, {"tensorrt:fp16": other})).why
    version = VERSIONS["tensorrt"]
    said = f"no tensorrt:fp16: built by tensorrt_rtx {version}, installed is tensorrt {version}"
    assert said in why


def test_int8_on_a_gpu_needs_no_vnni(
    machine: Machine, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = processor.Cpu("an old one", 2, ("avx2", "avx512f"))
    monkeypatch.setattr(processor, "read", lambda: old)
    model = model_with(model_dir, every("sm90"))
    assert engines.load(model, "tensorrt:int8").name == "tensorrt:int8"
    with pytest.raises(m3rt.UnavailableError, match="an old one adds in 16 bits"):
        engines.load(model, "cpu:int8")


def test_hopper_has_no_tensorrt_rtx(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (H200,)
    model = model_with(model_dir, {"tensorrt-rtx:fp16": build("tensorrt-rtx:fp16", PORTABLE)})
    choice = engines.automatic(model)
    assert str(choice) == "cpu:fp32"
    assert f"no tensorrt-rtx:fp16: tensorrt_rtx does not run on {H200}; no cuda: " in choice.why


def test_a_library_that_is_not_there(
    machine: Machine, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpus, machine.libraries = (RTX5090,), ()
    model = model_with(model_dir, {"tensorrt:fp16": build("tensorrt:fp16", "sm120")})
    assert "no tensorrt:fp16: needs the package 'tensorrt'; " in engines.automatic(model).why

    def broken(name: str) -> Probe:
        raise OSError("libnvinfer.so: cannot open")

    monkeypatch.setattr(sys.modules["m3rt.engines.trt.backend"], "probe", broken)
    why = engines.automatic(model).why
    assert "no tensorrt:fp16: cannot be imported: libnvinfer.so: cannot open; no cuda" in why


def test_the_first_gpu_counts(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (dataclasses.replace(H200, index=0), dataclasses.replace(RTX5090, index=1))
    model = model_with(model_dir, {"tensorrt:fp16": build("tensorrt:fp16", "sm120")})
    assert str(engines.automatic(model)) == "cpu:fp32"


@pytest.mark.usefixtures("provider")
def test_cuda_where_no_tensorrt_engine_fits(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (H200,)
    model = model_with(model_dir, {"tensorrt:fp16": build("tensorrt:fp16", "sm86")})
    choice = engines.automatic(model)
    assert str(choice) == "cuda:fp32"
    assert f"{CUDA} on {H200}; not yet measured on a GPU; no tensorrt:fp16: built" in choice.why
    assert choice.why.endswith("no cuda:fp16, which is without padding: it was not built")
    assert str(engines.automatic()) == "cuda:fp32"  # and without a model


@pytest.mark.usefixtures("provider")
def test_cuda_without_padding_where_it_was_built(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (H200,)
    unpadded = Build(("cuda-fp16.npz",), {}, {}, {})
    assert str(engines.automatic(model_with(model_dir, {"cuda:fp16": unpadded}))) == "cuda:fp16"
    built = {"cuda:fp16": unpadded, "tensorrt:fp16": build("tensorrt:fp16", "sm90")}
    assert str(engines.automatic(model_with(model_dir, built))) == "tensorrt:fp16"
    # what m3rt build makes of auto: what has no padding
    machine.libraries = ()
    assert str(engines.to_build("auto")) == "cuda:fp16"


@pytest.mark.usefixtures("provider")
def test_a_provider_without_a_gpu_is_not_ready(machine: Machine, model_dir: Path) -> None:
    machine.why = "the NVIDIA driver fails: cuInit gave CUDA_ERROR_NO_DEVICE"
    found = engines.probe("cuda")
    assert not found.ready
    assert found.detail.endswith(f"{CUDA}, but no GPU: {machine.why}")
    choice = engines.automatic(artifact.read(model_dir))
    assert str(choice) == "cpu:fp32"
    assert choice.why.endswith(f"{CUDA}, but no GPU: {machine.why}")
    with pytest.raises(m3rt.UnavailableError, match="but no GPU: the NVIDIA driver fails"):
        m3rt.load(model_dir, "cuda")


def test_nothing_is_started_or_imported_in_vain(
    machine: Machine, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # CUDA does not work in a process forked from one that started the driver
    machine.gpus = (H200,)
    assert str(engines.automatic(artifact.read(model_dir))) == "cpu:fp32"
    assert machine.started == 0  # no build, no provider: nothing could use it
    model = model_with(model_dir, every("sm90"))
    machine.gpus, machine.why = (), "the NVIDIA driver has no device"
    choice = engines.automatic(model)
    assert choice.why.endswith("no GPU: the NVIDIA driver has no device")
    monkeypatch.setattr(nvidia, "missing", lambda: "no NVIDIA driver")
    assert engines.automatic(model).why.endswith("no GPU: no NVIDIA driver")
    assert machine.started == 1
    assert not {"tensorrt", "tensorrt_rtx", "m3rt.engines.trt.backend"} & set(machine.imported)


def test_without_a_model_it_says_what_may_come_first(machine: Machine) -> None:
    assert "a TensorRT engine that fits would come first: m3rt inspect" in engines.automatic().why
    assert machine.started == 0


def test_no_engine_at_all(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "probe", lambda name: Probe(name, False, "pip install it"))
    with pytest.raises(m3rt.UnavailableError, match=r"no engine can run here: openvino: pip in"):
        engines.automatic()
    name, why = doctor.automatic()
    assert name is None
    assert why.endswith("; no cuda: pip install it")


def test_load_passes_the_model_and_says_why(machine: Machine, model_dir: Path) -> None:
    machine.gpus = (H200,)
    model = model_with(model_dir, every("sm90"))
    engine, choice = engines.start(model, "auto")
    assert engine.name == str(choice) == "tensorrt:fp16"
    on_disk = m3rt.load(model_dir)
    assert on_disk.engine.name == "cpu:fp32"
    assert "has no TensorRT engine in fp16 or bf16" in on_disk.why
    assert m3rt.load(model_dir, "cpu:fp32").why == "asked for"


def test_auto_goes_on_where_a_gpu_engine_does_not_open(machine: Machine, model_dir: Path) -> None:
    machine.gpus, machine.opens = (H200,), False
    model = model_with(model_dir, every("sm90"))
    engine, choice = engines.start(model, "auto")
    assert engine.name == str(choice) == "cpu:fp32"
    assert choice.why.endswith("; tensorrt:fp16 does not open: no memory")
    with pytest.raises(m3rt.UnavailableError, match="no memory"):
        engines.start(model, "tensorrt:fp16")


@pytest.mark.parametrize(
    ("gpu", "libraries", "spec"),
    [
        (H200, ("tensorrt", "tensorrt_rtx"), "tensorrt:fp16"),
        (H200, ("tensorrt_rtx",), "cpu:fp32"),
        (RTX5090, ("tensorrt_rtx",), "tensorrt-rtx:fp16"),
        (None, ("tensorrt", "tensorrt_rtx"), "cpu:fp32"),
    ],
)
def test_what_auto_builds(
    machine: Machine, gpu: Gpu | None, libraries: tuple[str, ...], spec: str
) -> None:
    machine.gpus = () if gpu is None else (gpu,)
    machine.libraries = libraries
    assert str(engines.to_build("auto")) == spec
    assert str(engines.to_build("openvino:fp32")) == "openvino:fp32"
