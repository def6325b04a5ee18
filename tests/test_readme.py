"""The commands and flags that README.md shows are those that there are."""

import re
import shlex
from pathlib import Path

import pytest
from cli import ROOT, call
from test_launchers import Project

from program.settings import Config
from utils.config import flags_of

TEXT = (ROOT / "README.md").read_text()
COMMAND = r"((?:[A-Z]+=(?:\"[^\"]*\"|\S+) )*bash {}\.sh[^`#\n]*)"
SWEEPS = sorted({command.strip() for command in re.findall(COMMAND.format(r"vpns\w*"), TEXT)})
QUICKSTARTS = sorted({c.strip() for c in re.findall(COMMAND.format("quickstart"), TEXT)})
PROGRAM = sorted({words.strip() for words in re.findall(r"main_vpns\.py( --[^`#\n]+)", TEXT)})
REAL = {"D": "digits"}  # for placeholders that are no value
OF_OTHERS = {"out", "time", "case", "size", "batch", "keep_memory", "files", "processes",
             "nproc_per_node", "nodes", "gpus", "max"}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def is_accepted(words: list[str]) -> bool:
    done = call(*words, "--dry_run")
    return done.code == 0 and not done.err


def test_commands_are_found() -> None:
    assert len(SWEEPS) >= 5 and len(QUICKSTARTS) == 2 and len(PROGRAM) >= 4


@pytest.mark.parametrize("command", PROGRAM)
def test_a_shown_command_of_the_program_is_accepted(command: str) -> None:
    assert is_accepted([REAL.get(word, word) for word in command.split()])


@pytest.mark.parametrize("command", SWEEPS)
def test_a_shown_command_of_a_launcher_runs_accepted_commands(
    project: Project, command: str
) -> None:
    done = project.run("bash", "-c", command, DRY_RUN="1")
    cells = [shlex.split(line)[2:] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and cells and all(map(is_accepted, cells))


@pytest.mark.parametrize("command", QUICKSTARTS)
def test_a_shown_quickstart_runs_accepted_commands(project: Project, command: str) -> None:
    done = project.run("bash", "-c", command)
    runs = [line.split()[1:] for line in project.noted("calls")]
    assert done.returncode == 0 and len(runs) == 2 and all(map(is_accepted, runs))


def test_every_shown_flag_is_a_flag() -> None:
    """`--score_*` stands for those that begin so, `--no_x` for the negative of x."""
    known = {*flags_of(Config()), *OF_OTHERS, "help"}
    for shown in re.findall(r"--([a-z][a-z0-9_]*\*?)", TEXT):
        name = shown.removeprefix("no_")
        assert name in known or any(n.startswith(name[:-1]) for n in known if name[-1] == "*"), name
