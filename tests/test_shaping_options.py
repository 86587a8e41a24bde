"""The options of m3rt build that shape a TensorRT engine: read, refused, and handed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.checkpoint import train_tokenizer
from m3rt import build, cli
from m3rt.artifact import Artifact
from m3rt.engines.trt.profiles import parse
from m3rt.engines.trt.shaping import Shaping
from m3rt.errors import InputError
from m3rt.trial import Trials
from tests import fake

GIVEN = "1x1:16x64:64x128"
OPTIONS: dict[str, object] = {
    "--max-length": 32,
    "--max-tokens": 512,
    "--profiles": GIVEN,
    "--profile-count": 2,
    "--lengths": "-",
    "--mix": "queries",
    "--target": "sm86",
}


class ReachedError(Exception):
    """What stands in for the build was called."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    return fake.write(folder)  # max_length is 64


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[Shaping | None]:
    """What the command hands to the build, which does not run."""
    found: list[Shaping | None] = []

    def run(*arguments: Any) -> Any:
        found.append(arguments[-1])
        raise InputError("stopped here")

    monkeypatch.setattr(build, "run", run)
    return found


@pytest.fixture
def run(model: Artifact) -> Callable[..., Result]:
    def invoke(*arguments: object, engine: str = "tensorrt-rtx:fp16") -> Result:
        words = ["build", model.path, "--engine", engine, *arguments]
        return CliRunner().invoke(cli.app, [*map(str, words)])

    return invoke


def test_nothing_said_is_no_shaping(
    run: Callable[..., Result], passed: list[Shaping | None]
) -> None:
    run()
    run(engine="openvino:fp32")
    assert passed == [None, None]


def test_every_option_arrives(run: Callable[..., Result], passed: list[Shaping | None]) -> None:
    run("--max-length", 32, "--max-tokens", 512, "--profile-count", 2, "--target", "8.9,sm86")
    run("--profiles", GIVEN)
    assert passed == [
        Shaping(max_length=32, max_tokens=512, count=2, target=("sm86", "sm89")),
        Shaping(profiles=parse(GIVEN)),
    ]


def test_traffic_arrives(
    run: Callable[..., Result], passed: list[Shaping | None], tmp_path: Path
) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("9\n64 3\n")
    done = run("--lengths", file)
    run("--mix", "queries=3,long")
    first, second = (shaping.traffic for shaping in passed if shaping)
    assert first
    assert second
    assert (first.lengths.tolist(), first.counts.tolist()) == ([9, 64], [1, 3])
    assert second.counts.sum() == pytest.approx(4)
    assert done.stderr.splitlines() == ["error: stopped here"]


@pytest.mark.parametrize(("options", "most"), [((), 64), (("--max-length", 32), 32)])
def test_longer_texts_are_told_of(
    run: Callable[..., Result],
    passed: list[Shaping | None],
    tmp_path: Path,
    options: tuple[object, ...],
    most: int,
) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text(f"{most} 7\n65 1\n")
    done = run("--lengths", file, *options)
    assert f"12.50% of {file} is over {most} tokens, and counts as {most}" in done.stderr
    assert len(passed) == 1


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("engine", ["openvino:fp32", "cpu:fp32", "auto"])
def test_other_engines_take_none_of_them(
    option: str, engine: str, run: Callable[..., Result], passed: list[Shaping | None]
) -> None:
    done = run(option, OPTIONS[option], engine=engine)
    assert done.exit_code == InputError.exit_code
    assert done.stderr.endswith(f"has no profiles: leave out {option}\n")
    assert not passed


@pytest.mark.parametrize("option", ["--max-tokens", "--profile-count", "--lengths", "--mix"])
def test_what_contradicts_profiles_even_by_its_default(
    option: str, run: Callable[..., Result], passed: list[Shaping | None]
) -> None:
    default = {"--max-tokens": 16384, "--profile-count": 4}
    done = run("--profiles", GIVEN, option, default.get(option, OPTIONS[option]))
    assert done.exit_code == InputError.exit_code
    assert f"--profiles says all that {option} would: leave one of them out" in done.stderr
    assert not passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lengths", "-", "--mix", "long"), "--lengths and --mix both say what texts there are"),
        (("--lengths", "no-such-file"), "cannot read no-such-file"),
        (("--mix", "none"), "no mix 'none'; there are queries"),
        (("--profiles", "64x128"), "found '64x128', expected LEAST:BEST:MOST"),
        (("--target", "ampere"), "'ampere' is no compute capability"),
        (("--max-length", 32, "--target", ""), "'' is no compute capability"),
    ],
)
def test_what_cannot_be_read(
    options: tuple[object, ...],
    message: str,
    run: Callable[..., Result],
    passed: list[Shaping | None],
) -> None:
    done = run(*options)
    assert done.exit_code == InputError.exit_code
    assert message in done.stderr
    assert not passed


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> list[Trials]:
    """A library that is there, and the trials that would use it."""
    found: list[Trials] = []

    def prepare(trials: Trials, calibration: object) -> None:
        found.append(trials)
        raise ReachedError

    monkeypatch.setattr(Trials, "prepare", prepare)
    return found


@pytest.mark.parametrize("shaping", [None, Shaping(max_length=32)])
def test_a_build_hands_it_on(model: Artifact, rtx: list[Trials], shaping: Shaping | None) -> None:
    with pytest.raises(ReachedError):
        build.run(model.path, "tensorrt-rtx:bf16", shaping=shaping)
    assert [trials.shaping for trials in rtx] == [shaping or Shaping()]


@pytest.mark.parametrize(
    ("engine", "shaping", "message"),
    [
        ("cpu:fp32", Shaping(), "cpu has no profiles: leave out shaping"),
        ("tensorrt-rtx:fp16", Shaping(max_length=65), r"max_length is 65, expected 8 to 64"),
        ("tensorrt-rtx:fp16", Shaping(profiles=parse(GIVEN)), "expected at most 64"),
    ],
)
def test_a_build_refuses_before_it_begins(
    model: Artifact, rtx: list[Trials], engine: str, shaping: Shaping, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build.run(model.path, engine, shaping=shaping)
    assert not rtx


def test_the_command_refuses_what_the_model_cannot(
    run: Callable[..., Result], rtx: list[Trials]
) -> None:
    done = run("--max-length", 65)
    assert done.exit_code == InputError.exit_code
    assert "max_length is 65, expected 8 to 64 (the model's)" in done.stderr
    assert not rtx
