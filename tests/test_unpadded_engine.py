"""How cuda:fp16 runs batches, on an emulation that keeps the rules of the hardware."""

from __future__ import annotations

import dataclasses
import gc
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import m3rt
from m3rt import Heads, artifact, build
from m3rt.artifact import Artifact
from m3rt.engines import Choice, cuda, graphs
from m3rt.engines.unpadded import backend, engine, files, kernels, ladder
from m3rt.engines.unpadded.engine import Unpadded
from m3rt.types import Batch, Raw, ragged
from tests import contract, emulated_ort, fake
from tests.conftest import copied, exported
from tests.emulated_cuda import Code, EmulatedCuda
from tests.emulated_ort import Library

DOWN = "cudaMemcpyDeviceToHost"
TOLERANCE = 4e-3  # float16 throughout
FULL = Code.cudaErrorMemoryAllocation


@dataclass
class Rig:
    """An engine, and what it believes to run on."""

    engine: Unpadded
    cuda: EmulatedCuda
    library: Library

    def __post_init__(self) -> None:
        self.library.ran.clear()  # the warm-up's
        self.cuda.trace.clear()


Start = Callable[..., Rig]


@pytest.fixture(scope="module")
def unpadded_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is built for cuda:fp16. Tests must not write in it."""
    return emulated_ort.built(model_dir, tmp_path_factory.mktemp("unpadded") / "model").path


@pytest.fixture
def start(unpadded_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Open an engine on a device of its own, whose memory moves often."""
    monkeypatch.setattr(cuda, "GRAIN", 256)
    monkeypatch.setattr(backend, "TOKENS", 2048)
    monkeypatch.setattr(backend, "LONG", 200)
    monkeypatch.setattr(engine, "WIDTH", 64)

    def opened(
        folder: Path = unpadded_dir,
        restless: int | None = None,
        capability: tuple[int, int] = (9, 0),
    ) -> Rig:
        device = EmulatedCuda(restless=restless, capability=capability)
        library = emulated_ort.install(monkeypatch, device)
        found = m3rt.load(folder, "cuda:fp16").engine
        assert isinstance(found, Unpadded)
        return Rig(found, device, library)

    return opened


@pytest.fixture
def kept_open() -> dict[str, Rig | None]:
    """An engine for all examples of a test."""
    return {}


def random_batch(seed: int, lengths: tuple[int, ...]) -> Batch:
    dice = np.random.default_rng(seed)
    rows = [np.array([0, *dice.integers(4, 300, n - 2), 2], np.int32) for n in lengths]
    return Batch(ragged(rows, np.int32), np.arange(len(rows)), max(lengths))


def parts_of(raw: Raw) -> list[np.ndarray]:
    arrays = [raw.dense, raw.weights, *(raw.colbert or ())]
    return [array for array in arrays if array is not None]


def equal(found: Raw, expected: Raw, tolerance: float = 0.0) -> None:
    pairs = zip(parts_of(found), parts_of(expected), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("capability", "restless"), [((9, 0), 1), ((8, 6), None)])
def test_contract(
    capability: tuple[int, int], restless: int | None, start: Start, model: m3rt.M3
) -> None:
    rig = start(restless=restless, capability=capability)
    opened = m3rt.runtime.M3(model.manifest, model.tokenizer, rig.engine)
    assert rig.engine.name == "cuda:fp16"
    contract.check(opened, TOLERANCE)
    forms = {form for form, _, _ in rig.library.ran}
    assert forms == ({"varlen", "rectangles"} if capability == (9, 0) else {"varlen"})


@pytest.mark.parametrize("forced", ["varlen", "rectangles"])
def test_a_form_can_be_forced(
    forced: str, start: Start, model: m3rt.M3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.FORCED, forced)
    rig = start()
    contract.check(m3rt.runtime.M3(model.manifest, model.tokenizer, rig.engine), TOLERANCE)
    assert {form for form, _, _ in rig.library.ran} == {forced}


def test_no_other_form_can_be_forced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.FORCED, "flash")
    with pytest.raises(m3rt.InputError, match="'flash', expected varlen or rectangles"):
        start()


def test_a_reranker(
    reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, start: Start
) -> None:
    folder = tmp_path_factory.mktemp("unpadded") / "reranker"
    emulated_ort.built(exported(reranker_checkpoint, tmp_path_factory), folder)
    device = EmulatedCuda(capability=(9, 0))
    with pytest.MonkeyPatch.context() as patch:
        emulated_ort.install(patch, device)
        pairs = [("where", f"the answer is {word} " * n) for n, word in enumerate("abcdefghijk", 1)]
        found, expected = (
            m3rt.load_reranker(folder, spec).score(pairs).scores for spec in ("cuda:fp16", "cpu")
        )
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_mixed_batch_runs_in_parts_in_its_own_order(start: Start) -> None:
    rig = start()
    batch = random_batch(3, (7, 300, 5, 1000, 310, 199, 320, 2))
    whole = rig.engine.run(batch, Heads.ALL)
    # long texts by like length, each rectangle at most an eighth empty, the others end to end
    assert rig.library.ran == [
        *(("rectangles", 1024, 1), ("rectangles", 3 * 320, 3)),
        ("varlen", ladder.tokens(213), 8),
    ]
    fresh = start()
    for i, text in enumerate(batch.tokens):
        one = Batch(ragged([text], np.int32), np.arange(1), len(text))
        alone = fresh.engine.run(one, Heads.ALL)
        assert whole.dense is not None
        assert whole.weights is not None
        assert whole.colbert is not None
        first, last = batch.tokens.starts[i : i + 2]
        own = Raw(whole.dense[i : i + 1], whole.weights[first:last], [whole.colbert[i]])
        equal(own, alone, TOLERANCE)


def test_only_the_heads_asked_for_are_copied_and_computed(start: Start) -> None:
    rig = start()
    batch = contract.batch_of(*[20] * 60)  # 1200 tokens: no graph, no padding
    sizes = {Heads.DENSE: 60 * 64 * 4, Heads.SPARSE: 1200 * 4, Heads.COLBERT: 1200 * 64 * 2}
    sizes[Heads.ALL] = sum(sizes.values())
    for heads, expected in sizes.items():
        before = rig.cuda.copied[DOWN]
        raw = rig.engine.run(batch, heads)
        assert rig.cuda.copied[DOWN] - before == expected, heads
        assert (raw.dense is None, raw.weights is None, raw.colbert is None) == tuple(
            head not in heads for head in (Heads.DENSE, Heads.SPARSE, Heads.COLBERT)
        )
        fed = rig.engine._feed(batch, heads, "varlen")
        # the last layer on first tokens alone where only these are wanted; one row of a head
        # that is not wanted
        assert len(fed.arrays["rows"]) == (60 if heads == Heads.DENSE else 1200)
        assert fed.sparse == (1200 if Heads.SPARSE in heads else 1)
        assert fed.colbert == (1200 if Heads.COLBERT in heads else 1)


@pytest.mark.parametrize("restless", [None, 1, 2])
def test_threads_share_one_engine(restless: int | None, start: Start, model: m3rt.M3) -> None:
    rig = start(restless=restless)
    shared = m3rt.runtime.M3(model.manifest, model.tokenizer, rig.engine)
    texts = contract.TEXTS[:8]
    expected = shared.encode(texts)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            order = np.random.default_rng(seed).permutation(len(texts))
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


def test_steps_of_a_rung_share_a_graph(start: Start) -> None:
    rig = start()
    captured = rig.cuda.calls["cudaStreamBeginCapture"]
    eager = start()
    eager.engine._session._graphs.stop()
    for n in range(130, 140):  # all of one rung, which the warm-up did not meet
        batch = random_batch(n, (n // 2, n - n // 2))
        equal(rig.engine.run(batch, Heads.ALL), eager.engine.run(batch, Heads.ALL))
    assert rig.cuda.calls["cudaStreamBeginCapture"] - captured == 1
    assert len(rig.library.ran) == 10
    assert len(set(rig.library.ran)) == 1


def test_queries_are_captured_beforehand(start: Start) -> None:
    rig = start()
    before = rig.library.runs
    for n in (2, 16, 100, 128):
        rig.engine.run(random_batch(n, (n,)), Heads.ALL)
    assert rig.library.runs == before  # launched, not run anew


def test_no_slot_grows_after_the_warm_up(start: Start) -> None:
    rig = start()
    slots = rig.engine._session.slots
    sizes = [(slot.device.bytes, slot.host.bytes) for slot in slots]
    assert len(set(sizes)) == 1
    graphs_kept = len(rig.engine._session._graphs._kept)
    for lengths in ((64,) * 32, (30, *[9] * 200), (1000, 1000), (2,) * 700):
        with rig.engine._session.lend(), rig.engine._session.lend():  # another slot runs it
            rig.engine.run(random_batch(1, lengths), Heads.ALL)
    assert [(slot.device.bytes, slot.host.bytes) for slot in slots] == sizes
    assert len(rig.engine._session._graphs._kept) >= graphs_kept


def test_large_steps_are_not_captured(start: Start) -> None:
    rig = start()
    before = rig.cuda.calls["cudaStreamBeginCapture"]
    for _ in range(4):
        rig.engine.run(contract.batch_of(*[103] * 10), Heads.DENSE)
    assert rig.cuda.calls["cudaStreamBeginCapture"] == before
    assert [tokens for _, tokens, _ in rig.library.ran] == [1030] * 4  # not padded, either


def test_where_nothing_can_be_captured_it_goes_on(start: Start) -> None:
    rig = start()
    rig.library.uncapturable = True
    batch = random_batch(1, (70, 80))
    expected = rig.engine.run(batch, Heads.ALL)
    tried = rig.cuda.calls["cudaStreamBeginCapture"]
    for _ in range(5):
        equal(rig.engine.run(batch, Heads.ALL), expected)
    assert rig.cuda.calls["cudaStreamBeginCapture"] == tried + 1


def test_few_graphs_are_kept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KEPT", 3)
    rig = start()
    before = rig.cuda.live()
    for _ in range(3):
        for n in (150, 180, 250, 300, 400, 500):
            rig.engine.run(contract.batch_of(*[n // 4] * 4), Heads.DENSE)
    assert rig.cuda.live() <= before + 3


def test_weights_are_on_the_device_once(start: Start, unpadded_dir: Path) -> None:
    rig = start()
    varlen, rectangles = rig.library.opened
    assert varlen.options.shared is not rectangles.options.shared
    assert varlen.options.shared == rectangles.options.shared  # the same values
    for session in (varlen, rectangles):
        assert session.options.entries["session.disable_cpu_ep_fallback"] == "1"
        assert not session.options.enable_mem_pattern


def test_out_of_memory_runs_in_halves(start: Start) -> None:
    rig = start()
    batch = random_batch(2, (150,) * 13)  # 1950 tokens
    expected = rig.engine.run(batch, Heads.ALL)
    poor = start()
    session = poor.library.opened[0]
    poor.cuda.cudaFree(session.arena.pop())
    session.room = 0
    poor.cuda.cards[0].memory = poor.cuda.cards[0].used + 1_500_000
    equal(poor.engine.run(batch, Heads.ALL), expected, TOLERANCE)
    assert max(tokens for _, tokens, _ in poor.library.ran) < 1500
    assert sum(texts for _, _, texts in poor.library.ran) >= 13


def test_a_text_that_does_not_fit(start: Start) -> None:
    rig = start()
    for session in rig.library.opened:
        session.room = 0
    rig.cuda.cards[0].memory = rig.cuda.cards[0].used
    said = r"a text of 150 tokens does not fit: .*Failed to allocate .* free; .*smaller max_length"
    with pytest.raises(m3rt.EngineError, match=said):
        rig.engine.run(random_batch(1, (150,)), Heads.DENSE)
    rig.cuda.cards[0].memory = 1 << 30
    rig.engine.run(random_batch(1, (150,)), Heads.DENSE)


def test_a_failed_run_gives_the_reason(start: Start) -> None:
    rig = start()
    batch = random_batch(1, (90, 60))
    expected = rig.engine.run(batch, Heads.ALL)
    rig.library.refuse[rig.library.runs + 1] = "Non-zero status code returned: CUBLAS failure 13"
    with pytest.raises(m3rt.EngineError, match=r"ONNX Runtime failed: .*CUBLAS failure 13"):
        rig.engine.run(contract.batch_of(*[103] * 10), Heads.DENSE)
    equal(rig.engine.run(batch, Heads.ALL), expected)


def test_a_lost_device_says_so_ever_after(start: Start) -> None:
    rig = start()
    rig.library.crash[rig.library.runs + 1] = Code.cudaErrorIllegalAddress
    for _ in range(2):
        with pytest.raises(m3rt.EngineError, match="the device was lost: cudaErrorIllegalAddress"):
            rig.engine.run(random_batch(1, (90, 60)), Heads.DENSE)


def test_nan_is_an_error(start: Start, model: m3rt.M3) -> None:
    rig = start()
    rig.library.spoil = True
    opened = m3rt.runtime.M3(model.manifest, model.tokenizer, rig.engine)
    with pytest.raises(m3rt.EngineError, match="output is NaN or Inf"):
        opened.encode(["a text"])


def test_copies_of_one_batch_overlap_the_computing_of_another(start: Start) -> None:
    rig = start()
    session, batch = rig.engine._session, contract.batch_of(*[103] * 10)
    step = rig.engine._made(batch, Heads.DENSE, "varlen")
    with session.lend() as first, session.lend() as second:
        for slot in (first, second):
            session.send(slot, step, ("dense",))

        def ran() -> list[str]:
            return [one for one in rig.cuda.trace if one in ("uploaded", "computed", "downloaded")]

        assert ran() == []  # nobody has waited: the host came back with both on their way
        session._upload.synchronize()
        assert ran() == ["uploaded"] * 2  # the second arrived while the first has not computed
        first.downloaded.wait()
        assert ran()[2:] == ["computed", "downloaded"]
        second.downloaded.wait()
        assert ran()[4:] == ["computed", "downloaded"]
    assert rig.engine.limits.parallel == backend.SLOTS


def test_everything_is_released(start: Start) -> None:
    rig = start()
    rig.engine.run(random_batch(1, (90, 60)), Heads.ALL)
    rig.library.opened.clear()
    rig.engine.close()
    gc.collect()
    assert rig.cuda.live() == 0
    assert rig.cuda.cards[0].used == 0
    with pytest.raises(m3rt.EngineError, match="the engine was closed"):
        rig.engine.run(random_batch(1, (90, 60)), Heads.ALL)


def test_an_engine_that_nobody_needs_is_released(start: Start) -> None:
    rig = start()
    device = rig.cuda
    rig.library.opened.clear()
    del rig
    gc.collect()
    assert device.live() == 0


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(2, 400), min_size=1, max_size=12), wanted=st.integers(1, 7))
def test_random_batches_equal_the_cpu_engine(
    lengths: list[int], wanted: int, start: Start, kept_open: dict[str, Rig | None], model: m3rt.M3
) -> None:
    rig = kept_open.setdefault("rig", None) or start()
    kept_open["rig"] = rig
    batch, heads = random_batch(sum(lengths), tuple(lengths)), Heads(wanted)
    equal(rig.engine.run(batch, heads), model.engine.run(batch, heads), 0.02)


def test_rungs_ascend_and_waste_little() -> None:
    assert ladder.RUNGS[0] == 8
    assert ladder.RUNGS[-1] == graphs.TOKENS
    assert all(rung % 8 == 0 for rung in ladder.RUNGS)
    for count in range(2, graphs.TOKENS + 1):
        rung = ladder.tokens(count)
        assert rung is not None
        assert count <= rung <= max(count + 7, 1.21 * count + 8)
    assert ladder.tokens(graphs.TOKENS + 1) is None
    assert [ladder.texts(n) for n in (1, 2, 7, 8, 31, 32)] == [2, 8, 8, 32, 32, 128]


SAID = """
AttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 MATH=1
Operator=PackedMultiHeadAttention Node=layer.0.attention DataType=fp16 SdpaKernel=FLASH_ATTENTION
Operator=PackedMultiHeadAttention Node=layer.1.attention DataType=fp16 SdpaKernel=FLASH_ATTENTION
Operator=MultiHeadAttention Node=layer.0.attention DataType=fp16 SdpaKernel=CUDNN_FLASH_ATTENTION
Operator=MultiHeadAttention Node=layer.1.attention DataType=fp16 SdpaKernel=MATH
"""


def test_kernels_are_read_from_what_onnx_runtime_says() -> None:
    found = kernels.read(SAID)
    assert found == {
        "PackedMultiHeadAttention": {"FLASH_ATTENTION": 2},
        "MultiHeadAttention": {"CUDNN_FLASH_ATTENTION": 1, "MATH": 1},
    }
    assert kernels.slow(found) == [
        "1 of MultiHeadAttention ran in MATH, expected CUDNN_FLASH_ATTENTION or FLASH_ATTENTION"
    ]
    assert kernels.slow({"PackedMultiHeadAttention": {"FLASH_ATTENTION": 48}}) == []


def test_kernels_cannot_be_told_where_nothing_runs(unpadded_dir: Path) -> None:
    with pytest.raises(
        m3rt.EngineError, match=r"cannot be told: .*(CUDAExecutionProvider|no device)"
    ):
        kernels.ask(unpadded_dir, [16])
    command = [sys.executable, "-m", kernels.MODULE, str(unpadded_dir), "0", "16"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert re.search("cannot be told: .*(CUDAExecutionProvider|no device)", done.stderr)


def refused(mine: tuple[Path, Library], kind: type[m3rt.M3Error], match: str) -> None:
    """Loading is refused, and leaves nothing behind on the device."""
    folder, library = mine
    with pytest.raises(kind, match=match):
        m3rt.load(folder, "cuda:fp16")
    library.opened.clear()
    gc.collect()  # the traceback held what was open
    assert library.cuda.live() == 0


REBUILD = "; run: m3rt build .*/model --engine cuda --precision fp16 --force$"


@pytest.fixture
def mine(
    unpadded_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Library]:
    """A model to damage, and the library that is to open it."""
    folder = copied(unpadded_dir, tmp_path / "model").path
    return folder, emulated_ort.install(monkeypatch, EmulatedCuda())


def test_statistics_add_up_in_float32_in_every_version(mine: tuple[Path, Library]) -> None:
    folder, library = mine
    library.__version__ = "1.24.2"  # the emulation refuses a session that would not
    m3rt.load(folder, "cuda:fp16")


def test_what_was_not_built(mine: tuple[Path, Library], model_dir: Path) -> None:
    refused(
        (model_dir, mine[1]),
        m3rt.ArtifactError,
        "has not been built for cuda:fp16; run: m3rt build",
    )


def test_damaged_weights(mine: tuple[Path, Library]) -> None:
    folder, _ = mine
    file = folder / "cuda-fp16.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF  # within an array: its checksum tells
    file.write_bytes(data)
    trusted(folder, file)
    refused(mine, m3rt.ArtifactError, f"is damaged in what was built for cuda:fp16.*{REBUILD}")
    file.write_bytes(data[:1000])
    trusted(folder, file)
    refused(mine, m3rt.ArtifactError, f"is damaged in what was built for cuda:fp16.*{REBUILD}")


def test_a_manifest_that_does_not_say_how(mine: tuple[Path, Library]) -> None:
    folder, _ = mine
    found = artifact.read(folder)
    entry = dataclasses.replace(found.manifest.builds["cuda:fp16"], recipe={})
    builds = {"cuda:fp16": entry}
    fake.save(Artifact(folder, dataclasses.replace(found.manifest, builds=builds)))
    refused(mine, m3rt.ArtifactError, f"is damaged in what was built for cuda:fp16.*{REBUILD}")


def trusted(folder: Path, file: Path) -> None:
    """Let the manifest know a file as it is now."""
    manifest = artifact.parse(folder / artifact.MANIFEST)
    files = {**manifest.files, file.name: artifact.describe(file)}
    fake.save(Artifact(folder, dataclasses.replace(manifest, files=files)))


def test_a_graph_that_onnx_runtime_does_not_take(
    mine: tuple[Path, Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder, library = mine

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel")

    monkeypatch.setattr(library, "InferenceSession", fail)
    refused(mine, m3rt.ArtifactError, f"cannot open .*varlen.onnx: .* no kernel{REBUILD}")


def test_a_provider_whose_libraries_are_not_found(mine: tuple[Path, Library]) -> None:
    _folder, library = mine
    library.lacking = True
    refused(mine, m3rt.UnavailableError, r"the session has CPU.*, pip install 'm3rt\[cuda\]'$")


def test_too_little_memory_for_the_weights(mine: tuple[Path, Library]) -> None:
    folder, library = mine
    library.cuda.cards[0].memory = 10_000
    refused(mine, m3rt.UnavailableError, r"cuda:fp16 needs .* of the device's memory .* free")
    library.cuda.cards[0].memory = (folder / "cuda-fp16.npz").stat().st_size + 10_000
    refused(mine, m3rt.EngineError, "does not fit|cannot open")


def test_no_driver(mine: tuple[Path, Library]) -> None:
    _folder, library = mine
    library.cuda.fail("cudaGetDeviceCount", Code.cudaErrorInsufficientDriver, 1)
    refused(mine, m3rt.UnavailableError, "no CUDA device can be used: .*install an NVIDIA driver")


def test_without_the_bindings(mine: tuple[Path, Library], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = mine
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(m3rt.UnavailableError, match=r"pip install 'm3rt\[cuda\]'"):
        m3rt.load(folder, "cuda:fp16")


def test_the_graphs_are_whole_by_themselves(unpadded_dir: Path) -> None:
    """Every runtime finds the constants; and what is given to a session comes before them."""
    for form in files.FORMS:
        path = unpadded_dir / f"cuda-fp16.{form}.onnx"
        found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        given = dict(files.arrays(artifact.read(unpadded_dir), Choice("cuda", "fp16")))
        assert given.keys() <= found.keys()
        for name, array in given.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.slow
def test_a_build_on_a_gpu_is_judged_by_the_engine_and_says_what_is_slow(
    small_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = copied(small_dir, tmp_path / "model").path
    library = emulated_ort.install(monkeypatch, EmulatedCuda(capability=(9, 0)))
    ran = {"PackedMultiHeadAttention": {"MATH": 4}}
    monkeypatch.setattr(kernels, "ask", lambda *args, **options: ran)
    choice, made = build.run(folder, "cuda:fp16")
    assert len(library.ran) > 20
    entry = made.manifest.builds[str(choice)]
    assert entry.parity["engine"] == "cuda:fp16"
    assert "attention may be slow on this GPU: 4 of PackedMultiHeadAttention ran in" in caplog.text
    caplog.clear()
    ran["PackedMultiHeadAttention"] = {"FLASH_ATTENTION": 4}
    kernels.warn(folder)
    assert not caplog.records
