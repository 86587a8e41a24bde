"""Opening TensorRT engines: what is refused, with which advice, and what is kept."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import runtime as real

import m3rt
from m3rt import artifact, engines
from m3rt.artifact import Artifact
from m3rt.engines import cuda
from m3rt.engines.trt import backend as trt
from m3rt.engines.trt import library as trt_library
from m3rt.engines.trt.engine import Typed
from m3rt.engines.trt.profiles import Profile
from tests import contract, emulated, fake
from tests.emulated_cuda import Code, EmulatedCuda, Violation

ENGINES = ("tensorrt", "tensorrt-rtx")
NO_DRIVER = real.cudaGetDeviceCount()[0] == Code.cudaErrorInsufficientDriver


def rebuild(engine: str = "tensorrt") -> str:
    """The command that every refusal of a plan ends with."""
    return f"; run: m3rt build .*/model --engine {engine} --precision fp16 --force$"


@pytest.fixture
def device() -> EmulatedCuda:
    return EmulatedCuda()


@pytest.fixture
def tensorrt(device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> emulated.Library:
    return emulated.install(monkeypatch, device, "tensorrt")


@pytest.fixture
def rtx(device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> emulated.Library:
    return emulated.install(monkeypatch, device, "tensorrt_rtx")


def refused(folder: Path, engine: str, match: str) -> None:
    """Loading is refused, and leaves nothing behind on the device."""
    with pytest.raises(m3rt.ArtifactError, match=match):
        m3rt.load(folder, f"{engine}:fp16")
    gc.collect()  # the traceback held what was open
    device = sys.modules["cuda.bindings.runtime"]
    assert isinstance(device, EmulatedCuda)
    assert device.live() == 0


def test_a_plan_that_was_not_built(tensorrt: object, model_dir: Path) -> None:
    refused(model_dir, "tensorrt", "not been built for tensorrt:fp16; run: m3rt build")


@pytest.mark.parametrize(
    "recipe", [{}, {"plan": None}, {"plan": {"key": "0"}}, {"plan": {"profiles": 3}}]
)
def test_a_manifest_that_does_not_say_how(
    recipe: dict[str, Any], tensorrt: object, model_dir: Path, tmp_path: Path
) -> None:
    model = emulated.built(model_dir, tmp_path / "model", "tensorrt")
    entry = dataclasses.replace(model.manifest.builds["tensorrt:fp16"], recipe=recipe)
    builds = {"tensorrt:fp16": entry}
    fake.save(Artifact(model.path, dataclasses.replace(model.manifest, builds=builds)))
    refused(
        model.path, "tensorrt", f"does not say how it was built for tensorrt:fp16 .*{rebuild()}"
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"version": "10.12.0"},
            "was built by tensorrt 10.12.0, installed is tensorrt 10.13.3.9",
        ),
        ({"library": "tensorrt_rtx"}, "was built by tensorrt_rtx 10.13.3.9"),
        (
            {"target": ("sm89", "sm120")},
            r"was built for sm89, sm120, this GPU is Emulated GPU \(sm86\)",
        ),
    ],
)
def test_a_plan_for_something_else(
    facts: dict[str, Any], said: str, tensorrt: object, model_dir: Path, tmp_path: Path
) -> None:
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt", **facts).path
    refused(folder, "tensorrt", f"tensorrt-fp16.plan {said}.*{rebuild()}")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (12, 0), (12, 1)])
def test_a_portable_plan(
    capability: tuple[int, int],
    rtx: object,
    device: EmulatedCuda,
    model_dir: Path,
    tmp_path: Path,
) -> None:
    device.capability = capability
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt-rtx").path
    if capability < (8, 0):
        refused(
            folder,
            "tensorrt-rtx",
            r"built for ampere\+, this GPU is Emulated GPU \(sm75\).*--force$",
        )
    else:
        m3rt.load(folder, "tensorrt-rtx:fp16")


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (10, 3)])
def test_rtx_has_no_kernels_for_data_centres(
    capability: tuple[int, int],
    rtx: object,
    device: EmulatedCuda,
    model_dir: Path,
    tmp_path: Path,
) -> None:
    device.capability = capability
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt-rtx").path
    said = r"no kernels for Emulated GPU.*choose the tensorrt engine, pip install 'm3rt\[tensorrt\]"
    with pytest.raises(m3rt.UnavailableError, match=said):
        m3rt.load(folder, "tensorrt-rtx:fp16")
    probe = engines.probe("tensorrt-rtx")
    assert not probe.ready
    assert "choose the tensorrt engine" in probe.detail


def test_a_plan_that_cannot_be_read(tensorrt: object, model_dir: Path, tmp_path: Path) -> None:
    model = emulated.built(model_dir, tmp_path / "model", "tensorrt")
    plan = model.path / "tensorrt-fp16.plan"
    plan.write_bytes(b"something else")
    files = {**model.manifest.files, plan.name: artifact.describe(plan)}
    fake.save(Artifact(model.path, dataclasses.replace(model.manifest, files=files)))
    refused(
        model.path,
        "tensorrt",
        f"TensorRT cannot open .*: Serialization assertion magicTag failed.{rebuild()}",
    )


def without(plan: dict[str, Any]) -> None:
    del plan["tensors"]["sparse"]


def int64(plan: dict[str, Any]) -> None:
    plan["tensors"]["input_ids"]["dtype"] = "int64"


def single(plan: dict[str, Any]) -> None:
    plan["tensors"]["colbert"]["dtype"] = "float32"


def wide(plan: dict[str, Any]) -> None:
    plan["tensors"]["dense"]["shape"] = [-1, 128]


def flat(plan: dict[str, Any]) -> None:
    plan["tensors"]["sparse"]["shape"] = [-1]


def turned(plan: dict[str, Any]) -> None:
    plan["tensors"]["attention_mask"]["input"] = False


def fewer(plan: dict[str, Any]) -> None:
    del plan["profiles"][0]


def smaller(plan: dict[str, Any]) -> None:
    plan["profiles"][1][2] = [2, 512]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, "it has attention_mask, colbert, dense, input_ids, not .* sparse"),
        (int64, r"input_ids is DataType.INT64, not int32"),
        (single, "colbert is DataType.FLOAT, not float16"),
        (wide, r"dense is \(-1, 128\), not \(-1, 64\)"),
        (flat, r"sparse is \(-1,\), not \(-1, -1\)"),
        (turned, "attention_mask is not an TensorIOMode.INPUT"),
        (fewer, "it has 2 profiles, not 3"),
        (smaller, r"profile 1 of input_ids is .*\(2, 512\)\], not .*\(4, 512\)\]"),
    ],
)
def test_an_engine_of_another_form(
    change: emulated.Change, said: str, tensorrt: object, model_dir: Path, tmp_path: Path
) -> None:
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt", change).path
    refused(folder, "tensorrt", f"not the engine that the manifest describes: {said}{rebuild()}")


def test_memory_is_looked_at_first(
    tensorrt: object, device: EmulatedCuda, model_dir: Path, tmp_path: Path
) -> None:
    folder = emulated.built(
        model_dir, tmp_path / "model", "tensorrt", weights=900 << 20, memory=(1 << 20, 200 << 20, 0)
    ).path
    with pytest.raises(
        m3rt.UnavailableError,
        match=r"tensorrt:fp16 needs 1.1 GiB of the device's memory, and 1.0 GiB of 1.0 GiB are "
        f"free: .* build with a smaller --max-tokens{rebuild()}",
    ):
        m3rt.load(folder, "tensorrt:fp16")
    assert device.calls["cudaMalloc"] == 0


@pytest.mark.parametrize("streams", [0, 1])
def test_a_failed_start_leaves_nothing(
    streams: int, tensorrt: emulated.Library, device: EmulatedCuda, model_dir: Path, tmp_path: Path
) -> None:
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt").path
    tensorrt.refuse = {2: "Error Code 2: Internal"}
    if streams:
        device.fail("cudaStreamSynchronize", Code.cudaErrorInvalidValue, 1)
    with pytest.raises(m3rt.EngineError, match="CUDA failed" if streams else "TensorRT failed"):
        m3rt.load(folder, "tensorrt:fp16")
    gc.collect()
    assert device.live() == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (Code.cudaErrorNoDevice, "no CUDA device .*CUDA_VISIBLE_DEVICES, or choose an engine"),
        (Code.cudaErrorDevicesUnavailable, "no CUDA device .*nvidia-smi"),
        (
            Code.cudaErrorInsufficientDriver,
            r"install an NVIDIA driver for CUDA 13 or newer \(the driver here is for CUDA 12.4\), "
            "or choose an engine for CPUs: openvino or cpu",
        ),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_device(
    engine: str,
    code: Any,
    said: str,
    device: EmulatedCuda,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulated.install(monkeypatch, device, engine.replace("-", "_"))
    device.fail("cudaGetDeviceCount", code, 1, 2)
    with pytest.raises(m3rt.UnavailableError, match=said):
        m3rt.load(model_dir, f"{engine}:fp16")
    probe = engines.probe(engine)
    assert not probe.ready
    assert ("builds here, but cannot run" in probe.detail) == (engine == "tensorrt-rtx")


@pytest.mark.parametrize("engine", ENGINES)
def test_probe(engine: str, device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    library = emulated.install(monkeypatch, device, engine.replace("-", "_"))
    probe = engines.probe(engine)
    assert probe.ready
    version = library.__version__
    assert probe.detail == f"{library.__name__} {version}, Emulated GPU (sm86)"
    assert device.calls["cudaMemGetInfo"] == 0  # which would take memory on the device
    assert engines.choose(engine).precision == "fp16"
    assert engines.form(engines.choose(engine)) == "typed"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_library_that_is_not_installed(
    engine: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = engine.replace("-", "_")
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(trt_library, "import_module", absent)
    with pytest.raises(m3rt.UnavailableError, match=rf"{package}.*pip install 'm3rt\[{engine}\]'"):
        m3rt.load(model_dir, f"{engine}:fp16")
    assert f"pip install 'm3rt[{engine}]'" in engines.probe(engine).detail


def test_a_library_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(trt_library, "import_module", broken)
    probe = engines.probe("tensorrt")
    assert not probe.ready
    assert "cannot be imported: libnvinfer.so.10" in probe.detail


def test_cuda_bindings_that_are_not_installed(
    tensorrt: object, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'cuda'", name="cuda")

    monkeypatch.setattr(cuda, "import_module", absent)
    with pytest.raises(
        m3rt.UnavailableError, match=r"needs the package 'cuda-bindings'.*'m3rt\[tensorrt\]'"
    ):
        m3rt.load(model_dir, "tensorrt:fp16")


@pytest.mark.skipif(not NO_DRIVER, reason="this machine has an NVIDIA driver")
def test_without_a_driver(model_dir: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    said = (
        "no CUDA device can be used: cudaErrorInsufficientDriver: CUDA driver version is "
        r"insufficient for CUDA runtime version; install an NVIDIA driver for CUDA 1\d or newer "
        r"\(none is here\), or choose an engine for CPUs: openvino or cpu"
    )
    with pytest.raises(m3rt.UnavailableError, match=said):
        m3rt.load(model_dir, "tensorrt-rtx:fp16")
    probe = engines.probe("tensorrt-rtx")
    assert not probe.ready
    assert "builds here, but cannot run" in probe.detail
    assert "install an NVIDIA driver" in probe.detail


@pytest.mark.parametrize(("eager", "strategy"), [("", "LAZY"), ("1", "EAGER")])
def test_rtx_is_told_how_to_run(
    eager: str,
    strategy: str,
    rtx: emulated.Library,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(trt.EAGER, eager)
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt-rtx").path
    model = m3rt.load(folder, "tensorrt-rtx:fp16")
    assert len(rtx.configs) == 3
    for config in rtx.configs:
        assert config.cuda_graph_strategy == rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert config.dynamic_shapes_kernel_specialization_strategy.name == strategy
    for _ in range(6):
        model.encode(["a text"])
    assert rtx.cuda.calls["cudaStreamBeginCapture"] == 0  # it captures by itself


def test_rtx_keeps_its_kernels(
    rtx: emulated.Library, device: EmulatedCuda, model_dir: Path, tmp_path: Path
) -> None:
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt-rtx").path
    there = set(folder.iterdir())
    m3rt.load(folder, "tensorrt-rtx:fp16")
    assert rtx.compiled == 3
    (cache,) = set(folder.iterdir()) - there
    assert cache.name == "tensorrt-rtx-fp16.sm86.cache"
    stored = cache.read_bytes(), cache.stat().st_mtime_ns
    m3rt.load(folder, "tensorrt-rtx:fp16")
    assert rtx.compiled == 3
    assert (cache.read_bytes(), cache.stat().st_mtime_ns) == stored  # nothing new, nothing written
    cache.write_bytes(b"not a cache")
    m3rt.load(folder, "tensorrt-rtx:fp16")
    assert rtx.compiled == 6
    assert cache.read_bytes() == stored[0]
    device.capability = (8, 9)  # another device has its own
    m3rt.load(folder, "tensorrt-rtx:fp16")
    assert {path.name for path in set(folder.iterdir()) - there} == {
        "tensorrt-rtx-fp16.sm86.cache",
        "tensorrt-rtx-fp16.sm89.cache",
    }
    assert artifact.read(folder)  # the directory is still whole


def test_kernels_of_later_shapes_are_kept_at_the_end(
    rtx: emulated.Library, model_dir: Path, tmp_path: Path
) -> None:
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt-rtx").path
    texts = ["a text", "water " * 40]
    for compiled in (3 + 2, 3 + 2):
        model = m3rt.load(folder, "tensorrt-rtx:fp16")
        for text in texts:
            model.encode([text])
        assert isinstance(model.engine, Typed)
        model.engine.close()
        assert rtx.compiled == compiled


def test_a_directory_that_cannot_be_written(
    rtx: emulated.Library, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt-rtx").path
    there = set(folder.iterdir())

    def read_only(*args: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, read_only)
            contract.shapes(m := m3rt.load(folder, "tensorrt-rtx:fp16"), m.encode(["a"]), ["a"])
        assert set(folder.iterdir()) == there


def test_profiles_for_longer_texts_than_the_model_takes(
    tensorrt: emulated.Library, model_dir: Path, tmp_path: Path
) -> None:
    profiles = (
        *emulated.PROFILES,
        Profile((1, 4097), (1, 4200), (1, 9000)),
        Profile((1, 8193), (1, 9000), (1, 9000)),
    )
    folder = emulated.built(model_dir, tmp_path / "model", "tensorrt", profiles=profiles).path
    model = m3rt.load(folder, "tensorrt:fp16")
    assert model.max_length == model.manifest.max_length == 8192
    assert len(tensorrt.ran) == 4  # one warm-up for each profile that can be needed
    assert isinstance(model.engine, Typed)


def test_the_real_library_says_why(tmp_path: Path) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    plan = tmp_path / "damaged.plan"
    plan.write_bytes(b"no plan at all" * 100)
    with pytest.raises(
        m3rt.ArtifactError, match=r"cannot open .*damaged.plan: .*Serialization.*; run: this"
    ):
        trt.deserialize(library, plan, "run: this")


def test_the_real_bindings_take_what_they_are_given() -> None:
    stream, event, graph = real.cudaStream_t(0), real.cudaEvent_t(0), real.cudaGraphExec_t(0)
    up = real.cudaMemcpyKind.cudaMemcpyHostToDevice
    mode = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    calls: dict[str, tuple[Any, ...]] = {
        "cudaGetDeviceCount": (),
        "cudaGetDeviceProperties": (0,),
        "cudaMemGetInfo": (),
        "cudaMalloc": (256,),
        "cudaHostAlloc": (256, real.cudaHostAllocDefault),
        "cudaFree": (0,),
        "cudaFreeHost": (0,),
        "cudaStreamCreateWithFlags": (real.cudaStreamNonBlocking,),
        "cudaStreamSynchronize": (stream,),
        "cudaEventCreateWithFlags": (real.cudaEventDisableTiming | real.cudaEventBlockingSync,),
        "cudaMemcpyAsync": (0, 0, 0, up, stream),
        "cudaStreamBeginCapture": (stream, mode),
        "cudaStreamEndCapture": (stream,),
        "cudaGraphInstantiate": (real.cudaGraph_t(0), 0),
    }
    if NO_DRIVER:  # with one, these would not be harmless
        calls |= {
            "cudaStreamWaitEvent": (stream, event, 0),
            "cudaEventRecord": (event, stream),
            "cudaEventSynchronize": (event,),
            "cudaGraphLaunch": (graph, stream),
            "cudaStreamDestroy": (stream,),
            "cudaEventDestroy": (event,),
            "cudaGraphDestroy": (real.cudaGraph_t(0),),
            "cudaGraphExecDestroy": (graph,),
        }
    values = {"cudaMemGetInfo": 2}
    values |= dict.fromkeys(
        (
            *("cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaMalloc", "cudaHostAlloc"),
            *("cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaStreamEndCapture"),
            "cudaGraphInstantiate",
        ),
        1,
    )
    for name, args in calls.items():
        code, *found = getattr(real, name)(*args)  # no TypeError
        assert isinstance(code, Code)
        assert len(found) == values.get(name, 0), name


def test_sizes_and_versions_as_people_read_them() -> None:
    assert [cuda.size(n) for n in (5, 3 << 20, 3 << 29)] == ["5 bytes", "3.0 MiB", "1.5 GiB"]
    assert [cuda.cuda_version(n) for n in (13050, 12040, 9000)] == ["13.5", "12.4", "9.0"]


def test_memory_grows_in_steps() -> None:
    for needed in (1, 100, 2 << 20, (2 << 20) + 1, 10**9, 12_345_678_901):
        room = cuda.rounded(needed)
        assert needed <= room <= needed + max(cuda.GRAIN, needed / 8)
    assert len({cuda.rounded(needed) for needed in range(1 << 29, 1 << 30, 1 << 20)}) <= 9


def test_memory_that_is_gone_has_no_bytes(device: EmulatedCuda) -> None:
    calls = cuda.Cuda(device)
    pinned, on_device = cuda.Memory(calls, pinned=True), cuda.Memory(calls)
    pinned.ensure(10)
    assert pinned.view(0, 10).tolist() == [255] * 10
    on_device.ensure(10)
    for memory in (pinned, on_device):
        with pytest.raises(ValueError, match="bytes 0 to"):
            memory.view(0, 3 << 20)
    pinned.release()
    with pytest.raises(ValueError, match="bytes 0 to 1 of 0"):
        pinned.view(0, 1)
    on_device.release()
    on_device.release()
    assert device.live() == 0


def test_the_emulation_is_strict(device: EmulatedCuda) -> None:
    stream = cuda.Stream(cuda.Cuda(device))
    there, here = (cuda.Memory(cuda.Cuda(device), pinned) for pinned in (False, True))
    there.ensure(64)
    here.ensure(64)
    stream.upload(here.address, there.address, 64)  # the wrong way
    with pytest.raises(Violation, match="is device memory"):
        stream.synchronize()
    stream.upload(there.address, here.address, there.bytes + 1)
    with pytest.raises(Violation, match="not of one living allocation"):
        stream.synchronize()
    stream.upload(there.address, here.address, 64)
    there.release()
    with pytest.raises(Violation, match="not of one living allocation"):
        stream.synchronize()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (emulated.Runtime, "Runtime"),
        (emulated.CudaEngine, "ICudaEngine"),
        (emulated.RuntimeConfig, "IRuntimeConfig"),
        (emulated.RuntimeCache, "IRuntimeCache"),
        (emulated.ExecutionContext, "IExecutionContext"),
    ],
)
def test_the_emulation_has_no_method_that_the_library_has_not(ours: type[Any], theirs: str) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    inside = {"get_tensor_dtype"}  # of a context; the real one asks the engine
    for name, function in vars(ours).items():
        if not name.startswith("_") and callable(function) and name not in inside:
            found = getattr(getattr(library, theirs), name)
            documented = inspect.getdoc(found) or ""
            arguments = list(inspect.signature(function).parameters)[1:]
            if "Overloaded" not in documented and arguments != ["how"]:
                assert all(f"{argument}: " in documented for argument in arguments), name
    for strategy in ("WHOLE_GRAPH_CAPTURE", "DISABLED"):
        assert hasattr(library.CudaGraphStrategy, strategy)
    assert hasattr(library.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(library.ExecutionContextAllocationStrategy, "USER_MANAGED")
    for kind in trt.DTYPES.values():
        assert hasattr(library.DataType, kind)
    assert library.ILogger.ERROR != library.ILogger.INTERNAL_ERROR
