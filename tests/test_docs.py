"""What the documents point to is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPER = (ROOT / "docs" / "paper.md").read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", PAPER)))
FILES = sorted(set(re.findall(r"`((?:m3rt|benchmarks|docs|tests)/[\w/.]+)`", PAPER)))


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_test_of_the_paper_s_table_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in names if name else any(found.startswith("test_") for found in names)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_the_paper_s_table_is_there(file: str) -> None:
    assert (ROOT / file).is_file()


def test_every_row_of_the_table_is_shown_by_something() -> None:
    rows = [line for line in PAPER.splitlines() if line.startswith("| ") and "paper |" not in line]
    assert len(rows) > 10
    for row in rows:
        assert re.search(r"test_\w+\.py", row.split("|")[3]), row
