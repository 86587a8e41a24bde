"""Real engines, built by TensorRT-RTX without a GPU: what they launch, hold, and refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tensorrt_rtx as trt
from rich.progress import Progress
from typer.testing import CliRunner

import m3rt
from m3rt import artifact, build, cli, engines, export, nvidia, parity
from m3rt.engines import ort
from m3rt.engines.trt import build as trt_build
from m3rt.engines.trt import builder, callbacks, kernels
from m3rt.engines.trt.plan import PORTABLE, Plan
from m3rt.engines.trt.profiles import Profile, predicted
from m3rt.engines.trt.shaping import Shaping, resolve
from m3rt.errors import EngineError, InputError, UnavailableError
from m3rt.export import mixed, quantize, typed
from m3rt.export.passes import operand, producer
from m3rt.gate import Terms
from m3rt.graph import Graph
from m3rt.nvidia import Driver, Gpu
from m3rt.parity import Reference
from m3rt.trial import EIGHT_BITS
from tests.conftest import ROOT, copied
from tests.test_mixed import (
    PRECISIONS,
    add_up_in_half,
    batch_of,
    keep_probabilities,
    keep_scores,
    softmax_of,
)

BARS = Progress(disable=True)
TARGETS = ("sm86", "sm89", "sm120")
LAYERS = 4  # of the small model
ONE = (Profile((1, 1), (4, 64), (16, 128)),)
PRODUCTS = {
    "fp16": ("half", "half"),
    "bf16": ("bf16", "bf16"),
    "int8": ("int8", "int8"),
    "fp8": ("fp8_e4m3", "fp8_e4m3"),
}


@pytest.fixture(scope="module")
def graphs(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    """The small model's graph in every precision."""
    made = artifact.read(small_dir)
    ids = Reference.read(small_dir / parity.REFERENCE).ids
    folder = tmp_path_factory.mktemp("recipes")
    found = {}
    for precision in PRECISIONS:
        recipe = None
        if precision in EIGHT_BITS:
            grid = quantize.grid("typed", precision)
            recipe = quantize.plan(made, grid, ids, folder, BARS)
        found[precision] = typed.write(made, precision, recipe, (), BARS)
    return found


def built(
    graph: Graph, profiles: tuple[Profile, ...] = ONE, *target: str
) -> tuple[builder.Built, kernels.Kernels]:
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        made = builder.build(trt, graph, profiles, target, plan, None, BARS)
        found = kernels.read(plan)
    assert found is not None
    return made, found


def planted(small_dir: Path, plant: Callable[[ir.Model], None]) -> Graph:
    """The small model in float16, with something wrong in it."""
    model = ir.load(artifact.read(small_dir).graph("portable"))
    mixed.mix(model, ir.DataType.FLOAT16)
    plant(model)
    typed.remove_unused(model)
    return typed.collect(model, BARS)


CASES = [(p, t) for p in PRECISIONS for t in TARGETS if (p, t) != ("fp8", "sm86")]


@pytest.mark.parametrize(("precision", "target"), CASES)
def test_what_is_launched(precision: str, target: str, graphs: dict[str, Graph]) -> None:
    profiles = resolve(Shaping(), 8192)
    assert profiles[-1].most[1] == 8192
    made, found = built(graphs[precision], profiles, target)
    assert not list(kernels.faults(found, LAYERS, len(profiles), precision, ()))
    assert found.attentions == LAYERS * len(profiles)
    assert found.accumulators == {"hmma_bf16" if precision == "bf16" else "hmma_fp32"}
    inside = [product for product in found.products if product.names[0].startswith("encoder.")]
    assert {product.inputs for product in inside} == {PRODUCTS[precision]}
    assert len({name for product in inside for name in product.names}) == 6 * LAYERS
    if precision in EIGHT_BITS:  # no sum of products passes through 16 bits before it is scaled
        assert {product.output for product in inside} == {"float"}
    assert not made.warnings
    # ten kernels a layer; fp8 of the newest keeps queries, keys and values apart
    assert found.launches / len(profiles) < (13 if precision in EIGHT_BITS else 11) * LAYERS + 16


def test_several_targets_in_one_engine(graphs: dict[str, Graph], tmp_path: Path) -> None:
    sizes = []
    for targets in (TARGETS[:1], TARGETS):
        plan = tmp_path / "plan"
        builder.build(trt, graphs["fp16"], ONE, targets, plan, None, BARS)
        sizes.append(plan.stat().st_size)
    found = kernels.read(plan)
    assert found is not None
    assert found.attentions == LAYERS
    assert sizes[1] < 1.01 * sizes[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_activations_are_linear_in_tokens(precision: str, graphs: dict[str, Graph]) -> None:
    a_token = []
    for shape in [(3, 8192), (6, 8192), (64, 512), (24, 2048)]:
        made, _ = built(graphs[precision], (Profile((1, 1), shape, shape),), "sm89")
        assert len(made.memory) == 1
        a_token.append(made.memory[0] / (shape[0] * shape[1]))
        guess = predicted(Profile((1, 1), (1, 1), shape), 128, 512, 128, precision)
        assert made.memory[0] == pytest.approx(guess, rel=0.05)
    assert max(a_token) < 1.01 * min(a_token)


def test_a_small_step_takes_little(graphs: dict[str, Graph]) -> None:
    shape = (1, 16)
    made, _ = built(graphs["fp16"], (Profile((1, 1), shape, shape),), "sm89")
    assert made.memory[0] < 8 << 20  # TensorRT-RTX reserves that much for its products


def test_every_profile_tells_its_memory(graphs: dict[str, Graph]) -> None:
    profiles = resolve(Shaping(max_tokens=4096), 8192)
    made, _ = built(graphs["fp16"], profiles, "sm86")
    assert len(made.memory) == len(profiles)
    weights = sum(array.nbytes for array in graphs["fp16"].weights.values())
    assert made.weights == pytest.approx(weights, rel=0.02)  # once, for all profiles


def test_memory_tells_unfused_attention(small_dir: Path) -> None:
    profiles = (Profile((1, 1), (2, 2048), (2, 4096)),)
    expected = trt_build.predictions(artifact.read(small_dir), profiles, "fp16")
    right, _ = built(planted(small_dir, lambda model: None), profiles, "sm86")
    trt_build.check_fused(right.memory, expected, profiles, "tensorrt")
    wrong, _ = built(planted(small_dir, keep_probabilities), profiles, "sm86")
    with pytest.raises(EngineError, match=r"tensorrt takes \d+ MB .* attention is not fused"):
        trt_build.check_fused(wrong.memory, expected, profiles, "tensorrt")


def test_a_gpu_that_is_too_small() -> None:
    gpu = Gpu(0, "A GPU", (8, 6), 2_000_000_000)
    trt_build.check_memory(gpu, 1_100_000_000, (100_000_000,), ONE)
    with pytest.raises(UnavailableError, match=r"takes 2\.1 GB .* has 2\.0 GB: pass a smaller"):
        trt_build.check_memory(gpu, 1_100_000_000, (100_000_000, 1_000_000_000), ONE)


@pytest.mark.parametrize(
    ("plant", "match"),
    [
        (keep_scores, f"attention is fused {LAYERS - 1} times, expected {LAYERS}"),
        (keep_probabilities, f"attention is fused {LAYERS - 1} times, expected {LAYERS}"),
        (add_up_in_half, "attention adds up in hmma_fp16, hmma_fp32, expected float32"),
    ],
    ids=["scores", "probabilities", "sums"],
)
def test_a_wrong_pattern_fails_the_build(
    plant: Callable[[ir.Model], None], match: str, small_dir: Path
) -> None:
    _, found = built(planted(small_dir, plant), ONE, "sm86")
    with pytest.raises(EngineError, match=f"built something else than was asked for: {match}"):
        trt_build.check(found, LAYERS, ONE, "fp16", (), "tensorrt_rtx")


def test_a_product_that_is_not_of_8_bits_fails_the_build(graphs: dict[str, Graph]) -> None:
    _, found = built(graphs["fp16"], ONE, "sm86")
    wrong = "multiplies \\('half', 'half'\\), expected \\('int8', 'int8'\\)"
    with pytest.raises(EngineError, match=wrong):
        trt_build.check(found, LAYERS, ONE, "int8", (), "tensorrt_rtx")
    names = {name for product in found.products for name in product.names}
    assert not list(kernels.faults(found, LAYERS, 1, "int8", names))


def test_what_cannot_be_read_is_not_judged(graphs: dict[str, Graph]) -> None:
    assert kernels.parse(b"\x00" * 1000) is None
    trt_build.check(None, LAYERS, ONE, "fp16", (), "tensorrt")
    assert trt_build.told(None) == {}


def ignore_the_mask(model: ir.Model) -> None:
    for node in [n for n in model.graph if n.op_type == "Softmax"]:
        node.replace_input_with(0, operand(producer(operand(node, 0), "Add"), 0))


def test_an_ignored_input_fails_the_build(small_dir: Path) -> None:
    with pytest.raises(EngineError, match=r"would give wrong results: .*attention_mask.* unused"):
        built(planted(small_dir, ignore_the_mask), ONE, "sm86")


def test_a_graph_that_the_parser_refuses(small_dir: Path) -> None:
    def unknown(model: ir.Model) -> None:
        softmax_of(model).op_type = "Softmin"

    with pytest.raises(EngineError, match=r"tensorrt_rtx 1\S+ could not build: .*Softmin"):
        built(planted(small_dir, unknown))


def test_older_versions_give_the_same_engine(graphs: dict[str, Graph], tmp_path: Path) -> None:
    class Parser:
        """A parser of a version that reads files only."""

        def __init__(self, network: Any, log: Any) -> None:
            self.real = trt.OnnxParser(network, log)
            self.parse_from_file = self.real.parse_from_file
            self.get_error = self.real.get_error

        @property
        def num_errors(self) -> int:
            return int(self.real.num_errors)

    class Builder:
        """A builder of a version that keeps the plan in memory."""

        def __init__(self, log: Any) -> None:
            self.real = trt.Builder(log)
            self.create_network = self.real.create_network
            self.create_builder_config = self.real.create_builder_config
            self.create_optimization_profile = self.real.create_optimization_profile
            self.build_serialized_network = self.real.build_serialized_network

    older = as_tensorrt()
    older.OnnxParser, older.Builder = Parser, Builder
    for precision in ("fp16", "fp8"):
        made, sizes = [], []
        for module in (trt, older):
            plan = tmp_path / "plan"
            args = (graphs[precision], ONE, ("sm89",), plan, None, BARS)
            made.append(builder.build(module, *args))
            sizes.append(plan.stat().st_size)
        left, right = made
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)
        assert left.memory == right.memory


def test_targets() -> None:
    with pytest.raises(InputError, match="has no target sm90, only sm75, sm80, sm86"):
        builder.capability(trt, "sm90")
    plain: Any = SimpleNamespace(__name__="tensorrt")
    with pytest.raises(InputError, match="tensorrt builds for the GPU of this machine: leave out"):
        builder.capability(plain, "sm86")
    with pytest.raises(InputError, match="fp8 needs sm89 or newer, found sm80, sm86: take int8"):
        builder.check_target(trt, ("sm80", "sm86", "sm120"), "fp8")
    builder.check_target(trt, ("sm75",), "int8")


def test_a_key_tells_every_difference(graphs: dict[str, Graph]) -> None:
    def key(**changed: Any) -> str:
        one: dict[str, Any] = {
            "graph": graphs["fp16"],
            "precision": "fp16",
            "profiles": ONE,
            "library": "tensorrt_rtx 1.7",
            "target": ("sm86",),
        }
        return builder.key(**{**one, **changed})

    others: list[dict[str, Any]] = [
        {"graph": graphs["bf16"]},
        {"precision": "bf16"},
        {"profiles": (Profile((1, 1), (4, 64), (16, 256)),)},
        {"library": "tensorrt_rtx 1.8"},
        {"target": ("sm86", "sm89")},
    ]
    assert key() == key()
    assert len({key(), *(key(**other) for other in others)}) == 1 + len(others)


def test_timings_are_kept(graphs: dict[str, Graph], tmp_path: Path) -> None:
    cache = tmp_path / "m3rt" / "one.timings"
    for _ in range(2):
        builder.build(trt, graphs["fp16"], ONE, ("sm86",), tmp_path / "plan", cache, BARS)
        assert cache.stat().st_size > 0
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]


def test_progress_is_shown(graphs: dict[str, Graph], tmp_path: Path) -> None:
    seen = set()

    class Bars(Progress):
        def add_task(self, description: str, *args: Any, **kwargs: Any) -> Any:
            seen.add(description.strip())
            return super().add_task(description, *args, **kwargs)

    bars = Bars(disable=True)
    builder.build(trt, graphs["fp16"], ONE, ("sm86",), tmp_path / "plan", None, bars)
    assert len(seen) > 3
    assert not bars.tasks


def test_a_build_can_be_cancelled(graphs: dict[str, Graph], tmp_path: Path) -> None:
    log, monitor = callbacks.logger(trt), callbacks.progress_monitor(trt, BARS)
    monitor.cancelled.set()
    plan = tmp_path / "plan"
    job = (trt, graphs["fp16"], ONE, ("sm86",), plan, None, log, monitor)
    assert not builder.finished(job, monitor)


def test_a_full_disk_is_told(graphs: dict[str, Graph]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb", buffering=0) as file:
        stream = callbacks.writer(trt, file)
        assert stream.write(b"1") == 0
        assert isinstance(stream.failed, OSError)
        assert stream.write(b"1") == 0
    job = (trt, graphs["fp16"], ONE, ("sm86",), Path("/dev/full"), None)
    log, monitor = callbacks.logger(trt), callbacks.progress_monitor(trt, BARS)
    with pytest.raises(OSError, match="No space left"):
        builder.finished((*job, log, monitor), monitor)


@pytest.fixture(scope="module")
def made_dir(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, built for TensorRT-RTX in every precision."""
    folder = copied(small_dir, tmp_path_factory.mktemp("built") / "model").path
    for precision in PRECISIONS:
        shaping = Shaping(target=("sm89", "sm120"), max_tokens=8192)
        build.run(folder, f"tensorrt-rtx:{precision}", shaping=shaping)
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_stands_in_the_manifest(precision: str, made_dir: Path) -> None:
    spec = f"tensorrt-rtx:{precision}"
    manifest = artifact.read(made_dir).manifest
    entry = manifest.builds[spec]
    name = f"tensorrt-rtx-{precision}.plan"
    assert name in entry.files
    assert manifest.files[name] == artifact.describe(made_dir / name)
    plan = Plan.read(entry.recipe)
    assert plan.target == ("sm89", "sm120")
    assert (plan.library, plan.version) == ("tensorrt_rtx", trt.__version__)
    assert plan.profiles == resolve(Shaping(max_tokens=8192), 8192)
    assert len(plan.memory) == len(plan.profiles)
    assert Plan.read(json.loads(json.dumps(dict(entry.recipe)))) == plan
    assert entry.recipe["kernels"]["attentions"] == LAYERS * len(plan.profiles)
    assert entry.versions["tensorrt_rtx"] == trt.__version__
    # without a GPU, what was compared is the graph, and that is said
    assert entry.parity["engine"] == f"{spec} as its graph on ONNX Runtime"
    assert entry.certificate is not None
    assert entry.certificate.engine == entry.parity["engine"]
    assert entry.certificate.ok


def test_no_path_of_this_machine_is_in_it(made_dir: Path) -> None:
    for file in made_dir.glob("*.plan"):
        data = file.read_bytes()
        for path in (str(made_dir.parent), str(ROOT), sys.prefix, "site-packages"):
            assert path.encode() not in data, f"{path} is in {file.name}"


def test_int8_is_smaller(made_dir: Path) -> None:
    weights = {
        precision: Plan.read(
            artifact.read(made_dir).manifest.builds[f"tensorrt-rtx:{precision}"].recipe
        ).weights
        for precision in PRECISIONS
    }
    assert weights["int8"] < 0.7 * weights["fp16"]
    assert weights["fp8"] < 0.7 * weights["bf16"]


def test_without_a_target_it_is_portable(small_dir: Path, tmp_path: Path) -> None:
    mine = copied(small_dir, tmp_path / "mine").path
    _, made = build.run(mine, "tensorrt-rtx")
    assert Plan.read(made.manifest.builds["tensorrt-rtx:fp16"].recipe).target == (PORTABLE,)


def test_it_does_not_run_without_a_gpu(made_dir: Path) -> None:
    with pytest.raises(UnavailableError):
        m3rt.load(made_dir, "tensorrt-rtx:fp16")
    assert engines.buildable("tensorrt-rtx").ready
    assert not engines.probe("tensorrt-rtx").ready


def test_tensorrt_is_not_installed(small_dir: Path) -> None:
    assert not engines.buildable("tensorrt").ready
    with pytest.raises(UnavailableError, match=r"pip install 'm3rt\[tensorrt\]'"):
        build.run(small_dir, "tensorrt:fp16")


def test_layers_are_raised_until_the_graph_passes(small_dir: Path, tmp_path: Path) -> None:
    mine = copied(small_dir, tmp_path / "mine").path
    terms = Terms({"dense_cosine": 0.9985})
    _, made = build.run(mine, "tensorrt-rtx:int8", terms=terms)
    recipe = made.manifest.builds["tensorrt-rtx:int8"].recipe
    assert recipe["recovery"]["raised"]
    assert recipe["recovery"]["tokens_per_second"] == {}  # nothing to be measured here
    assert "halfxhalf->half" in recipe["kernels"]["products"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(
    number: signal.Signals, small_dir: Path, tmp_path: Path
) -> None:
    mine = copied(small_dir, tmp_path / "mine").path
    before = {file.name: file.stat().st_mtime_ns for file in mine.iterdir()}
    command = [sys.executable, "-m", "m3rt.cli", "build", str(mine), "--engine", "tensorrt-rtx"]
    command += ["--profile-count", "12"]  # seconds of work for the library
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ})
    until = time.monotonic() + 60
    while not list(mine.glob(".build-*")) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert {file.name: file.stat().st_mtime_ns for file in mine.iterdir()} == before


def test_the_graph_is_run_as_it_is_built(made_dir: Path, small_dir: Path) -> None:
    """What was certified is what the engine was given: the key has its hash."""
    manifest = artifact.read(made_dir).manifest
    plan = Plan.read(manifest.builds["tensorrt-rtx:fp16"].recipe)
    graph = typed.write(artifact.read(small_dir), "fp16", None, (), BARS)
    library = f"tensorrt_rtx {trt.__version__}"
    assert plan.key == builder.key(graph, "fp16", plan.profiles, library, plan.target)
    assert np.isfinite(next(a for a in graph.weights.values() if a.dtype == np.float16)).all()


def as_tensorrt() -> Any:
    """TensorRT-RTX under the name of TensorRT."""
    module = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt) if name[0] != "_"})
    module.__name__, module.__version__ = "tensorrt", "10.13.3.9"
    return module


def test_tensorrt_builds_for_the_gpu_that_is_here(
    graphs: dict[str, Graph], small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise EngineError("attention is fused 0 times")

    gpu = Gpu(0, "A GPU", (9, 0), 80_000_000_000)
    monkeypatch.setattr(nvidia, "read", lambda: Driver("13.0", (gpu,)))
    monkeypatch.setattr(trt_build, "library", lambda engine: as_tensorrt())
    monkeypatch.setattr(trt_build, "check", unreadable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert trt_build.buildable("tensorrt").ready
    made = artifact.read(small_dir)
    choice = engines.Choice("tensorrt", "fp16")
    order = engines.Order(made, choice, graphs["fp16"], tmp_path, Shaping(), BARS)
    done: Any = trt_build.build(order)
    assert Plan.read(done).target == ("sm90",)
    # what is known of the other library's plans is no reason to refuse this one's
    assert "attention is fused 0 times" in done["warnings"][-1]
    assert (tmp_path / "tensorrt-fp16.plan").is_file()
    assert [file.name for file in (tmp_path / "cache" / "m3rt").iterdir()] == [
        "tensorrt-10.13.3.9-sm90.timings"
    ]


def test_what_cannot_be_is_refused_before_the_work(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*_: object) -> None:
        raise AssertionError("calibrated")

    monkeypatch.setattr(quantize, "plan", spent)
    mine = copied(small_dir, tmp_path / "mine").path
    for precision, target, said in (
        ("fp8", ("sm86",), "fp8 needs sm89 or newer, found sm86"),
        ("int8", ("sm90",), "has no target sm90"),
    ):
        with pytest.raises(InputError, match=said):
            build.run(mine, f"tensorrt-rtx:{precision}", shaping=Shaping(target=target))


def test_the_command_says_what_was_judged(small_dir: Path, tmp_path: Path) -> None:
    mine = copied(small_dir, tmp_path / "mine").path
    command = ["build", str(mine), "--engine", "tensorrt-rtx", "--max-length", "512"]
    done = CliRunner().invoke(cli.app, [*command, "--target", "8.9"])
    assert done.exit_code == 0, done.output
    assert "tensorrt_rtx 1." in done.stdout
    assert "for sm89" in done.stdout
    assert "its graph was judged on ONNX Runtime" in done.stderr
    assert "m3rt verify MODEL --engine tensorrt-rtx:fp16" in done.stderr


@pytest.fixture(scope="module")
def mcls_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mcls") / "model"
    return export.run(str(checkpoint), out, export.Recipe(pooling="mcls", max_length=1024)).path


@pytest.fixture(scope="module")
def mean_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mean") / "model"
    recipe = export.Recipe(m3rt.Heads.DENSE, pooling="mean", max_length=512)
    return export.run(str(checkpoint), out, recipe).path


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["reranker_dir", "odd_model_dir", "mcls_dir", "mean_dir"])
def test_other_networks(name: str, precision: str, request: pytest.FixtureRequest) -> None:
    made = artifact.read(request.getfixturevalue(name))
    recipe = None
    if precision in EIGHT_BITS:
        ids = Reference.read(made.path / parity.REFERENCE).ids
        few = ids.take(np.flatnonzero(ids.lengths <= 64)[:20])
        recipe = quantize.decide(made, quantize.grid("typed", precision), few, BARS)
    graph = typed.write(made, precision, recipe, (), BARS)
    profiles = (*ONE, Profile((1, 129), (2, 256), (2, min(512, made.manifest.max_length))))
    _, found = built(graph, profiles, "sm89")
    assert not list(kernels.faults(found, made.manifest.layers, 2, precision, graph.half))
    engine = ort.from_memory(typed.runnable(graph), precision, made.manifest)
    exact = ort.load(made, engines.Choice("cpu-padded", "fp32"), 1)
    batch, heads = batch_of(4, 300), made.manifest.head_flags
    a, b = (one.run(batch, heads) for one in (exact, engine))
    most = 0.02 if precision == "int8" else 1e-3
    for left, right in ((a.dense, b.dense), (a.weights, b.weights)):
        if left is not None and right is not None:
            np.testing.assert_allclose(left, right, atol=most)
    if a.scores is not None and b.scores is not None:  # before the sigmoid
        np.testing.assert_allclose(a.scores, b.scores, atol=1.0 if precision == "int8" else 0.05)
    assert (b.dense is None) == (a.dense is None)
    assert (b.scores is None) == (a.scores is None)


def test_export_and_build_at_once(checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", str(checkpoint), str(tmp_path / "out"), "--max-length", "64"]
    done = CliRunner().invoke(cli.app, [*command, "--build", "tensorrt-rtx:fp16", "--json"])
    assert done.exit_code == 0, done.output
    entry = json.loads(done.stdout)["builds"]["tensorrt-rtx:fp16"]
    assert Plan.read(entry["recipe"]).profiles[-1].most[1] == 64
