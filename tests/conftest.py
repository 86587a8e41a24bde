"""Small random checkpoints, and the model directories exported from them, once per run."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import m3rt
from benchmarks.checkpoint import TINY, Shape, make
from m3rt import artifact, build, export, processor
from m3rt.server.settings import Settings
from tests.served import Served, serving

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("M3RT_DATA", ROOT.parent / "shared" / "data")).resolve()

# Without VNNI or AMX products of 8 bits overflow, and engines refuse to run them.
EXACT_INT8 = processor.read().exact_int8
BUILDS = (
    *("openvino:bf16", "openvino:fp32"),
    *(("openvino:int8", "cpu:int8") if EXACT_INT8 else ()),
)

# As a fine-tuned checkpoint may be: another depth, width, head count and ColBERT width.
ODD = Shape(hidden=48, layers=3, heads=3, ffn=80, colbert_dim=20, positions=514)
# Wide enough that float32 rounding shows, as in the real model, and long enough for 8192 tokens.
WIDE = Shape(hidden=128, layers=4, heads=2, ffn=256)


# A reranker whose scores differ by more than rounding does, 1024 tokens long.
PAIRS = Shape(hidden=64, layers=2, heads=4, ffn=128, positions=1026)


OVERFLOWS = "this processor's int8 products overflow"
needs_int8 = pytest.mark.skipif(not EXACT_INT8, reason=OVERFLOWS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the cases of int8 on a processor that has no exact one."""
    for item in items if not EXACT_INT8 else ():
        case = getattr(item, "callspec", None)
        if case and {"cpu:int8", "openvino:int8"} & {
            v for v in case.params.values() if type(v) is str
        }:
            item.add_marker(pytest.mark.skip(OVERFLOWS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip what an engine refused in its course for the same reason."""
    report = yield
    if report.failed and not EXACT_INT8 and "int8 needs a processor" in report.longreprtext:
        report.outcome = "skipped"
        where = item.location[0], (item.location[1] or 0) + 1
        report.longrepr = (*where, f"Skipped: {OVERFLOWS}")
    return report


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Generator[None]:
    """Collect garbage after each file: sessions and emulated devices hold gigabytes in cycles."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared data: real tokenizer, fixtures, texts. Skips where there is none."""
    if not (DATA / "SOURCES.md").is_file():
        pytest.skip(f"no shared data at {DATA}: set M3RT_DATA to its directory")
    return DATA


@pytest.fixture(scope="session")
def tokenizer_dir() -> Path | None:
    """The real tokenizer where the data is present; None trains a small one."""
    folder = DATA / "tokenizer"
    return folder if (folder / "tokenizer.json").is_file() else None


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of width 64, three heads, a small trained tokenizer."""
    return make(tmp_path_factory.mktemp("checkpoints") / "tiny", TINY)


@pytest.fixture(scope="session")
def odd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose shape is not BGE-M3's in any way, 512 tokens long."""
    return make(tmp_path_factory.mktemp("checkpoints") / "odd", ODD, seed=1)


@pytest.fixture(scope="session")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Random weights under the real tokenizer, config files and vocabulary."""
    folder = tmp_path_factory.mktemp("checkpoints")
    both = folder / "tokenizer"
    both.mkdir()
    for file in [data / "tokenizer" / "tokenizer.json", *(data / "config").iterdir()]:
        (both / file.name).symlink_to(file)
    return make(folder / "real", WIDE, both, seed=2)


@pytest.fixture(scope="session")
def model_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of checkpoint. Tests must not write in it."""
    return exported(checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def odd_model_dir(odd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of odd_checkpoint. Tests must not write in it."""
    return exported(odd_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def real_model_dir(real_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of real_checkpoint. Tests must not write in it."""
    return exported(real_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def reranker_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker, laid out as bge-reranker-v2-m3 is."""
    folder = tmp_path_factory.mktemp("checkpoints") / "reranker"
    return make(folder, PAIRS, seed=3, std=0.3, reranker=True)


@pytest.fixture(scope="session")
def reranker_dir(reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of reranker_checkpoint, built for every engine. Tests must not write in it."""
    folder = exported(reranker_checkpoint, tmp_path_factory)
    for engine in BUILDS:
        build.run(folder, engine)
    return folder


@pytest.fixture(scope="session")
def reranker(reranker_dir: Path) -> m3rt.Reranker:
    """The reranker on the engine that is exact."""
    return m3rt.load_reranker(reranker_dir, "cpu")


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the small trained model. Tests must not write in it."""
    return exported(ROOT / "benchmarks" / "small" / "checkpoint", tmp_path_factory)


@pytest.fixture(scope="session")
def model(model_dir: Path) -> m3rt.M3:
    """The small model on the engine that is exact."""
    return m3rt.load(model_dir, "cpu")


@pytest.fixture(scope="session")
def served(model_dir: Path, model: m3rt.M3) -> Iterator[Served]:
    """A server of the small model, with the settings that it has by default."""
    with serving(Settings(model_dir), model) as found:
        yield found


@pytest.fixture(scope="session")
def built_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of model_dir, built for every engine that prepares something here."""
    built = copied(model_dir, tmp_path_factory.mktemp("built") / "model").path
    for engine in BUILDS:
        build.run(built, engine)
    return built


def exported(checkpoint: Path, factory: pytest.TempPathFactory) -> Path:
    """Export with the parity gate."""
    return export.run(str(checkpoint), factory.mktemp("models") / checkpoint.name).path


def copied(model_dir: Path, to: Path) -> artifact.Artifact:
    """Copy a model directory, for tests that damage it."""
    shutil.copytree(model_dir, to)
    return artifact.Artifact(to, artifact.parse(to / artifact.MANIFEST))
