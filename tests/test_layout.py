"""What may import what, what the wheel holds, and what a file may grow to."""

import ast
import pkgutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import m3rt

ROOT = Path(__file__).parents[1]
JOINTS = {
    *(
        "api.py",
        "cli.py",
        "options.py",
        "shaping_options.py",
        "render.py",
        "doctor.py",
        "parity.py",
        "rehearsal.py",
        "build.py",
        "trial.py",
        "verdicts.py",
        "host.py",
    ),
}
CLOSED = {
    "m3rt": ("m3rt.export", "m3rt.engines"),
    "engines": ("m3rt.export", "m3rt.runtime", "m3rt.api"),
    "engines/trt": ("m3rt.export", "m3rt.runtime", "m3rt.api"),
    "engines/unpadded": ("m3rt.export", "m3rt.runtime", "m3rt.api"),
    "export": ("m3rt.engines", "m3rt.cli"),
    "m3rt/server": ("m3rt.export", "m3rt.api", "m3rt.cli", "m3rt.server.http", "m3rt.server.rpc"),
    "m3rt/server/http": ("m3rt.export", "m3rt.api", "m3rt.cli", "m3rt.server.rpc"),
    "m3rt/server/rpc": ("m3rt.export", "m3rt.api", "m3rt.cli"),
}
# all that the installed core may import at the top of a file
CORE = {"m3rt", "numpy", "tokenizers", "typer", "rich"}
LONGEST = 350  # lines


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def imports(nodes: list[ast.stmt]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            # "from m3rt import engines" names a module too
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("folder", CLOSED)
def test_imports_point_one_way(folder: str) -> None:
    for path in files(folder):
        if path.name in JOINTS:
            continue
        for name in imports(
            [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.stmt)]
        ):
            assert not name.startswith(CLOSED[folder]), f"{path} imports {name}"


def test_the_core_imports_only_its_dependencies() -> None:
    for path in files("m3rt"):
        for name in imports(ast.parse(path.read_text()).body):
            top = name.split(".")[0]
            assert top in CORE or top in sys.stdlib_module_names, f"{path} imports {name}"


def test_the_wheel_lists_every_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = [
        module.name for module in pkgutil.walk_packages(m3rt.__path__, "m3rt.") if module.ispkg
    ]
    assert sorted(setuptools["packages"]) == sorted(["m3rt", *found])


@pytest.mark.parametrize("folder", list(CLOSED))
def test_files_stay_small(folder: str) -> None:
    for path in files(folder):
        assert len(path.read_text().splitlines()) <= LONGEST, path


def test_every_public_name_is_documented() -> None:
    for name in [name for name in vars(m3rt) if not name.startswith("_")]:
        assert getattr(m3rt, name).__doc__, name
