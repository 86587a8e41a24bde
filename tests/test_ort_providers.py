"""TensorRT and TensorRT-RTX as ONNX Runtime's providers: what they are given, and what is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from rich.progress import Progress
from typer.testing import CliRunner

import m3rt
from m3rt import artifact, build, cli, doctor, engines, nvidia
from m3rt.artifact import MANIFEST
from m3rt.engines import ort_trt
from m3rt.engines import providers as found_providers
from m3rt.engines.cached import cached
from m3rt.engines.providers import RTX, TENSORRT, find
from m3rt.engines.trt.profiles import parse
from m3rt.engines.trt.shaping import Shaping
from m3rt.engines.trt.tensors import outputs
from m3rt.errors import ArtifactError, EngineError, InputError, UnavailableError
from m3rt.export import typed
from m3rt.nvidia import Driver, Gpu
from tests import contract
from tests.conftest import copied, exported
from tests.providers import MAGIC, Machine, Named, install

PROFILES = "1x1:4x32:16x64,1x65:2x72:4x512,1x513:1x520:2x2048"
SHAPING = Shaping(max_length=2048, profiles=parse(PROFILES))
SPECS = ("ort-tensorrt:fp16", "ort-tensorrt:bf16", "ort-tensorrt-rtx:fp16")
TYPED = {"trt_fp16_enable": "0", "trt_bf16_enable": "0", "trt_int8_enable": "0"}
CHECKED = {
    "session.disable_cpu_ep_fallback": "1",
    "session.record_ep_graph_assignment_info": "1",
}


@pytest.fixture(scope="module")
def made(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, built where no provider and no GPU is. Tests must not write in it."""
    folder = copied(model_dir, tmp_path_factory.mktemp("providers") / "made").path
    for spec in SPECS:
        build.run(folder, spec, shaping=SHAPING)
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(made, tmp_path / "mine").path


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with the provider of TensorRT."""
    machine = Machine()
    install(monkeypatch, machine)
    return machine


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with the provider of TensorRT-RTX, a plugin."""
    machine = Machine()
    install(monkeypatch, machine, RTX)
    return machine


def cache_of(folder: Path, spec: str = "ort-tensorrt:fp16") -> list[Path]:
    """What is kept of an engine."""
    home = folder / f"{spec.replace(':', '-')}.cache"
    return sorted(home.iterdir()) if home.is_dir() else []


@pytest.mark.parametrize("spec", SPECS)
def test_a_build_is_the_typed_graph(made: Path, spec: str) -> None:
    found = artifact.read(made)
    entry = found.manifest.builds[spec]
    name = f"{spec.replace(':', '-')}.onnx"
    assert set(entry.files) == {name, f"{name}.data"}
    assert entry.parity["engine"] == f"{spec} as its graph on ONNX Runtime"
    assert entry.certificate is not None
    assert entry.recipe["profiles"] == PROFILES
    precision = spec.partition(":")[2]
    graph = typed.write(found, precision, None, (), Progress(disable=True))
    assert entry.recipe["graph"] == graph.sha256
    assert entry.recipe["weights"] == graph.nbytes
    model = onnx.load(made / name)
    beside = {one.name: one for one in model.graph.initializer if one.name in graph.weights}
    assert beside.keys() == graph.weights.keys()
    for key, tensor in beside.items():
        weights = numpy_helper.to_array(tensor)
        assert weights.tobytes() == graph.weights[key].tobytes()
    head = onnx.load(made / name, load_external_data=False)
    for tensor in head.graph.initializer:
        where = {one.key: one.value for one in tensor.external_data}
        assert not where or (int(where["offset"]) % 4096, where["location"]) == (0, f"{name}.data")


def test_onnx_runtime_reads_the_file_itself(made: Path) -> None:
    """With every type as it is written, where it has the kernels."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(made / "ort-tensorrt-fp16.onnx", options)
    assert {one.type for one in session.get_inputs()} == {"tensor(int32)"}
    types = {one.name: one.type for one in session.get_outputs()}
    assert types["dense"] == "tensor(float)"
    assert types["colbert"] == "tensor(float16)"


@pytest.mark.parametrize("spec", SPECS)
def test_the_contract(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, model: m3rt.M3
) -> None:
    install(monkeypatch, Machine(), RTX if "rtx" in spec else TENSORRT)
    folder = copied(made, tmp_path / "mine").path
    mine = m3rt.load(folder, spec)
    assert mine.engine.name == spec
    tolerance = 2e-3 if spec.endswith("fp16") else 2e-2
    contract.check(mine, tolerance=tolerance)
    exact, found = (one.encode(contract.TEXTS, max_length=2048) for one in (model, mine))
    for i in range(len(contract.TEXTS)):
        contract.same(found, i, exact, i, tolerance)


def test_what_tensorrt_is_told(mine: Path, tensorrt: Machine) -> None:
    engine = m3rt.load(mine, "ort-tensorrt:fp16", streams=2).engine
    assert engine.limits.parallel == 2
    assert engine.limits.max_length == 2048
    kept = cache_of(mine)
    assert len(kept) == 3
    filled, opened = tensorrt.sessions[::2], tensorrt.sessions[1::2]
    bounds = (("1x1", "4x32", "16x64"), ("1x65", "2x72", "4x512"), ("1x513", "1x520", "2x2048"))
    for first, second, shapes in zip(filled, opened, bounds, strict=True):
        low, best, high = (f"input_ids:{one},attention_mask:{one}" for one in shapes)
        wanted = {
            "device_id": "0",
            **TYPED,
            "trt_profile_min_shapes": low,
            "trt_profile_opt_shapes": best,
            "trt_profile_max_shapes": high,
            "trt_engine_cache_enable": "1",
        }
        for how in (first, second):
            told = dict(how.told)
            folder = Path(told.pop("trt_engine_cache_path"))
            assert told == wanted
            assert folder.parent == mine / "ort-tensorrt-fp16.cache"
            assert (folder in kept) == (how is second)
            assert how.path == mine / "ort-tensorrt-fp16.onnx"
            assert (how.provider, how.fallback, how.devices) == (TENSORRT, 0, ())
            assert how.config == CHECKED
            assert how.level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_what_rtx_is_told(mine: Path, rtx: Machine) -> None:
    m3rt.load(mine, "ort-tensorrt-rtx:fp16")
    assert rtx.registered == [(RTX, "/somewhere/libonnxruntime_providers_nv_tensorrt_rtx.so")]
    kept = cache_of(mine, "ort-tensorrt-rtx:fp16")
    first, second, *_ = rtx.sessions
    shapes = {
        "nv_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "nv_profile_opt_shapes": "input_ids:4x32,attention_mask:4x32",
        "nv_profile_max_shapes": "input_ids:16x64,attention_mask:16x64",
    }
    assert first.path == mine / "ort-tensorrt-rtx-fp16.onnx"
    assert first.told == shapes
    context = Path(first.config["ep.context_file_path"])
    assert context.parent not in kept
    assert first.config == CHECKED | {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": str(context),
    }
    assert second.path.parent in kept
    assert second.path.name == context.name
    # written when the session ends: where the folder stays
    assert second.told == shapes | {"nv_runtime_cache_path": str(second.path.parent)}
    assert second.config == CHECKED
    for how in (first, second):
        assert (how.fallback, [one.name for one in how.devices]) == (0, ["first"])
    m3rt.load(mine, "ort-tensorrt-rtx:fp16")
    assert rtx.compiled == 3
    assert len(rtx.registered) == 1


def test_rtx_that_is_built_in(mine: Path, rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_providers, "find_spec", lambda name: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [RTX])
    m3rt.load(mine, "ort-tensorrt-rtx:fp16")
    assert not rtx.registered
    assert {(how.provider, len(how.devices)) for how in rtx.sessions} == {(RTX, 0)}


def test_what_is_kept_is_for_one_gpu_version_and_graph(
    mine: Path, tensorrt: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded() -> int:
        before = tensorrt.compiled
        m3rt.load(mine, "ort-tensorrt:fp16")
        return tensorrt.compiled - before

    assert [loaded(), loaded()] == [3, 0]
    shutil.move(mine, mine.with_name("moved"))
    mine = mine.with_name("moved")
    assert loaded() == 0
    for change in (
        {"name": "Another"},
        {"capability": (8, 6)},
        {"memory": 12 << 30},
    ):
        tensorrt.gpu = dataclasses.replace(tensorrt.gpu, **change)
        assert [loaded(), loaded()] == [3, 0]
    monkeypatch.setattr(found_providers, "nvinfer", lambda version, install: "10.16.2")
    assert [loaded(), loaded()] == [3, 0]
    monkeypatch.setattr(ort, "__version__", "1.99.0")
    assert [loaded(), loaded()] == [3, 0]
    assert len(cache_of(mine)) == 18
    one = Shaping(profiles=parse("1x1:4x32:16x64,1x65:2x72:4x2048"))
    recipe(mine, profiles=",".join(map(str, one.profiles or ())))
    assert [loaded(), loaded()] == [1, 0]  # the first profile is as before
    recipe(mine, graph="another")
    assert [loaded(), loaded()] == [2, 0]
    assert len(cache_of(mine)) == 2  # the other graph is there no more


def recipe(folder: Path, **changes: object) -> None:
    """Change what the manifest says of a build; None: it does not say."""
    data = json.loads((folder / MANIFEST).read_bytes())
    found = data["builds"]["ort-tensorrt:fp16"]["recipe"] | changes
    kept = {name: value for name, value in found.items() if value is not None}
    data["builds"]["ort-tensorrt:fp16"]["recipe"] = kept
    (folder / MANIFEST).write_text(json.dumps(data), "utf-8")


def test_a_damaged_engine_is_compiled_again(mine: Path, tensorrt: Machine) -> None:
    m3rt.load(mine, "ort-tensorrt:fp16")
    (engine,) = cache_of(mine)[0].iterdir()
    engine.write_text(engine.read_text()[:-3])
    m3rt.load(mine, "ort-tensorrt:fp16")
    assert tensorrt.compiled == 4
    m3rt.load(mine, "ort-tensorrt:fp16")
    assert tensorrt.compiled == 4
    assert engine.read_text().startswith(MAGIC)


def test_a_folder_that_was_not_finished_is_not_read(mine: Path, tensorrt: Machine) -> None:
    home = mine / "ort-tensorrt-fp16.cache"
    dead, alive = home / ".999999999-abc", home / f".{os.getpid()}-abc"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    m3rt.load(mine, "ort-tensorrt:fp16")
    assert not dead.exists()
    assert alive.exists()
    assert len(cache_of(mine)) == 4

    tensorrt.refuses = "the builder was killed"
    shutil.rmtree(home)
    with pytest.raises(EngineError, match="the builder was killed"):
        m3rt.load(mine, "ort-tensorrt:fp16")
    assert cache_of(mine) == []


def test_where_nothing_can_be_written_nothing_is_kept(mine: Path, tensorrt: Machine) -> None:
    (mine / "ort-tensorrt-fp16.cache").write_text("in the way")
    found = m3rt.load(mine, "ort-tensorrt:fp16").encode(["a text"])
    assert len(found) == 1
    assert tensorrt.compiled == 3
    for how in tensorrt.sessions:
        assert how.told["trt_engine_cache_enable"] == "0"
        assert "trt_engine_cache_path" not in how.told


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    """Libraries do not tell that they could not write."""
    asked: list[tuple[Path | None, bool]] = []

    def opened(folder: Path | None, fresh: bool = False) -> str:
        asked.append((folder, fresh))
        if folder is not None and not fresh:
            raise EngineError("could not deserialize")
        return "open"

    home = tmp_path / "home"
    assert cached(home, "graph", "key", opened) == "open"
    assert [fresh for _, fresh in asked] == [True, False, False]
    assert asked[1:] == [(home / "graph-key", False), (None, False)]
    assert not list(home.iterdir())


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    kept = tmp_path / "graph-key"

    def opened(folder: Path | None, fresh: bool = False) -> str:
        assert folder is not None
        if fresh:
            (folder / "engine").write_text("mine")
            kept.mkdir()  # the other was first
            (kept / "engine").write_text("theirs")
        return (folder / "engine").read_text()

    assert cached(tmp_path, "graph", "key", opened) == "theirs"
    assert [one.name for one in tmp_path.iterdir()] == ["graph-key"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"elsewhere": "CPUExecutionProvider"}, "does not run all of .*, but CPUExecutionProvider"),
        ({"refuses": "nodes that are assigned to the default CPU EP"}, "assigned to the default"),
    ],
)
def test_no_other_provider_takes_its_place(
    mine: Path, tensorrt: Machine, change: dict[str, Any], error: str
) -> None:
    tensorrt.__dict__.update(change)
    cure = f"run: m3rt build {mine} --engine ort-tensorrt --precision fp16 --force"
    with pytest.raises(EngineError, match=error) as raised:
        m3rt.load(mine, "ort-tensorrt:fp16")
    assert cure in str(raised.value)
    assert "TensorRT 10.16.1" in str(raised.value)


def test_the_real_session_refuses_a_provider_that_is_not_there(made: Path) -> None:
    """ONNX Runtime itself, with the same options: it does not go on to the processor."""
    gpu = Gpu(0, "A GPU", (8, 9), 24 << 30)
    provider = found_providers.Provider(TENSORRT, "none", gpu)
    profile = parse(PROFILES)[0]
    path = made / "ort-tensorrt-fp16.onnx"
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(EngineError, match=r"fallback to CPU EP has been explicitly disabled"),
    ):
        found_providers.opened(provider, path, profile, "again", None)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"profiles": None}, "does not say how it was built"),
        ({"profiles": "1x1"}, "does not say how it was built"),
        ({"graph": None}, "does not say how it was built"),
        ({"weights": "many"}, "does not say how it was built"),
    ],
)
def test_a_foreign_manifest(
    mine: Path, tensorrt: Machine, changes: dict[str, Any], error: str
) -> None:
    recipe(mine, **changes)
    with pytest.raises(ArtifactError, match=f"{error}.*; run: m3rt build .* --force"):
        m3rt.load(mine, "ort-tensorrt:fp16")
    assert not tensorrt.sessions


@pytest.mark.parametrize("suffix", ["", ".data"])
def test_a_damaged_file(mine: Path, tensorrt: Machine, suffix: str) -> None:
    path = mine / f"ort-tensorrt-fp16.onnx{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut or changed"):
        m3rt.load(mine, "ort-tensorrt:fp16")
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        m3rt.load(mine, "ort-tensorrt:fp16")
    assert not tensorrt.sessions


def test_the_graph_of_another_model(
    mine: Path, tensorrt: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_trt, "outputs", lambda manifest: outputs(manifest)[:1])
    with pytest.raises(ArtifactError, match=r"it has colbert .*, not dense tensor\(float\); run:"):
        m3rt.load(mine, "ort-tensorrt:fp16")


def test_a_shape_outside_of_a_profile_is_an_error(mine: Path, tensorrt: Machine) -> None:
    engine = m3rt.load(mine, "ort-tensorrt:fp16").engine
    batch = contract.batch_of(2049)
    with pytest.raises(EngineError, match="no profile of ort-tensorrt:fp16 takes more than 2048"):
        engine.run(batch, m3rt.Heads.DENSE)
    assert isinstance(engine, ort_trt.Profiled)
    profile, engine._profiles = engine._profiles, parse("1x1:4x32:16x2048")
    with pytest.raises(EngineError, match="ONNX Runtime failed: setInputShape"):
        engine.run(contract.batch_of(100), m3rt.Heads.DENSE)
    engine._profiles = profile


def test_short_memory_halves_a_batch(mine: Path, tensorrt: Machine) -> None:
    engine = m3rt.load(mine, "ort-tensorrt:fp16").engine
    batch = contract.batch_of(*[40] * 8)
    whole = engine.run(batch, m3rt.Heads.ALL)
    tensorrt.full = 100
    parts = engine.run(batch, m3rt.Heads.ALL)
    assert whole.dense is not None
    assert parts.dense is not None
    np.testing.assert_allclose(whole.dense, parts.dense, atol=1e-3)
    assert len(parts.colbert or ()) == 8
    tensorrt.full = 10
    with pytest.raises(EngineError, match=r"a text of 40 tokens does not fit: .*out of memory"):
        engine.run(contract.batch_of(40), m3rt.Heads.DENSE)


def test_memory_is_counted_for_each_profile(mine: Path, tensorrt: Machine) -> None:
    tensorrt.gpu = dataclasses.replace(tensorrt.gpu, memory=1 << 20)
    with pytest.raises(UnavailableError, match=r"for 3 profiles, .* smaller --profile-count"):
        m3rt.load(mine, "ort-tensorrt:fp16")
    assert not tensorrt.sessions


def test_on_a_gpu_the_engine_itself_is_certified(
    model_dir: Path, tmp_path: Path, tensorrt: Machine
) -> None:
    folder = copied(model_dir, tmp_path / "mine").path
    _, built = build.run(folder, "ort-tensorrt:fp16", shaping=SHAPING)
    assert built.manifest.builds["ort-tensorrt:fp16"].parity["engine"] == "ort-tensorrt:fp16"
    assert tensorrt.compiled == 3
    m3rt.load(folder, "ort-tensorrt:fp16")
    assert tensorrt.compiled == 3  # what the trial compiled is kept
    assert artifact.read(folder).manifest == built.manifest


@pytest.mark.slow
def test_a_reranker(
    reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, tensorrt: Machine
) -> None:
    folder = exported(reranker_checkpoint, tmp_path_factory)
    build.run(folder, "ort-tensorrt:fp16", shaping=Shaping(count=2))
    pairs = [("a question", "an answer"), ("a question", "water " * 200)]
    exact = m3rt.load_reranker(folder, "cpu").score(pairs)
    found = m3rt.load_reranker(folder, "ort-tensorrt:fp16").score(pairs)
    np.testing.assert_allclose(found.scores, exact.scores, atol=2e-2)


# What is missing, and the cure, in one line.


def refusal(engine: str) -> str:
    """What probe and load say."""
    found = engines.probe(engine)
    assert not found.ready
    assert "\n" not in found.detail
    with pytest.raises(UnavailableError) as raised:
        find(engine)
    assert str(raised.value) == found.detail
    return found.detail


def test_the_provider_is_missing(made: Path) -> None:
    said = refusal("ort-tensorrt")
    assert said.startswith(f"onnxruntime {ort.__version__} has no {TENSORRT}, only ")
    assert said.endswith(": pip uninstall onnxruntime; pip install 'm3rt[ort-tensorrt]'")
    with pytest.raises(UnavailableError, match=f"has no {TENSORRT}"):
        m3rt.load(made, "ort-tensorrt:fp16")


def test_the_plugin_is_missing() -> None:
    said = refusal("ort-tensorrt-rtx")
    assert "needs the package 'onnxruntime_ep_nv_tensorrt_rtx', which is not installed" in said
    assert said.endswith(": pip install 'm3rt[ort-tensorrt-rtx]'")


@pytest.mark.parametrize("name", [TENSORRT, RTX])
def test_the_gpu_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install(monkeypatch, machine := Machine(), name)
    monkeypatch.setattr(nvidia, "read", lambda: Driver(None, (), "no NVIDIA driver"))
    said = refusal("ort-tensorrt" if name == TENSORRT else "ort-tensorrt-rtx")
    assert said == f"onnxruntime {ort.__version__} is here, but no GPU: no NVIDIA driver"
    assert not machine.registered  # without a driver it does not load


def test_an_old_onnx_runtime(tensorrt: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "InferenceSession", object)
    assert refusal("ort-tensorrt").endswith(
        "does not tell which provider runs what: pip install 'm3rt[ort-tensorrt]'"
    )


@pytest.mark.parametrize(
    ("linked", "here", "missing"),
    [
        (b"\0libnvinfer.so.10\0", (), "libnvinfer.so.10, of TensorRT 10,"),
        (b"\0libnvinfer.so.12\0", (), "libnvinfer.so.12, of TensorRT 12,"),
        (b"\0libnvinfer.so.10\0", ("libnvinfer.so.10",), "libnvonnxparser.so.10, of TensorRT 10,"),
        (None, (), "libnvinfer.so.10, of TensorRT 10,"),
    ],
)
def test_the_library_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    linked: bytes | None,
    here: tuple[str, ...],
    missing: str,
) -> None:
    nvinfer = found_providers.nvinfer
    install(monkeypatch, Machine())
    monkeypatch.setattr(found_providers, "nvinfer", nvinfer)
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(
        found_providers, "load", lambda name, folders: object() if name in here else None
    )
    if linked is not None:
        (tmp_path / "capi").mkdir()
        (tmp_path / "capi" / found_providers.LINKED).write_bytes(linked)
    said = refusal("ort-tensorrt")
    assert missing in said
    assert said.endswith(
        "which is not here: pip install 'm3rt[ort-tensorrt]', or put its folder into "
        "LD_LIBRARY_PATH"
    )


def test_the_library_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvinfer = found_providers.nvinfer
    install(monkeypatch, Machine())
    monkeypatch.setattr(found_providers, "nvinfer", nvinfer)
    asked = []

    def load(name: str, folders: list[str]) -> Any:
        asked.append((name, folders))
        return SimpleNamespace(getInferLibVersion=lambda: 101601)

    wheel = SimpleNamespace(submodule_search_locations=["/site/tensorrt_libs"])
    monkeypatch.setattr(found_providers, "load", load)
    monkeypatch.setattr(found_providers, "find_spec", lambda name: wheel)
    found = find("ort-tensorrt")
    assert found.version == f"onnxruntime {ort.__version__}, TensorRT 10.16.1"
    folders = ["", "/site/tensorrt_libs"]
    assert asked == [("libnvinfer.so.10", folders), ("libnvonnxparser.so.10", folders)]
    assert "on A GPU (sm89)" in engines.probe("ort-tensorrt").detail


def test_libraries_are_loaded_from_where_they_are(tmp_path: Path) -> None:
    assert found_providers.load("libm.so.6", ["", str(tmp_path)]) is not None
    assert found_providers.load("libnothing.so.1", ["", str(tmp_path)]) is None


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0), (10, 3)])
def test_rtx_leaves_out_a_gpu(rtx: Machine, capability: tuple[int, int]) -> None:
    rtx.gpu = dataclasses.replace(rtx.gpu, capability=capability)
    said = refusal("ort-tensorrt-rtx")
    assert said.startswith("TensorRT for RTX has no provider for A GPU (sm")
    assert said.endswith("choose the ort-tensorrt engine, pip install 'm3rt[ort-tensorrt]'")
    assert not rtx.registered


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (12, 0), (12, 1)])
def test_rtx_takes_a_gpu(rtx: Machine, capability: tuple[int, int]) -> None:
    rtx.gpu = dataclasses.replace(rtx.gpu, capability=capability)
    found = engines.probe("ort-tensorrt-rtx")
    assert found.ready
    assert "onnxruntime_ep_nv_tensorrt_rtx 0.5.0" in found.detail


def test_the_plugin_does_not_load(rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def register(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    said = refusal("ort-tensorrt-rtx")
    assert "cannot be loaded into onnxruntime" in said
    assert "libcuda.so.1" in said
    assert said.endswith("pip install --force-reinstall 'm3rt[ort-tensorrt-rtx]'")


def test_the_plugin_has_no_device(rtx: Machine) -> None:
    rtx.devices = [Named(ep_name="CPUExecutionProvider")]
    assert "0.5.0 has no device where the driver has A GPU (sm89)" in refusal("ort-tensorrt-rtx")


# The commands.


def test_options_of_shapes(model_dir: Path, tmp_path: Path) -> None:
    folder = copied(model_dir, tmp_path / "mine").path
    command = ["build", str(folder), "--engine", "ort-tensorrt", "--precision", "fp16"]
    shaped = [*command, "--max-length", "512", "--max-tokens", "1024", "--profile-count", "2"]
    done = CliRunner().invoke(cli.app, shaped)
    assert done.exit_code == 0, done.output
    found = artifact.read(folder).manifest.builds["ort-tensorrt:fp16"].recipe["profiles"]
    profiles = parse(str(found))
    assert len(profiles) == 2
    assert profiles[-1].most == (2, 512)
    done = CliRunner().invoke(cli.app, [*command, "--force", "--target", "sm89"])
    assert done.exit_code == InputError.exit_code
    assert "compiles on the GPU that it runs on: leave out --target" in " ".join(
        done.output.split()
    )
    shown = CliRunner().invoke(cli.app, ["inspect", str(folder)])
    assert "ort-tensorrt:fp16" in shown.stdout


def test_doctor_lists_them() -> None:
    assert {"ort-tensorrt", "ort-tensorrt-rtx"} <= {one.engine for one in doctor.examine().engines}


def test_auto_does_not_choose_them(made: Path, tensorrt: Machine) -> None:
    assert str(engines.automatic(artifact.read(made))).startswith(("cpu:", "openvino:"))


def test_other_precisions_are_refused() -> None:
    with pytest.raises(InputError, match="ort-tensorrt has no precision 'int8'"):
        engines.choose("ort-tensorrt:int8")
    assert str(engines.choose("ort-tensorrt-rtx")) == "ort-tensorrt-rtx:fp16"
