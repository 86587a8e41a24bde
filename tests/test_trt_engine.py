"""How the TensorRT engines run batches, on an emulation that keeps the rules of the hardware."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import runtime as real
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import m3rt
from m3rt import Heads
from m3rt.engines import cuda, graphs
from m3rt.engines.cuda import Event
from m3rt.engines.padding import pad
from m3rt.engines.trt.engine import Typed
from m3rt.engines.trt.profiles import Profile
from m3rt.types import Batch, Floats, Raw, ragged
from tests import contract, emulated
from tests.conftest import ROOT, exported
from tests.emulated import Library
from tests.emulated_cuda import Code, EmulatedCuda

ENGINES = ("tensorrt", "tensorrt-rtx")
FULL = Code.cudaErrorMemoryAllocation
DOWN = "cudaMemcpyDeviceToHost"
TOLERANCE = 2e-3  # float16 ColBERT vectors


@dataclass
class Rig:
    """An engine, and what it believes to run on."""

    engine: Typed
    cuda: EmulatedCuda
    library: Library

    def __post_init__(self) -> None:
        self.library.ran.clear()  # the warm-up's
        self.cuda.trace.clear()


Start = Callable[..., Rig]


@pytest.fixture(scope="module")
def typed_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a plan for tensorrt. Tests must not write in it."""
    return emulated.built(model_dir, tmp_path_factory.mktemp("typed") / "model", "tensorrt").path


@pytest.fixture(scope="module")
def hungry_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose activations take 100 kB a token, of which the manifest says nothing."""
    folder = tmp_path_factory.mktemp("hungry") / "model"

    def hungry(plan: dict[str, object]) -> None:
        plan["per_token"] = 100_000

    return emulated.built(model_dir, folder, "tensorrt", hungry).path


@pytest.fixture
def start(typed_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Open an engine on a device of its own, whose memory moves often."""
    monkeypatch.setattr(cuda, "GRAIN", 256)

    def opened(folder: Path = typed_dir, streams: int = 1, restless: int | None = None) -> Rig:
        device = EmulatedCuda(restless=restless)
        library = emulated.install(monkeypatch, device, "tensorrt")
        engine = m3rt.load(folder, "tensorrt:fp16", streams=streams).engine
        assert isinstance(engine, Typed)
        return Rig(engine, device, library)

    return opened


@pytest.mark.parametrize("engine", ENGINES)
def test_contract(
    engine: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = EmulatedCuda(restless=1 if engine == "tensorrt" else None)
    emulated.install(monkeypatch, device, engine.replace("-", "_"))
    emulated.built(model_dir, tmp_path / "model", engine)
    model = m3rt.load(tmp_path / "model", f"{engine}:fp16")
    assert model.engine.name == f"{engine}:fp16"
    contract.check(model, TOLERANCE)


def test_a_reranker(
    reranker_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulated.install(monkeypatch, EmulatedCuda(), "tensorrt")
    folder = tmp_path_factory.mktemp("typed") / "reranker"
    emulated.built(exported(reranker_checkpoint, tmp_path_factory), folder, "tensorrt")
    pairs = [("where", f"the answer is {word} " * n) for n, word in enumerate("abcdefghijk", 1)]
    found, expected = (
        m3rt.load_reranker(folder, spec).score(pairs).scores for spec in ("tensorrt:fp16", "cpu")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_only_the_heads_asked_for_are_copied(start: Start) -> None:
    rig = start()
    batch = contract.batch_of(4, 6)  # 2 texts, 8 places each
    sizes = {Heads.DENSE: 2 * 64 * 4, Heads.SPARSE: 16 * 4, Heads.COLBERT: 16 * 64 * 2}
    sizes |= {Heads.ALL: sum(sizes.values()), Heads.DENSE | Heads.SPARSE: 512 + 64}
    for heads, expected in sizes.items():
        before = rig.cuda.copied[DOWN]
        raw = rig.engine.run(batch, heads)
        assert rig.cuda.copied[DOWN] - before == expected, heads
        assert (raw.dense is None, raw.weights is None, raw.colbert is None) == tuple(
            head not in heads for head in (Heads.DENSE, Heads.SPARSE, Heads.COLBERT)
        )


@pytest.mark.parametrize("restless", [None, 1, 2])
def test_threads_share_one_engine(
    restless: int | None, start: Start, typed_dir: Path, model: m3rt.M3
) -> None:
    rig = start(restless=restless)
    shared = m3rt.runtime.M3(model.manifest, model.tokenizer, rig.engine)
    texts = contract.TEXTS[:8]  # the last one is long
    expected = model.encode(texts)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            dice = np.random.default_rng(seed)
            for _ in range(2):
                order = dice.permutation(len(texts))
                found = shared.encode([texts[i] for i in order], batch_tokens=64)
                for place, i in enumerate(order):
                    contract.same(found, place, expected, int(i), TOLERANCE)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert rig.cuda.calls["cudaGraphLaunch"] > 0


def test_results_stay_when_the_engine_runs_again(start: Start) -> None:
    rig = start()
    first = rig.engine.run(contract.batch_of(9, 5), Heads.ALL)
    kept = parts_of(first)
    copies = [part.copy() for part in kept]
    for _ in range(4):
        rig.engine.run(contract.batch_of(16, 16, 3), Heads.ALL)
    rig.engine.close()  # and when the memory is gone
    for part, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(part, copy)
        assert np.isfinite(part).all()


def test_copies_of_one_batch_overlap_the_computing_of_another(start: Start) -> None:
    rig = start()
    session = rig.engine._session
    slots = [rig.engine._session._idle.get() for _ in range(2)]
    ids, mask = pad(Batch(contract.batch_of(8, 8).tokens, np.arange(2), 8), 1)
    for slot in slots:
        session.enqueue(slot, 0, ids, mask, ("dense",))
    # nobody has waited: the host came back with both on their way
    assert not {"uploaded", "computed", "downloaded"} & set(rig.cuda.trace)
    session._upload.synchronize()  # the second batch arrives while the first has not computed
    assert ran(rig) == ["uploaded"] * 2
    slots[0].downloaded.wait()  # the first is fetched while the second has not computed
    assert ran(rig)[2:] == ["computed", "downloaded"]
    slots[1].downloaded.wait()
    assert ran(rig)[4:] == ["computed", "downloaded"]
    for slot in slots:
        rig.engine._session._idle.put(slot)


def test_memory_moves_only_when_nobody_uses_it(start: Start) -> None:
    rig = start()
    slots = [rig.engine._session._idle.get() for _ in range(2)]
    before = rig.engine._session._activations.address
    for slot, lengths, index in zip(slots, ((8, 8), (1500,)), (0, 2), strict=True):
        batch = contract.batch_of(*lengths)
        ids, mask = pad(batch, 1)
        rig.engine._session.enqueue(slot, index, ids, mask, ("dense",))
    assert rig.engine._session._activations.address != before
    for slot in slots:
        slot.downloaded.wait()  # a step whose memory was taken away would break a rule here
        rig.engine._session._idle.put(slot)
    assert [width for _, _, width in rig.library.ran] == [8, 1500]


def test_a_library_that_cannot_tell_what_it_needs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = start()
    monkeypatch.setattr(
        emulated.ExecutionContext, "update_device_memory_size_for_shapes", lambda self: 0
    )
    with pytest.raises(m3rt.EngineError, match=r"TensorRT failed: no memory size for \(1, 8\)"):
        rig.engine.run(contract.batch_of(8), Heads.DENSE)


def test_an_output_of_another_size(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = start()
    monkeypatch.setattr(emulated.ExecutionContext, "get_tensor_shape", lambda self, name: (1, 128))
    said = r"TensorRT failed: dense is \(1, 128\), not \(1, 64\)"
    with pytest.raises(m3rt.EngineError, match=said):
        rig.engine.run(contract.batch_of(8), Heads.DENSE)


def test_streams_are_slots(start: Start) -> None:
    assert start().engine.limits.parallel == 2
    engine = start(streams=3).engine
    assert engine.limits.parallel == 3
    assert len(engine._session.slots) == 3


def test_a_graph_gives_what_its_step_gave(start: Start) -> None:
    rig = start()
    batches = [random_batch(seed, (7, 3)) for seed in range(6)]
    eager = [start().engine.run(batch, Heads.ALL) for batch in batches]
    captures = rig.cuda.calls["cudaStreamBeginCapture"]
    for batch, expected in zip(batches, eager, strict=True):
        equal(rig.engine.run(batch, Heads.ALL), expected)
    # a lone caller gets the same slot again: it runs the step, then captures it, then launches it
    assert rig.cuda.calls["cudaStreamBeginCapture"] - captures == 1
    assert rig.cuda.calls["cudaGraphLaunch"] == 5
    assert len(rig.library.ran) == 6


def test_large_steps_are_not_captured(start: Start) -> None:
    rig = start()
    for _ in range(5):
        rig.engine.run(contract.batch_of(1040), Heads.DENSE)
    assert rig.cuda.calls["cudaStreamBeginCapture"] == 0
    for _ in range(5):
        rig.engine.run(contract.batch_of(1024), Heads.DENSE)
    assert rig.cuda.calls["cudaStreamBeginCapture"] == 1


def test_graphs_go_when_a_slot_moves(start: Start) -> None:
    rig = start()
    small = random_batch(1, (7, 3))
    expected = rig.engine.run(small, Heads.ALL)
    again(rig, small, 5)
    assert rig.cuda.calls["cudaGraphLaunch"] == 5
    activations = rig.engine._session._activations.address
    with rig.engine._session.lend():  # the slot that was there in the warm-up
        rig.engine.run(contract.batch_of(600), Heads.ALL)
    assert rig.engine._session._activations.address == activations
    for _ in range(6):
        equal(rig.engine.run(small, Heads.ALL), expected)
    assert rig.cuda.calls["cudaStreamBeginCapture"] == 2


def test_graphs_go_when_activations_move(start: Start, hungry_dir: Path) -> None:
    rig = start(hungry_dir)
    small, large = random_batch(1, (7, 3)), contract.batch_of(1500)
    expected = rig.engine.run(small, Heads.ALL)
    rig.cuda.memory = 140_000_000
    with pytest.raises(m3rt.EngineError, match="does not fit"):
        rig.engine.run(large, Heads.ALL)  # its slot has grown
    again(rig, small, 7)
    assert rig.cuda.calls["cudaGraphLaunch"] == 6
    rig.cuda.memory = 1 << 30
    slots = [(slot.device.address, slot.device.bytes) for slot in rig.engine._session.slots]
    rig.engine.run(large, Heads.ALL)  # in the same slot again
    assert slots == [(s.device.address, s.device.bytes) for s in rig.engine._session.slots]
    for _ in range(6):
        equal(rig.engine.run(small, Heads.ALL), expected)


def test_old_graphs_go(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KEPT", 16)
    rig = start()
    again(rig, contract.batch_of(*[64] * 8), 2)  # from here on no memory moves
    before = rig.cuda.live()
    for texts in range(1, 9):
        for width in range(8, 65, 8):
            for _ in range(4):
                rig.engine.run(contract.batch_of(*[width] * texts), Heads.DENSE)
    assert rig.cuda.calls["cudaGraphLaunch"] == 64 * 3 + 1
    assert rig.cuda.live() - before == 16 - 1


@pytest.mark.parametrize(
    "function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", ""]
)
def test_without_graphs_it_goes_on(function: str, start: Start) -> None:
    rig = start()
    batch = random_batch(1, (7, 3))
    expected = rig.engine.run(batch, Heads.ALL)
    if function:
        rig.cuda.fail(function, Code.cudaErrorNotSupported, *range(1, 100))
    else:
        rig.library.uncapturable = True
    tried = rig.cuda.calls["cudaStreamBeginCapture"]
    for _ in range(6):
        equal(rig.engine.run(batch, Heads.ALL), expected)
    assert rig.cuda.calls["cudaStreamBeginCapture"] == tried + 1
    assert rig.cuda.calls["cudaGraphLaunch"] == 0


def test_more_texts_than_a_profile_holds(start: Start) -> None:
    rig = start()
    batch = random_batch(1, (20, *range(2, 22)))
    equal(rig.engine.run(batch, Heads.ALL), alone(start(), batch), exactly=False)
    assert max(texts for _, texts, _ in rig.library.ran) <= 8
    assert sum(texts for _, texts, _ in rig.library.ran) == 21


def test_the_closest_profile_runs(start: Start, model_dir: Path, tmp_path: Path) -> None:
    profiles = [Profile((1, 1), (texts, 64), (texts, 64)) for texts in (8, 1, 4)]
    folder = tmp_path / "model"
    rig = start(emulated.built(model_dir, folder, "tensorrt", profiles=profiles).path)
    for texts in (1, 2, 4, 5):
        rig.engine.run(contract.batch_of(*[60] * texts), Heads.DENSE)
    assert [profile for profile, _, _ in rig.library.ran] == [1, 2, 2, 0]


def test_out_of_memory_runs_in_halves(start: Start, hungry_dir: Path) -> None:
    batch = random_batch(1, (500, 400, 300, 510))
    expected = start(hungry_dir).engine.run(batch, Heads.ALL)
    rig = start(hungry_dir)
    rig.cuda.memory = 150_000_000  # 4 x 512 tokens take 205 MB, 2 x 512 take 102
    calls = rig.cuda.calls
    before = calls["cudaMalloc"]
    equal(rig.engine.run(batch, Heads.ALL), expected, exactly=False)
    assert [texts for _, texts, _ in rig.library.ran] == [2, 2]
    assert calls["cudaMalloc"] > before
    assert calls["cudaGetLastError"] == 1  # or the library would find the error, and report it
    # what failed once is not tried again
    before = calls["cudaMalloc"]
    equal(rig.engine.run(batch, Heads.ALL), expected, exactly=False)
    assert calls["cudaMalloc"] == before
    assert [texts for _, texts, _ in rig.library.ran] == [2, 2, 2, 2]


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc"])
def test_buffers_that_do_not_fit_are_out_of_memory_too(function: str, start: Start) -> None:
    rig = start()
    batch = contract.batch_of(*[500] * 4)
    expected = start().engine.run(batch, Heads.ALL)
    rig.cuda.fail(function, FULL, 1)
    equal(rig.engine.run(batch, Heads.ALL), expected, exactly=False)
    assert [texts for _, texts, _ in rig.library.ran] == [2, 2]


def test_out_of_memory_inside_the_library(start: Start) -> None:
    rig = start()
    batch = contract.batch_of(7, 3)
    rig.library.refuse = {rig.library.executions + 1: "Error Code 1: Cuda Runtime (out of memory)"}
    rig.engine.run(batch, Heads.ALL)
    assert [texts for _, texts, _ in rig.library.ran] == [1, 1]


def test_a_text_that_does_not_fit(start: Start, hungry_dir: Path) -> None:
    rig = start(hungry_dir)
    rig.cuda.memory = 150_000_000
    for texts in ((2000,), (3000, 2000)):
        with pytest.raises(
            m3rt.EngineError,
            match=r"a text of [23]000 tokens does not fit: \d+\.\d MiB more device memory, "
            r"\d+\.\d MiB are free; end what else uses the device, or encode with a smaller "
            "max_length",
        ):
            rig.engine.run(contract.batch_of(*texts), Heads.DENSE)
    rig.engine.run(contract.batch_of(500), Heads.DENSE)  # others still run


def test_a_text_longer_than_every_profile(start: Start) -> None:
    with pytest.raises(
        m3rt.EngineError, match="a text of 4097 tokens, and no profile of tensorrt:fp16 takes more"
    ):
        start().engine.run(contract.batch_of(4097), Heads.DENSE)


def test_a_failed_run_gives_the_reason(start: Start) -> None:
    rig = start()
    batch = random_batch(1, (7, 3))
    expected = rig.engine.run(batch, Heads.ALL)
    rig.library.refuse = {rig.library.executions + 1: "Error Code 2: no kernel for layer 7"}
    with pytest.raises(
        m3rt.EngineError, match="TensorRT failed: execution: Error Code 2: no kernel for layer 7"
    ):
        rig.engine.run(contract.batch_of(9, 9), Heads.ALL)  # no graph of it is tried
    for _ in range(5):
        equal(rig.engine.run(batch, Heads.ALL), expected)


@pytest.mark.parametrize(
    "function",
    ["cudaMemcpyAsync", "cudaEventRecord", "cudaStreamWaitEvent", "cudaEventSynchronize"],
)
def test_a_cuda_error_ends_one_run_and_no_other(function: str, start: Start) -> None:
    for nth in range(1, 4):
        rig = start()
        batch = random_batch(1, (7, 3))
        expected = rig.engine.run(batch, Heads.ALL)
        rig.cuda.fail(function, Code.cudaErrorInvalidValue, nth)
        said = f"CUDA failed: cudaErrorInvalidValue.*{function}"
        with pytest.raises(m3rt.EngineError, match=said):
            again(rig, batch, nth)
        for _ in range(5):
            equal(rig.engine.run(batch, Heads.ALL), expected)


def test_an_interrupted_run_leaves_its_slot_idle(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = start()
    batches = [random_batch(seed, (7, 3)) for seed in range(6)]
    expected = [start().engine.run(batch, Heads.ALL) for batch in batches]

    def interrupt(self: Event) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Event, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rig.engine.run(batches[0], Heads.ALL)
    assert ran(rig)[:2] == ["uploaded", "computed"]  # waited for before it was lent again
    for batch, found in zip(batches, expected, strict=True):
        equal(rig.engine.run(batch, Heads.ALL), found)


@pytest.mark.parametrize("code", [Code.cudaErrorIllegalAddress, Code.cudaErrorLaunchFailure])
def test_a_lost_device_says_so_ever_after(code: object, start: Start) -> None:
    rig = start()
    rig.library.crash = {rig.library.executions + 1: code}
    said = []
    for _ in range(3):
        with pytest.raises(
            m3rt.EngineError, match=r"the device was lost: .*; start the process again"
        ) as e:
            rig.engine.run(contract.batch_of(7, 3), Heads.ALL)
        said.append(str(e.value))
        copies = rig.cuda.calls["cudaMemcpyAsync"]
    assert len(set(said)) == 1
    assert rig.cuda.calls["cudaMemcpyAsync"] == copies  # the later ones did not even try
    rig.engine.close()


def test_a_device_lost_inside_the_library(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = start()

    def lose(self: object, stream: int) -> bool:
        rig.cuda.sticky = Code.cudaErrorIllegalAddress
        return False

    monkeypatch.setattr(emulated.ExecutionContext, "execute_async_v3", lose)
    for _ in range(2):
        with pytest.raises(m3rt.EngineError, match="the device was lost: cudaErrorIllegalAddress"):
            rig.engine.run(contract.batch_of(7, 3), Heads.ALL)


def test_nan_is_an_error(start: Start, model: m3rt.M3) -> None:
    rig = start()
    rig.library.spoil = True
    spoiled = m3rt.runtime.M3(model.manifest, model.tokenizer, rig.engine)
    with pytest.raises(m3rt.EngineError, match="NaN"):
        spoiled.encode(["a text"])


def test_everything_is_released_in_order(start: Start) -> None:
    rig = start()
    for _ in range(6):
        rig.engine.run(contract.batch_of(7, 3), Heads.ALL)
    assert rig.cuda.calls["cudaGraphLaunch"] == 5
    rig.engine.close()
    rig.engine.close()
    rig.engine._session.release()
    assert rig.cuda.live() == 0
    assert rig.cuda.used == 0
    died = [line for line in rig.cuda.trace if line.endswith(" died")]
    assert died == ["context died"] * 3 + ["engine died", "runtime died"]
    assert rig.cuda.trace.index("cudaGraphExecDestroy") < rig.cuda.trace.index("context died")
    with pytest.raises(m3rt.EngineError, match="the engine was closed"):
        rig.engine.run(contract.batch_of(7, 3), Heads.ALL)


def test_an_engine_that_nobody_needs_is_released(start: Start) -> None:
    rig = start()
    rig.engine.run(contract.batch_of(7, 3), Heads.ALL)
    device = rig.cuda
    del rig
    gc.collect()
    assert device.live() == 0


def test_releasing_never_raises(start: Start) -> None:
    rig = start()
    rig.engine.run(contract.batch_of(7, 3), Heads.ALL)
    rig.cuda.sticky = Code.cudaErrorIllegalAddress
    rig.engine.close()


def test_a_process_ends_quietly_with_an_engine_open(typed_dir: Path) -> None:
    script = (
        "import atexit\n"
        "atexit.register(lambda: print(device.live()))\n"  # what is registered first, runs last
        "import pytest, m3rt\n"
        "from tests import contract, emulated\n"
        "from tests.emulated_cuda import EmulatedCuda\n"
        "device = EmulatedCuda()\n"
        "emulated.install(pytest.MonkeyPatch(), device, 'tensorrt')\n"
        f"engine = m3rt.load({str(typed_dir)!r}, 'tensorrt:fp16').engine\n"
        "for _ in range(6):\n"
        "    engine.run(contract.batch_of(7, 3), m3rt.Heads.ALL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


lengths = st.lists(st.integers(2, 90), min_size=1, max_size=12)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(lengths, st.integers(0, 99)), min_size=1, max_size=4))
def test_random_batches_equal_the_cpu_engine(
    model: m3rt.M3, shared: Rig, requests: list[tuple[list[int], int]]
) -> None:
    for sizes, seed in requests:
        batch = random_batch(seed, tuple(sizes))
        found, expected = (e.run(batch, Heads.ALL) for e in (shared.engine, model.engine))
        equal(found, expected, exactly=False)


@pytest.fixture(scope="module")
def shared(typed_dir: Path) -> Rig:
    """An engine whose streams run at random, for many requests."""
    with pytest.MonkeyPatch.context() as patch:
        device = EmulatedCuda(restless=3)
        library = emulated.install(patch, device, "tensorrt")
        engine = m3rt.load(typed_dir, "tensorrt:fp16").engine
    assert isinstance(engine, Typed)
    return Rig(engine, device, library)


def random_batch(seed: int, sizes: tuple[int, ...]) -> Batch:
    """Texts of random tokens."""
    dice = np.random.default_rng(seed)
    rows = [np.array([0, *dice.integers(5, 200, n - 2), 2], np.int32) for n in sizes]
    return Batch(ragged(rows, np.int32), np.arange(len(rows)), max(sizes))


def alone(rig: Rig, batch: Batch) -> Raw:
    """Run a batch text by text."""
    found = []
    for i in range(len(batch.rows)):
        one = Batch(batch.tokens.take([i]), np.arange(1), len(batch.tokens[i]))
        found.append(rig.engine.run(one, Heads.ALL))
    return Raw(
        dense=np.concatenate([raw.dense for raw in found if raw.dense is not None]),
        weights=np.concatenate([raw.weights for raw in found if raw.weights is not None]),
        colbert=[raw.colbert[0] for raw in found if raw.colbert is not None],
    )


def parts_of(raw: Raw) -> list[Floats]:
    """All arrays of a result."""
    assert raw.dense is not None
    assert raw.weights is not None
    assert raw.colbert is not None
    return [raw.dense, raw.weights, *raw.colbert]


def equal(a: Raw, b: Raw, exactly: bool = True) -> None:
    """Compare results."""
    for left, right in zip(parts_of(a), parts_of(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=0 if exactly else TOLERANCE)


def again(rig: Rig, batch: Batch, times: int) -> None:
    """Run a batch more than once."""
    for _ in range(times):
        rig.engine.run(batch, Heads.ALL)


def ran(rig: Rig) -> list[str]:
    """What the device did, in order."""
    return [line for line in rig.cuda.trace if line in ("uploaded", "computed", "downloaded")]


def test_the_emulation_knows_no_function_that_cuda_has_not() -> None:
    for name in vars(EmulatedCuda):
        if name.startswith("cuda"):
            assert callable(getattr(real, name)), name
