"""The source never runs what it reads: no unsafe loading, no code made from text, no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import torch_pickle

ROOT = Path(__file__).parent.parent
OTHERS = (".", "tests", "venv")  # hidden folders, planted dangers, installed packages


def is_ours(path: Path) -> bool:
    return not path.relative_to(ROOT).parts[0].startswith(OTHERS)


UNPICKLER = ROOT / "utils/torch_pickle.py"
SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if is_ours(path)]

HARMLESS = {"pickle.UnpicklingError", "pickle.PickleError"}  # what torchvision may raise
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
RUNNERS |= {"yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.package.PackageImporter"}
RUNNERS |= {"pandas.read_pickle", "torch.hub.load", "runpy.run_path", "runpy.run_module"}
# Calls that are safe with one keyword written out, and its value.
NEEDS = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
}
UNPACKERS = {"extractall", "extract"}  # of tarfile: safe with a filter; zipfile drops `..` itself


def dangers(source: str) -> list[str]:
    """What a source does that could run foreign code, each with its line."""
    tree = ast.parse(source)
    full_names = _imported(tree)
    found = []
    for node in ast.walk(tree):
        for problem in _problems(node, full_names):
            found.append(f"line {node.lineno}: {problem}")
    return found


def _imported(tree: ast.AST) -> dict[str, str]:
    """Names that imports bind, with what they stand for: `np` numpy, `load` torch.load."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            bound |= {name: f"{node.module}.{own}" for name, own in names.items()}
    return bound


def _problems(node: ast.AST, full_names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        modules = {start + alias.name for alias in node.names} - HARMLESS
        yield from (f"import {m}" for m in modules if m.split(".")[0] in UNPICKLERS)
    if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        name = _name(node, full_names)
        if name in RUNNERS:
            yield name
    if isinstance(node, ast.Call):
        yield from _calls(_name(node.func, full_names), _keywords(node))


def _calls(name: str, given: dict[str, object]) -> Iterator[str]:
    if name in NEEDS and given.get(NEEDS[name][0]) is not NEEDS[name][1]:
        yield f"{name} without {NEEDS[name][0]}={NEEDS[name][1]}"
    if given.get("shell", False) is not False:
        yield f"{name} with a shell"
    if given.get("allow_pickle", False) is not False:
        yield f"{name} with allow_pickle"
    if "." in name and name.rpartition(".")[2] in UNPACKERS and given.get("filter") != "data":
        yield f"{name} without filter='data'"


def _name(node: ast.AST, full_names: dict[str, str]) -> str:
    """The dotted name of a function, with imports resolved: `np.load` is numpy.load."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, full_names)}.{node.attr}"
    return full_names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _keywords(node: ast.Call) -> dict[str, object]:
    """Keywords by name; a value that is not written out is its node, which equals nothing."""
    values = {k.arg: k.value for k in node.keywords}
    return {n: v.value if isinstance(v, ast.Constant) else v for n, v in values.items()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    found = [danger.partition(": ")[2] for danger in dangers(path.read_text(encoding="utf-8"))]
    assert found == (["import pickle.Unpickler"] if path == UNPICKLER else [])


def test_the_one_unpickler_looks_names_up_in_a_table_and_imports_none() -> None:
    tree = ast.parse(UNPICKLER.read_text(encoding="utf-8"))
    (reader,) = [node for node in tree.body if getattr(node, "name", "") == "Reader"]
    assert [base.id for base in reader.bases] == ["Unpickler"]
    (find,) = [node for node in reader.body if getattr(node, "name", "") == "find_class"]
    assert "super" not in {node.id for node in ast.walk(find) if isinstance(node, ast.Name)}
    inert = (type, type(lambda: None), torch_pickle.Kind)
    assert all(isinstance(meaning, inert) for meaning in torch_pickle.NAMES.values())
    assert {m for m in torch_pickle.NAMES.values() if isinstance(m, type)} == {
        torch_pickle.Plain, torch_pickle.Defaults, torch_pickle.Nothing, set, tuple,
    }  # fmt: skip


def test_the_scan_sees_the_whole_source() -> None:
    seen = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"main_vpns.py", "utils/tensors.py", "data/load.py", "benchmarks/step.py"} <= seen


PLANTED = {
    "torch.load": "import torch\ntorch.load(path)",
    "torch.load by another name": "from torch import load as read\nread(path)",
    "torch under another name": "import torch as t\nt.load(path, map_location='cpu')",
    "weights_only off": "import torch\ntorch.load(path, weights_only=False)",
    "weights_only unknown": "import torch\ntorch.load(path, weights_only=safe)",
    "weights_only in a dict": "import torch\ntorch.load(path, **options)",
    "download": "import torch\ntorch.hub.load_state_dict_from_url(url)",
    "hub": "import torch\ntorch.hub.load('owner/name')",
    "script": "import torch\ntorch.jit.load(path)",
    "pickle": "import pickle",
    "pickle inside": "def f():\n    from pickle import load\n",
    "pickle as": "import _pickle as p",
    "joblib": "import joblib",
    "numpy": "import numpy as np\nnp.load(path, allow_pickle=True)",
    "eval": "eval(text)",
    "exec": "exec(text)",
    "eval passed on": "values = map(eval, words)",
    "import by name": "__import__(name)",
    "system": "import os\nos.system(text)",
    "system by name": "from os import system\nsystem(text)",
    "shell": "import subprocess\nsubprocess.run(text, shell=True)",
    "shell unknown": "import subprocess\nsubprocess.run(text, shell=flag)",
    "yaml": "import yaml\nyaml.load(text)",
    "tar": "with tarfile.open(path) as tar:\n    tar.extractall(folder)",
    "tar member": "tar.extract(member, folder, filter='fully_trusted')",
}


@pytest.mark.parametrize("case", PLANTED)
def test_the_scan_finds_what_is_planted(case: str) -> None:
    assert len(dangers(PLANTED[case])) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)",
        "import re\nre.compile(text)",
        "network.eval()",
        "tar.extractall(folder, filter='data')",
        "import subprocess\nsubprocess.run([a, b], shell=False)",
        "import json\njson.load(file)",
        "from pickle import UnpicklingError",
    ],
)
def test_the_scan_lets_the_rest_pass(source: str) -> None:
    assert dangers(source) == []
