"""Measures of retrieval, whether engines differ, and the command."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from benchmarks.checkpoint import train_tokenizer
from m3rt import api, cli, datasets, evaluation, measures, quality, scoreboard, significance
from m3rt.datasets import Dataset
from m3rt.errors import EngineError, InputError, UnavailableError
from m3rt.evaluation import Evaluation
from m3rt.protocol import MIXTURES, MODES, Protocol
from m3rt.ranking import Ranking
from m3rt.result import document
from m3rt.rows import Texts
from m3rt.runtime import M3
from m3rt.search import Effort
from m3rt.types import Batch, Floats, Heads, Offsets, Raw
from tests import fake, results, sets

SMALL = Dataset(
    "small",
    Texts(("a", "b", "c", "d"), ("", "", "", "")),
    Texts(("1", "2", "3"), ("", "", "")),
    {"1": {"b": 1}, "2": {"a": 2, "c": 1}, "3": {"d": 1}},
)


def measured(
    dataset: Dataset, found: Ranking, wanted: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    return measures.measure(dataset, {"dense": found}, wanted)["dense"]


def ranking(*rows: list[int]) -> Ranking:
    """Rank by hand; -1 is nothing."""
    documents: Offsets = np.array(rows, np.int64)
    scores: Floats = np.full(documents.shape, 0.5, np.float32)  # all of them tie
    scores[documents < 0] = -np.inf
    return Ranking(documents, scores)


def test_measures_by_hand() -> None:
    found = measured(
        SMALL, ranking([0, 1, 2], [2, 0, 3], [-1, -1, -1]), ("nDCG@10", "Recall@100", "MRR", "P@1")
    )
    second = 1 / math.log2(3)
    ideal = 2 + second  # grades are gains, as trec_eval and BEIR have them
    assert found["nDCG@10"] == pytest.approx((second, (1 + 2 * second) / ideal, 0))
    assert found["Recall@100"] == (1.0, 1.0, 0.0)
    assert found["MRR"] == (0.5, 1.0, 0.0)
    assert found["P@1"] == (0.0, 1.0, 0.0)


def test_ties_stay_as_they_are_ranked() -> None:
    # trec_eval would sort equal scores by id
    for row, rank in (([0, 1, 2, 3], 4), ([3, 2, 1, 0], 1)):
        found = measured(SMALL, ranking(row, row, row), ("MRR",))
        assert found["MRR"][2] == 1 / rank


def test_answers_are_judged_in_the_first_hundred() -> None:
    texts = tuple("the seine" if i in (19, 20, 150) else "no" for i in range(200))
    ids = tuple(map(str, range(200)))
    queries = Texts(("1", "2", "3", "4"), ("",) * 4)
    known = dict.fromkeys(queries.ids, ("Seine",))
    dataset = Dataset("answers", Texts(ids, texts), queries, {}, known)
    rows = [
        list(range(200)),
        list(range(20, 200)) + list(range(20)),
        list(range(21, 200)) + list(range(21)),  # the first right one is at 130
        [-1] * 200,
    ]
    found = measured(dataset, ranking(*rows), measures.names(dataset))
    assert found == {"Recall@20": (1, 1, 0, 0), "Recall@100": (1, 1, 0, 0)}
    # place 20 counts, place 21 does not
    ends = [[*range(30, 49), 20, *range(50, 60)], [*range(30, 50), 20, *range(50, 59)]]
    one = replace(dataset, queries=queries.first(2))
    assert measured(one, ranking(*ends), ("Recall@20",)) == {"Recall@20": (1, 0)}


@pytest.mark.parametrize("name", ["nDCG", "nDCG@", "", "what", "P", "P@0.5", "__import__('os')"])
def test_measures_that_are_none(name: str) -> None:
    if name == "nDCG":
        assert measures.parse(SMALL, [name])
        return
    with pytest.raises(InputError, match="no measure"):
        measures.parse(SMALL, [name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    train_tokenizer(made)
    fake.write(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> M3:
    return fake.load(folder)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    return sets.beir(tmp_path / "beir")


def test_every_mode_is_measured(model: M3, beir: Path) -> None:
    dataset = datasets.read(beir)
    told: list[int] = []
    found = evaluation.evaluate(model, dataset, progress=told.append)
    assert sum(told) == 6
    assert [one.mode for one in found.modes] == list(MODES)
    assert found.measures == ("nDCG@10", "Recall@100", "MRR")
    assert found.query_ids == ("q1", "q2")
    assert (found.engine, found.dataset, found.layout) == ("fake:fp32", "beir", "beir")
    assert (found.queries.texts, found.documents.texts) == (2, 4)
    assert found.documents.tokens > found.documents.texts
    for one in found.modes:
        assert one is found[one.mode]
        for name in found.measures:
            assert len(one.per_query[name]) == 2
            assert one.means[name] == pytest.approx(sum(one.per_query[name]) / 2)
        # four documents: whatever is ranked is found
        assert one.mode == "sparse" or one.means["Recall@100"] == 1
    assert {"m3rt", "ir-measures", "pytrec-eval-terrier"} < found.versions.keys()


def test_a_text_finds_itself_first(model: M3) -> None:
    words = ("water", "model", "Paris", "Spree", "small", "boils")
    texts = tuple(f"{a} {b} {a}" for a, b in itertools.permutations(words, 2))
    ids = tuple(map(str, range(len(texts))))
    dataset = Dataset("self", Texts(ids, texts), Texts(ids, texts), {i: {i: 1} for i in ids})
    found = evaluation.evaluate(model, dataset)
    assert found["dense"].means["MRR"] > 0.99
    assert found["all"].means["MRR"] > 0.99


def test_what_is_asked_for_is_checked_before_the_time_is_spent(model: M3, beir: Path) -> None:
    dataset = datasets.read(beir)
    told: list[int] = []
    with pytest.raises(InputError, match="no measure 'nope'"):
        evaluation.evaluate(model, dataset, wanted=["nope"], progress=told.append)
    assert told == []


def enumerated(change: np.ndarray) -> float:
    """The definition of the test: every way to draw signs."""
    total = abs(change.sum())
    signs = itertools.product((1, -1), repeat=len(change))
    sums = [abs((change * np.array(sign)).sum()) for sign in signs]
    return float(np.mean([one >= total - 1e-12 for one in sums]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_the_randomisation_test_is_exact_where_it_can_be(eighths: list[int]) -> None:
    before = np.full(len(eighths), 0.5)
    change = np.array(eighths) / 8
    found = significance.paired(before, before + change)
    assert found["p"] == pytest.approx(enumerated(change))
    assert found["difference"] == pytest.approx(change.mean())
    assert found["percent"] == pytest.approx(200 * change.mean())
    assert found["better"] + found["worse"] + found["same"] == len(change)
    assert found["low"] <= change.mean() + 1e-12
    assert found["high"] >= change.mean() - 1e-12


def test_the_tests_agree_on_many_queries() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(400)
    noise = significance.paired(before, before + rng.normal(0, 0.1, 400))
    assert noise["p"] > 0.05
    assert noise["p"] == pytest.approx(noise["p_t"], abs=0.02)
    assert noise["low"] < 0 < noise["high"]
    effect = significance.paired(before, before + rng.normal(0.03, 0.1, 400))
    assert effect["p"] < 0.001
    assert 0 < effect["low"] < 0.03 < effect["high"]


def test_one_query_proves_nothing() -> None:
    found = significance.paired(np.array([0.0]), np.array([1.0]))
    assert (found["p"], found["low"], found["percent"], found["difference"]) == (
        None,
        None,
        None,
        1,
    )


class Coarse(fake.FakeEngine):
    """Rounds its dense vectors away."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def run(self, batch: Batch, heads: Heads) -> Raw:
        found = super().run(batch, heads)
        if found.dense is None or "coarse" not in self.name:
            return found
        return replace(found, dense=fake.unit(np.round(found.dense) + 1e-3))


def load(folder: str | Path, engine: str = "auto", devices: str | None = None) -> M3:
    """Stand in for m3rt.api.load; an engine is what it is called."""
    if engine == "gone":
        raise UnavailableError("no engine 'gone' here")
    found = fake.load(folder)
    found.engine = Coarse(f"{engine}:fp32")
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(api, "load", load)

    def invoke(*args: object) -> Result:
        return CliRunner().invoke(cli.app, ["eval", *map(str, args)])

    return invoke


@pytest.fixture
def xquad(tmp_path: Path) -> Path:
    sets.squad(tmp_path / "xquad" / "xquad.de.json")
    sets.squad(tmp_path / "xquad" / "xquad.ar.json")
    return tmp_path / "xquad"


def test_one_engine(run: Callable[..., Result], folder: Path, beir: Path) -> None:
    done = run(folder, beir)
    assert done.exit_code == 0, done.output
    for shown in ("nDCG@10", "Recall@100", "MRR", "dense+sparse", "colbert", "1 : 0.3 : 1", "all"):
        assert shown in done.stdout
    assert "against" not in done.stdout


def test_engines_are_compared(
    run: Callable[..., Result], folder: Path, xquad: Path, tmp_path: Path
) -> None:
    args = [folder, xquad, "--language", "all", "--engine", "fine", "--engine", "coarse"]
    done = run(*args, "--json", "--html", tmp_path / "a.html", "-o", tmp_path / "a.json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "a.json").read_text())
    assert [(one["dataset"], one["engine"]) for one in found["evaluations"]] == [
        (name, f"{engine}:fp32")
        for engine in ("fine", "coarse")
        for name in ("xquad.ar", "xquad.de")
    ]
    assert found["schema"] == quality.SCHEMA
    first = found["evaluations"][0]
    assert first["language"] == "ar"
    assert len(first["modes"]) == len(MODES)
    assert len(first["modes"][0]["per_query"]["nDCG@10"]) == len(first["query_ids"]) == 10
    assert "rankings" not in first
    assert len(found["differences"]) == 2 * len(MODES) * 3
    dense = [one for one in found["differences"] if one["mode"] == "dense"]
    assert {one["baseline"] for one in dense} == {"fine:fp32"}
    sparse = [one for one in found["differences"] if one["mode"] == "sparse"]
    assert {one["p"] for one in sparse} == {1.0}  # the engines differ in dense alone
    page = (tmp_path / "a.html").read_text().removeprefix("<!DOCTYPE html>\n")
    assert len(ElementTree.fromstring(page).findall(".//figure")) == len(MODES)
    table = run(*args).stdout
    for shown in ("average", "against fine:fp32", "better / worse", "95 % confidence"):
        assert shown in table


def test_weights_depths_and_lengths(
    run: Callable[..., Result], folder: Path, beir: Path, tmp_path: Path
) -> None:
    def protocol(*args: object) -> dict[str, object]:
        done = run(folder, beir, "--json", *args)
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.stdout)["evaluations"][0]["protocol"]
        return found

    usual = protocol()
    assert (usual["depth"], usual["hits"], usual["modes"]) == (200, 1000, list(MODES))
    assert (usual["max_length"], usual["query_max_length"]) == (64, 64)
    assert usual["mixture"]["all"] == {"dense": 1, "sparse": 0.3, "colbert": 1}  # type: ignore[index]
    mldr = protocol("--weights", "mldr")["mixture"]
    assert mldr["both"] == {"dense": 0.2, "sparse": 0.8, "colbert": 0}  # type: ignore[index]
    own = protocol("--weights", "1,2,3", "--depth", "7", "--hits", "9", "--max-length", "8")
    assert own["mixture"]["all"] == {"dense": 1, "sparse": 2, "colbert": 3}  # type: ignore[index]
    assert (own["depth"], own["hits"], own["max_length"]) == (7, 9, 8)
    assert protocol("--mode", "all", "--mode", "sparse")["modes"] == ["sparse", "all"]
    long = run(folder, sets.mldr(tmp_path / "mldr"), "--json")
    assert json.loads(long.stdout)["evaluations"][0]["protocol"]["mixture"] == mldr


def test_runs_are_written(
    run: Callable[..., Result], folder: Path, beir: Path, tmp_path: Path
) -> None:
    done = run(folder, beir, "--runs", tmp_path / "runs", "--mode", "dense", "--mode", "all")
    assert done.exit_code == 0, done.output
    files = sorted(file.name for file in (tmp_path / "runs").iterdir())
    assert files == ["beir.auto-fp32.all.trec", "beir.auto-fp32.dense.trec"]
    lines = (tmp_path / "runs" / files[1]).read_text().splitlines()
    assert len(lines) == 2 * 4
    query, q0, document, rank, score, tag = lines[0].split()
    assert (query, q0, rank, tag) == ("q1", "Q0", "1", "auto:fp32")
    assert document in sets.DOCUMENTS
    assert -1 <= float(score) <= 1


def test_quality_against_speed(
    run: Callable[..., Result], folder: Path, beir: Path, tmp_path: Path
) -> None:
    bench = results.result(results.engine("fine:fp32", 100.0, 0.1))
    bench = replace(bench, model=replace(bench.model, checkpoint="fake/m3"))
    file = sets.write(tmp_path / "bench.json", json.dumps(document(bench)))
    args = [folder, beir, "--engine", "fine", "--engine", "coarse", "--bench", file]
    done = run(*args, "--html", tmp_path / "a.html")
    assert done.exit_code == 0, done.output
    assert "quality against speed" in done.stdout
    page = (tmp_path / "a.html").read_text()
    assert "tokens/s, mixed" in page
    assert "fine:fp32: 100 tokens/s, nDCG@10" in page
    other = sets.write(tmp_path / "other.json", json.dumps(document(results.result())))
    done = run(folder, beir, "--bench", other)
    assert done.exit_code == InputError.exit_code
    assert "measures BAAI/bge-m3, expected fake/m3" in done.output


def test_an_engine_that_is_gone_leaves_the_others(
    run: Callable[..., Result], folder: Path, beir: Path
) -> None:
    done = run(folder, beir, "--engine", "fine", "--engine", "gone", "--json")
    assert done.exit_code == UnavailableError.exit_code
    found = json.loads(done.stdout)
    assert len(found["evaluations"]) == 1
    assert found["failures"] == {"gone": "no engine 'gone' here"}
    alone = run(folder, beir, "--engine", "gone")
    assert (alone.exit_code, alone.stdout) == (UnavailableError.exit_code, "")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nowhere"], 3, "is not there"),
        (["beir", "--mode", "best"], 3, "no mode 'best'"),
        (["beir", "--weights", "1,2"], 2, "none of paper, mldr"),
        (["beir", "--weights", "0,0,0"], 3, "sum to"),
        (["beir", "--max-length", "65"], 3, "expected 2 to 64"),
        (["beir", "--query-max-length", "1"], 3, "expected 2 to 64"),
        (["beir", "--measure", "nope"], 3, "no measure 'nope'"),
        (["beir", "beir"], 2, "two data sets are called beir"),
        (["beir", "--split", "dev"], 3, "no judgments for the split 'dev'"),
        (["beir", "--bench", "nowhere.json"], 3, "cannot read nowhere.json"),
    ],
)
def test_what_goes_wrong(
    run: Callable[..., Result],
    folder: Path,
    beir: Path,
    args: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(beir.parent)
    done = run(folder, *args)
    assert done.exit_code == code, done.output
    assert message in " ".join(done.output.split())


@pytest.mark.parametrize("package", ["ir_measures", "scipy"])
def test_what_is_not_installed_is_named_first(
    run: Callable[..., Result],
    folder: Path,
    beir: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measures.imported.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    done = run(folder, beir, "--engine", "fine", "--engine", "coarse")
    assert done.exit_code == UnavailableError.exit_code
    assert "pip install 'm3rt[eval]'" in " ".join(done.output.split())


def test_a_smaller_set(run: Callable[..., Result], folder: Path, beir: Path) -> None:
    done = run(folder, beir, "--queries", "1", "--documents", "3", "--json")
    (one,) = json.loads(done.stdout)["evaluations"]
    assert one["query_ids"] == ["q1"]
    assert one["documents"]["texts"] == 3


def test_different_queries_are_not_compared(model: M3, beir: Path) -> None:
    whole = datasets.read(beir)
    one, other = (evaluation.evaluate(model, each) for each in (whole, whole.first(1)))
    with pytest.raises(InputError, match="expected the same queries"):
        significance.compare(one, other)


def made(engine: str, mean: float, dataset: str = "a") -> Evaluation:
    effort = Effort(2, 100, 0)
    modes = tuple(
        evaluation.ModeResult(mode, {"MRR": mean}, {"MRR": (mean,) * 2}) for mode in MODES
    )
    protocol = Protocol(MODES, MIXTURES["paper"], max_length=9, query_max_length=9)
    return Evaluation(
        *(dataset, "beir", None, "fake/m3", engine, protocol, ("MRR",), modes, ("1", "2")),
        *(effort, effort, 1.0, 0.5, {}),
    )


def test_averages_need_every_set() -> None:
    evaluations = (made("x", 0.5), made("x", 0.7, "b"), made("y", 0.4))
    found = quality.Quality("", "m", evaluations, (), (), {"z": "<gone>"})
    assert found.average("x", "dense", "MRR") == pytest.approx(0.6)
    assert found.average("y", "dense", "MRR") is None
    page = scoreboard.page(found)
    assert "&lt;gone&gt;" in page
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    for sheet in scoreboard.sheets(found):
        assert all(len(row) == len(sheet.columns) for row in sheet.rows), sheet.title


def test_an_engine_that_fails_says_where(
    model: M3, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = datasets.read(beir)
    whole = fake.FakeEngine.run

    def broken(self: fake.FakeEngine, batch: Batch, heads: Heads) -> Raw:
        found = whole(self, batch, heads)
        return replace(found, dense=np.full_like(found.dense, np.nan))

    queries = model.encode(dataset.queries.texts)
    monkeypatch.setattr(model, "encode", lambda *args, **options: queries)
    monkeypatch.setattr(fake.FakeEngine, "run", broken)
    with pytest.raises(EngineError, match=r"counting from document 'd1' as 0: .*NaN"):
        evaluation.evaluate(model, dataset)
