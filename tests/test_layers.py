"""Imports point one way: entry script, then siblings that do not know each other, then utils."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIBLINGS = ("data", "prompts", "models", "pruning", "runfolder")
FOLDERS = (*SIBLINGS, "utils")
UPPER = ("program", "report")  # beside the entry script: they may know everybody below
TOP = tuple(path.stem for path in ROOT.glob("*.py"))
OURS = {*FOLDERS, *TOP, *UPPER}


def imported(path: Path) -> set[str]:
    """Our own top-level packages and modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, line {node.lineno}"
            names.add(node.module)
    return {name.split(".")[0] for name in names} & OURS


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_code(folder: str) -> None:
    assert files(folder)


@pytest.mark.parametrize("folder", SIBLINGS)
def test_siblings_import_themselves_and_utils_only(folder: str) -> None:
    wrong = {path.name: imported(path) - {folder, "utils"} for path in files(folder)}
    assert not any(wrong.values()), wrong


def test_utils_import_none_of_ours() -> None:
    """`python -m utils.report`, the command of the report, is the one exception."""
    wrong = {path.name: imported(path) - {"utils"} for path in files("utils")}
    assert wrong.pop("report.py") == {"report"}
    assert not any(wrong.values()), wrong


def test_nobody_imports_the_entry_script() -> None:
    paths = [path for folder in (*FOLDERS, *UPPER) for path in files(folder)]
    assert [path.name for path in paths if "main_vpns" in imported(path)] == []


def test_the_walk_sees_imports() -> None:
    assert {*FOLDERS} - {"runfolder"} <= imported(ROOT / "program" / "settings.py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def at_import(path: Path) -> set[str]:
    """Modules that a file needs before it can itself be used."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_no_two_modules_import_each_other() -> None:
    """A package's __init__ is left out: its own modules may be read while it is."""
    paths = [p for folder in FOLDERS for p in files(folder) if p.stem not in ("__init__", "report")]
    graph = {module_name(path): at_import(path) for path in paths}
    graph = {name: found & graph.keys() for name, found in graph.items()}
    while free := [name for name, found in graph.items() if not found & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, sorted(graph)


SLOW = {"matplotlib", "tensorboard", "sklearn", "scipy", "gdown", "pandas"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_slow_packages_are_imported_where_they_are_needed(folder: str) -> None:
    wrong = {p.name: {n.split(".")[0] for n in at_import(p)} & SLOW for p in files(folder)}
    assert not any(wrong.values()), wrong
