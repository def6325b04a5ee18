"""What tensors free stays with the process where the C library allows it."""

import ctypes
import platform
import subprocess
import sys

import pytest

from utils import memory

FAULTS = """
import resource, sys
import numpy as np
from utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(1 << 24)
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def page_faults(mode: str) -> int:
    """Of five arrays of 128 MiB, one after the other, after a first one."""
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_an_array_takes_the_pages_of_the_one_before():
    assert page_faults("keep") < page_faults("leave") / 10


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def missing(name):
        raise error("no such thing")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory.keep_freed_memory()
