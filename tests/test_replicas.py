"""One engine on several devices; the devices are emulated. See tests/emulated_cuda.py."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

import m3rt
from m3rt import EngineError, Heads, cli, engines, nvidia, options, worker
from m3rt.engines import cuda, faults
from m3rt.engines import ort as onnxruntime_engine
from m3rt.engines.faults import DeviceLostError, OutOfMemoryError
from m3rt.engines.replicas import Replicas
from m3rt.engines.trt import log
from m3rt.nvidia import Driver, Gpu
from m3rt.types import Batch, Limits, Raw
from tests import contract, emulated
from tests.emulated import Library
from tests.emulated_cuda import Code, EmulatedCuda
from tests.fake import FakeEngine

SPEC = "tensorrt:fp16"
TOLERANCE = 2e-3  # float16 ColBERT vectors
TEXTS = [f"the {word} of number {n} " * (n % 7 + 1) for n in range(60) for word in ("sea", "sky")]


@dataclasses.dataclass
class Machine:
    """Devices, and what runs on them."""

    cuda: EmulatedCuda
    library: Library
    folder: Path

    def load(self, devices: engines.Asked, **options: Any) -> m3rt.runtime.M3:
        """Open the model."""
        model = m3rt.load(self.folder, SPEC, devices=devices, **options)
        self.library.ran.clear()
        self.library.ran_on.clear()  # the warm-up's
        return model


Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def typed_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a plan for tensorrt. Tests must not write in it."""
    return emulated.built(model_dir, tmp_path_factory.mktemp("typed") / "model", "tensorrt").path


@pytest.fixture
def start(typed_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Make a machine of so many devices; their memory moves often."""
    monkeypatch.setattr(cuda, "GRAIN", 256)

    def made(devices: int = 2, restless: int | None = None, folder: Path = typed_dir) -> Machine:
        device = EmulatedCuda(devices=devices, restless=restless)
        library = emulated.install(monkeypatch, device, "tensorrt")

        def read() -> Driver:
            gpus = enumerate(device.cards)
            return Driver("13.0", tuple(Gpu(n, "a GPU", c.capability, c.memory) for n, c in gpus))

        monkeypatch.setattr(nvidia, "missing", lambda: None)
        monkeypatch.setattr(nvidia, "read", read)
        return Machine(device, library, folder)

    return made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("devices", "restless"), [(2, None), (2, 1), (3, 2)])
def test_contract(devices: int, restless: int | None, start: Start) -> None:
    machine = start(devices, restless)
    model = machine.load("all")
    assert isinstance(model.engine, Replicas)
    assert model.engine.name == SPEC
    assert model.engine.devices == tuple(range(devices))
    assert model.engine.limits.parallel == 2 * devices
    assert model.why == f"asked for; on devices {', '.join(map(str, range(devices)))}"
    contract.check(model, TOLERANCE)
    assert set(machine.library.ran_on) == set(range(devices))


@pytest.mark.parametrize("restless", [None, 1, 2])
def test_equal_to_one_device_in_every_bit(restless: int | None, start: Start) -> None:
    expected = start(1).load(None).encode(TEXTS, batch_tokens=256)
    machine = start(3, restless)
    model = machine.load([0, 1, 2])
    for _ in range(2):  # graphs, too
        same(model.encode(TEXTS, batch_tokens=256), expected)
    assert min(machine.library.ran_on[n] for n in range(3)) > 2
    assert machine.cuda.calls["cudaGraphLaunch"] > 0


def test_numbers_of_any_kind(start: Start) -> None:
    machine = start(3)
    kinds: list[Any] = [[2, 1], (2, 1), "2,1", np.array([2, 1])]
    for asked in kinds:
        engine = machine.load(asked).engine
        assert isinstance(engine, Replicas)
        assert engine.devices == (2, 1)
        engine.close()


@pytest.mark.parametrize("devices", [[1], "1"])
def test_one_device_is_the_engine_itself(devices: Any, start: Start) -> None:
    machine = start(2)
    expected = start(1).load(None).encode(TEXTS)
    machine = start(2)
    model = machine.load(devices)
    assert not isinstance(model.engine, Replicas)
    same(model.encode(TEXTS), expected)
    assert set(machine.library.ran_on) == {1}
    assert machine.cuda.cards[0].largest == 0  # not touched
    assert not isinstance(start(1).load("all").engine, Replicas)


def test_the_first_device_by_default(start: Start) -> None:
    machine = start(2)
    machine.load(None).encode(TEXTS)
    assert set(machine.library.ran_on) == {0}
    assert machine.cuda.cards[1].largest == 0


@pytest.mark.parametrize("restless", [None, 1, 2, 3])
@pytest.mark.parametrize("ended", [0, 3])
def test_a_device_that_is_lost_loses_no_text(
    restless: int | None, ended: int, start: Start, said: Callable[[], list[str]]
) -> None:
    expected = start(1).load(None).encode(TEXTS, batch_tokens=256)
    machine = start(3, restless)
    model = machine.load("all")
    machine.library.lost = {1: ended}
    same(model.encode(TEXTS, batch_tokens=256), expected)
    assert machine.library.ran_on[1] == ended
    assert isinstance(model.engine, Replicas)
    assert model.engine.devices == (0, 2)
    (warning,) = said()
    assert warning.startswith(
        f"device 1 is left out, {SPEC} has 0, 2 left: the device was lost: cudaErrorIllegalAddress"
    )
    before = machine.cuda.calls["cudaMemcpyAsync"]
    same(model.encode(TEXTS, batch_tokens=256), expected)  # and no longer tried
    assert machine.cuda.calls["cudaMemcpyAsync"] > before
    assert len(said()) == 1
    model.engine.close()


@pytest.mark.parametrize("restless", [None, 1, 2])
def test_all_lost(restless: int | None, start: Start, said: Callable[[], list[str]]) -> None:
    machine = start(2, restless)
    model = machine.load("all")
    machine.library.lost = {0: 4, 1: 2}
    for _ in range(3):
        with pytest.raises(DeviceLostError, match=r"the device was lost: .*; start the process"):
            model.encode(TEXTS, batch_tokens=64)
    assert len(said()) == 1
    with ThreadPoolExecutor(12) as pool:  # nobody waits for ever
        found = [pool.submit(model.encode, ["a text"]) for _ in range(24)]
    assert all(isinstance(one.exception(), DeviceLostError) for one in found)
    assert isinstance(model.engine, Replicas)
    model.engine.close()


def test_a_device_that_takes_the_others_with_it(start: Start) -> None:
    machine = start(3)
    model = machine.load("all")
    machine.cuda.contagious = True
    machine.library.lost = {2: 2}
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="the device was lost"):
            model.encode(TEXTS, batch_tokens=64)


def test_a_full_device_is_not_lost(start: Start, said: Callable[[], list[str]]) -> None:
    """And what the library says of it is told to whom it concerns."""
    machine = start(2)
    model = machine.load("all")
    expected = start(1).load(None).encode(TEXTS)
    first = machine.library.executions
    machine.library.refuse = {
        first + n: "Error Code 1: Cuda Runtime (out of memory)" for n in (1, 2)
    }
    contract.same(model.encode(TEXTS), 0, expected, 0, TOLERANCE)
    assert isinstance(model.engine, Replicas)
    assert model.engine.devices == (0, 1)
    assert not said()


def test_other_errors_are_not_tried_again(start: Start, said: Callable[[], list[str]]) -> None:
    machine = start(2)
    model = machine.load("all")
    before = machine.library.executions
    machine.library.refuse = {before + 1: "Error Code 2: no kernel for layer 7"}
    with pytest.raises(m3rt.EngineError, match="no kernel for layer 7"):
        model.encode(["a text"])
    assert machine.library.executions == before + 1
    assert not said()
    expected = start(1).load(None).encode(TEXTS)
    same(model.encode(TEXTS), expected)


def test_more_threads_than_places(start: Start) -> None:
    expected = start(1).load(None).encode(TEXTS[:12])
    machine = start(2, restless=5)
    model = machine.load("all")
    machine.library.lost = {0: 20}

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(12)
        found = model.encode([TEXTS[i] for i in order], batch_tokens=64)
        for place, i in enumerate(order):
            contract.same(found, place, expected, int(i), TOLERANCE)

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(work, seed) for seed in range(24)]:
            done.result()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"memory": 1 << 20}, "needs .* of the device's memory, and 1.0 MiB of 1.0 MiB are free"),
        ({"capability": (9, 0)}, r"built for sm86, this GPU is Emulated GPU \(sm90\)"),
    ],
)
def test_a_device_on_which_it_does_not_open(
    change: dict[str, Any], reason: str, start: Start, said: Callable[[], list[str]]
) -> None:
    machine = start(3)
    machine.cuda.cards[1] = dataclasses.replace(machine.cuda.cards[1], **change)
    with pytest.raises(m3rt.M3Error, match=f"^device 1: .*{reason}"):
        machine.load([0, 1])
    gc.collect()
    assert machine.cuda.live() == 0  # the first is closed
    assert not said()
    model = machine.load("all")
    assert isinstance(model.engine, Replicas)
    assert model.engine.devices == (0, 2)
    (warning,) = said()
    assert warning.startswith(f"{SPEC} runs on devices 0, 2 alone, not on 1: ")
    contract.check(model, TOLERANCE)
    machine.cuda.cards[2] = dataclasses.replace(machine.cuda.cards[2], **change)
    model.engine.close()
    assert not isinstance(machine.load("all").engine, Replicas)
    machine.cuda.cards[0] = dataclasses.replace(machine.cuda.cards[0], **change)
    with pytest.raises(m3rt.M3Error, match=reason):
        machine.load("all")


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], r"devices is \[\], expected numbers of GPUs, as 0,1, or all"),
        ("", "devices is '', expected numbers"),
        ([0, 1, 0], r"devices is \[0, 1, 0\], and names 0 more than once"),
        ("1,1", "names 1 more than once"),
        ([-1], "expected numbers"),
        ([0.5], "expected numbers"),
        ([True], "expected numbers"),
        ("cuda:0", "expected numbers"),
        (1, "expected numbers"),
    ],
)
def test_devices_that_cannot_be(devices: Any, message: str, start: Start) -> None:
    machine = start(2)
    with pytest.raises(m3rt.InputError, match=message):
        machine.load(devices)
    assert machine.cuda.calls["cudaGetDeviceCount"] == 0


def test_devices_that_are_not_there(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = start(2)
    found = r"0 is a GPU \(sm86\), 1 is a GPU \(sm86\); see CUDA_VISIBLE_DEVICES"
    with pytest.raises(m3rt.UnavailableError, match=f"there is no device 2 or 3: {found}"):
        machine.load([0, 2, 3])
    monkeypatch.setattr(nvidia, "read", lambda: Driver(None, (), "no NVIDIA driver"))
    with pytest.raises(m3rt.UnavailableError, match="there is no device 0: there is none"):
        machine.load([0])
    with pytest.raises(m3rt.UnavailableError, match=f"no device for {SPEC}: no NVIDIA driver"):
        machine.load("all")
    assert machine.cuda.live() == 0


def test_processors_have_no_devices(start: Start) -> None:
    machine = start(2)
    for devices in ([0], "all"):
        with pytest.raises(m3rt.InputError, match="devices are GPUs, and cpu runs on the proc"):
            m3rt.load(machine.folder, "cpu:fp32", devices=devices)


def test_auto(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = start(3)
    machine.cuda.cards[0].capability = (7, 5)  # for which there is no plan
    assert m3rt.load(machine.folder).engine.name.startswith(("cpu:", "openvino:"))
    on_all = m3rt.load(machine.folder, devices="all")
    assert on_all.engine.name == SPEC
    assert "built for this GPU, a GPU (sm86)" in on_all.why
    assert on_all.why.endswith("; on devices 1, 2")
    assert m3rt.load(machine.folder, devices=[2]).engine.name == SPEC
    with pytest.raises(m3rt.UnavailableError, match=r"no engine can run on devices 0, 1: no ten"):
        m3rt.load(machine.folder, devices=[0, 1])
    for card in machine.cuda.cards:
        card.memory = 1 << 20
    model = m3rt.load(machine.folder, devices="all")
    assert model.engine.name.startswith(("cpu:", "openvino:"))
    assert "tensorrt:fp16 does not open: " in model.why
    with pytest.raises(m3rt.UnavailableError, match=r"device 1: .*needs"):
        m3rt.load(machine.folder, devices=[1, 2])  # no processor was asked for
    monkeypatch.setattr(nvidia, "missing", lambda: "no NVIDIA driver")
    assert m3rt.load(machine.folder, devices="all").engine.name.startswith(("cpu:", "openvino:"))


def test_everything_is_released_whatever_the_thread_is_at(start: Start) -> None:
    machine = start(2)
    first, second = machine.load([0]).engine, machine.load([1]).engine
    second.run(contract.batch_of(7, 3), Heads.ALL)  # this thread is on device 1
    del first
    gc.collect()
    assert machine.cuda.device() == 1
    assert machine.cuda.cards[0].used == 0
    del second
    gc.collect()
    assert machine.cuda.live() == 0


def test_fallback_runs_on_the_first_of_the_devices(start: Start) -> None:
    machine = start(3)
    machine.library.spoil = True
    model = machine.load([1, 2], fallback="cpu:fp32")
    expected = m3rt.load(machine.folder, "cpu:fp32").encode(TEXTS[:8])
    found = model.encode(TEXTS[:8])
    for i in range(8):
        contract.same(found, i, expected, i, 1e-6)
    assert model.recomputed == 8


def test_onnx_runtime_is_told_the_device(
    start: Start, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(3)
    opened: list[dict[str, str]] = []
    real = ort.InferenceSession

    class Session(real):  # type: ignore[misc, valid-type]
        """Runs on the processor what CUDA was asked for."""

        def __init__(self, graph: Path, options: Any, providers: list[Any]) -> None:
            ((self.name, settings),) = providers
            opened.append(settings)
            super().__init__(graph, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [self.name]

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: there)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    model = m3rt.load(model_dir, "cuda", devices=[2, 0])
    assert opened == [{"use_tf32": "0", "device_id": n} for n in ("2", "0")]
    assert isinstance(model.engine, Replicas)
    assert model.engine.limits.parallel == 2
    assert m3rt.load(model_dir, "cuda", devices="all", streams=2).engine.limits.parallel == 6
    m3rt.load(model_dir, "cuda")
    assert opened[-1]["device_id"] == "0"
    assert engines.probe("cuda", 2).ready
    assert engines.probe("cuda", 3).detail.endswith("but no GPU: it has no number 3")
    found = model.encode(TEXTS[:20])
    monkeypatch.setattr(ort, "InferenceSession", real)
    expected = m3rt.load(model_dir, "cpu").encode(TEXTS[:20])
    for i in range(20):
        contract.same(found, i, expected, i, 1e-5)


@pytest.mark.parametrize(
    ("code", "kind"), [(700, DeviceLostError), (719, DeviceLostError), (2, m3rt.EngineError)]
)
def test_what_onnx_runtime_says_of_a_lost_device(code: int, kind: type[Exception]) -> None:
    class Session:
        def run(self, names: object, inputs: object) -> None:
            raise RuntimeError(f"CUDA failure {code}: a reason ; GPU=1 ; hostname=7000 ; expr=x;")

    with pytest.raises(m3rt.EngineError, match=f"ONNX Runtime failed: CUDA failure {code}") as e:
        onnxruntime_engine.compute(Session(), Heads.DENSE, {})
    assert type(e.value) is kind


def test_numbers_of_errors_are_those_of_their_names() -> None:
    assert {int(getattr(Code, name)) for name in faults.LOST} == faults.LOST_NUMBERS


@pytest.mark.parametrize(
    "command", [["encode"], ["rerank"], ["bench"], ["eval", "data"]], ids=lambda c: c[0]
)
def test_bad_devices_on_the_command_line(command: list[str]) -> None:
    name, *more = command
    done = CliRunner().invoke(cli.app, [name, "nowhere", *more, "--devices", "0,0"])
    assert done.exit_code == 2
    assert "names 0 more than once" in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("command", [["bench"], ["eval", "data"]], ids=lambda c: c[0])
def test_devices_for_processors_alone(command: list[str]) -> None:
    name, *more = command
    asked = ["--engine", "cpu", "--engine", "openvino:bf16", "--devices", "all"]
    done = CliRunner().invoke(cli.app, [name, "nowhere", *more, *asked])
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert "--devices is for engines on GPUs, not for cpu, openvino:bf16" in said


def test_encode_on_several_devices(start: Start, tmp_path: Path) -> None:
    machine = start(2)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    asked = ["encode", str(machine.folder), str(file), "--engine", SPEC, "--json"]
    outputs = []
    for devices in ("1", "0,1", "all"):
        done = CliRunner().invoke(cli.app, [*asked, "--devices", devices])
        assert done.exit_code == 0, done.output
        outputs.append(done.stdout)
        why = json.loads(done.stderr.splitlines()[-1])["why"]
        assert why.endswith("on devices 0, 1") == (devices != "1")
    assert outputs[0] == outputs[1] == outputs[2]
    done = CliRunner().invoke(cli.app, [*asked, "--devices", "5"])
    assert done.exit_code == m3rt.UnavailableError.exit_code
    assert "there is no device 5" in done.stderr


def test_a_benchmark_passes_devices_on(typed_dir: Path) -> None:
    assert worker.command(typed_dir, "cuda", 1)[-2:] == ["cuda", "1"]
    assert worker.command(typed_dir, "cuda", 1, "0,1")[-2:] == ["1", "0,1"]
    for engine, devices in (("cuda:fp32", "0,1"), ("auto", "0,1"), ("cpu", None)):
        assert options.devices_of(engine, "0,1", ["cuda", engine]) == devices
    with (
        worker.Worker(worker.command(typed_dir, "cpu", 1, "all")) as process,
        pytest.raises(EngineError, match="devices are GPUs, and cpu"),
    ):
        process.answer()


# engines that are not on any device


class Part(FakeEngine):
    """An engine that does as it is told."""

    def __init__(self, parallel: int = 1, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(Limits(max_tokens=32, max_length=64, pads=False, parallel=parallel))
        self.before = before
        self.batches = 0
        self.closed = self.warm = 0

    def run(self, batch: Batch, heads: Heads) -> Raw:
        self.before()
        self.batches += 1
        return super().run(batch, heads)

    def close(self) -> None:
        self.closed += 1

    def warm_up(self) -> None:
        self.warm += 1


def test_what_is_passed_on() -> None:
    parts = [Part(2), Part(3)]
    both = Replicas(dict(enumerate(parts)))
    assert both.limits == dataclasses.replace(parts[0].limits, parallel=5)
    assert both.recomputed == 0
    parts[1].recomputed = 4  # type: ignore[attr-defined]
    assert both.recomputed == 4
    both.warm_up()
    both.close()
    assert [(part.warm, part.closed) for part in parts] == [(1, 1), (1, 1)]
    Replicas({0: FakeEngine(), 1: FakeEngine()}).close()  # that cannot be


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 64), ("pads", True), ("rows", (4,)), ("name", "other")]
)
def test_engines_that_are_not_alike(field: str, value: object) -> None:
    parts = [Part(), Part()]
    if field == "name":
        parts[1].name = str(value)
    else:
        other: dict[str, Any] = {field: value}
        parts[1].limits = dataclasses.replace(parts[1].limits, **other)
    expected = rf"^{field} is .* on device 3, .*{value if field != 'rows' else '4'}.* on device 5"
    with pytest.raises(m3rt.EngineError, match=expected):
        Replicas({3: parts[0], 5: parts[1]})


def test_each_device_has_work_before_any_has_two() -> None:
    parts = [Part(2), Part(2), Part(2)]
    all_ = Replicas(dict(enumerate(parts)))
    for n in range(1, 7):
        all_.run(contract.batch_of(3), Heads.DENSE)
        assert [part.batches for part in parts] == [(n + 2 - i) // 3 for i in range(3)]


def test_places_are_given_back_whatever_happens() -> None:
    raised: list[BaseException] = []

    def fail() -> None:
        if raised:
            raise raised.pop()

    both = Replicas({0: Part(2, fail), 1: Part(1, fail)})
    for _ in range(5):
        for error in (OutOfMemoryError("full"), m3rt.EngineError("bad"), KeyboardInterrupt()):
            raised.append(error)
            with pytest.raises(type(error)):
                both.run(contract.batch_of(3), Heads.DENSE)
    busy = threading.Barrier(4)

    def meet() -> None:
        busy.wait(10)

    for one in (both._all[0].engine, both._all[1].engine):
        assert isinstance(one, Part)
        one.before = meet
    threads = [
        threading.Thread(target=both.run, args=(contract.batch_of(3), Heads.DENSE))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    busy.wait(10)  # all three places are in use at once
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_waiting_threads_go_on_when_a_device_is_lost() -> None:
    gone = threading.Event()

    def lose() -> None:
        gone.wait(10)
        raise DeviceLostError("lost")

    slow = Part(1, lambda: time.sleep(0.001))
    both = Replicas({0: Part(2, lose), 1: slow})
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(both.run, contract.batch_of(3), Heads.DENSE) for _ in range(40)]
        gone.set()
        for one in waiting:
            one.result(10)
    assert slow.batches == 40
    assert both.devices == (1,)


def test_errors_are_told_to_the_thread_they_concern() -> None:
    found = log.Errors(None)
    found.add("mine")
    other = threading.Thread(target=found.add, args=("out of memory",))
    other.start()
    other.join()
    assert found.take() == "mine"
    assert found.take() == "out of memory"  # what nobody took is somebody's
    assert found.take() == "it gave no reason"


def same(a: m3rt.Embeddings, b: m3rt.Embeddings) -> None:
    """Results are equal in every bit."""
    assert a.dense is not None
    assert b.dense is not None
    np.testing.assert_array_equal(a.dense, b.dense)
    assert a.sparse is not None
    assert b.sparse is not None
    assert [a.sparse[i] for i in range(len(a))] == [b.sparse[i] for i in range(len(b))]
    for left, right in zip(rows(a), rows(b), strict=True):
        np.testing.assert_array_equal(left, right)


def rows(found: m3rt.Embeddings) -> Sequence[Any]:
    """The ColBERT vectors."""
    assert found.colbert is not None
    return found.colbert
