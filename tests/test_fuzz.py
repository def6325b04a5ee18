"""Whatever is typed: an exit code of the contract, one line, no traceback.

FUZZ=3000 tries so many command lines.
"""

import os
from pathlib import Path

import pytest
from cli import call
from hypothesis import given, settings
from hypothesis import strategies as st

from program.settings import Config
from utils.config import flags_of, flatten

FLAGS, DEFAULTS = flags_of(Config()), flatten(Config())
HOSTILE = (
    "", " ", "-1", "0", "1", "7", "0.5", "1e-9", "nan", "inf", "-inf", "1e400", "9" * 400, "0x10",
    "1_000", "१", "2**31", "True", "none", "None", "null", "[]", "[0.1]", "0,1", "1,0.5,0.1", ",",
    "~", "~nobody/x", "/", ".", "..", "../../etc/passwd", "/dev/null", "/proc/self/mem", "a" * 5000,
    "a/" * 3000, "\x00", "\n", "\x1b[2J", "\ud800", "結果", "🙂", "%s", "{}", "$(id)", "`id`",
    "-", "--", "--epochs", "=", "a=b", "http://", "file:///etc/passwd", "hf://x", "timm:",
    "os:system", "torchvision:nothing", "cuda:99", "data.pt", "data.safetensors",
)  # fmt: skip
KEPT = {"dry_run", "device", "dataset", "data", "debug"}  # set below, or no value


def values(name: str) -> st.SearchStrategy[str]:
    """Values of a flag: those of its registry, and those of nobody."""
    hostile = st.sampled_from(HOSTILE)
    choices = FLAGS[name]["choices"]
    return st.one_of(st.sampled_from(sorted(choices)), hostile) if choices else hostile


@st.composite
def command(draw: st.DrawFn) -> list[str]:
    """Up to six flags with values, over a small run."""
    words = ["--network", "resnet20", "--weights", "none", "--dataset", "digits"]
    for name in draw(st.lists(st.sampled_from(sorted(FLAGS.keys() - KEPT)), max_size=6)):
        if isinstance(DEFAULTS[name], bool):
            words.append(f"--{draw(st.sampled_from(('', 'no_')))}{name}")
        else:
            words.append(f"--{name}={draw(values(name))}")
    return words


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("nowhere")


@given(words=command())
@settings(max_examples=int(os.environ.get("FUZZ", 300)))
def test_any_flags_end_in_a_code_of_the_contract_with_one_line(nowhere, words):
    done = call(*words, "--save_dir", nowhere, "--device", "cpu", "--dry_run")
    assert done.code in (0, 1, 2, 3, 4, 75)
    assert "Traceback" not in done.err and "this is a bug" not in done.err
    if done.code:
        assert done.error.isprintable()
    assert not list(nowhere.iterdir())
