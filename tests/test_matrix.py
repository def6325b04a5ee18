"""The table of tests/README.md is complete; the tests that it and SECURITY.md name exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEXT = (HERE / "README.md").read_text()
ROWS = {*range(1, 27), *range(29, 35), *range(37, 48)}
PROMISES = (HERE.parent / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"\b(test_\w+\.py)::(\w+)", TEXT + PROMISES)))


def table() -> dict[int, str]:
    """The lines of the table by row number."""
    return {int(line[1:].split("|")[0]): line for line in TEXT.splitlines()
            if re.match(r"\| *\d+ *\|", line)}  # fmt: skip


@cache
def functions_in(name: str) -> set[str]:
    """The test functions of a file, without importing it."""
    tree = ast.parse((HERE / name).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("name", "test"), NAMED)
def test_a_named_test_exists(name: str, test: str) -> None:
    assert test.startswith("test_") and test in functions_in(name)


def test_the_table_has_the_rows_that_are_promised_and_no_other() -> None:
    assert table().keys() == ROWS


def test_every_row_names_a_test() -> None:
    assert [row for row, line in table().items() if ".py::test_" not in line] == []


def test_every_test_file_is_in_the_overview() -> None:
    files = {path.name for path in HERE.glob("test_*.py")}
    overview = TEXT.partition("## The test matrix")[0]
    assert files - set(re.findall(r"test_\w+\.py", overview)) == set()
