"""How much memory there is; what tensors free stays with the process where the C library allows."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from utils import memory
from utils.memory import usable_memory

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


MACHINE = usable_memory(Path("/nothing"), Path("/nothing"))
UNLIMITED = "9223372036854771712"  # as version 1 says it
GROUPED = {
    "of our own group": ("0::/slurm/step", {"slurm/step/memory.max": "5000"}, 5000),
    "of a group above": (
        "0::/slurm/job/step",
        {"slurm/job/step/memory.max": "max", "slurm/job/memory.max": "6000"},
        6000,
    ),
    "the least of all": (
        "0::/job/step",
        {"job/step/memory.max": "7000", "job/memory.max": "6000", "memory.max": "8000"},
        6000,
    ),
    "of a container, which sees its own group as the top": (
        "0::/docker/77", {"memory.max": "4000"}, 4000
    ),
    "of version 1": (
        "5:cpu,cpuacct:/x\n4:memory:/job/step\n0::/",
        {
            "memory/job/step/memory.limit_in_bytes": UNLIMITED,
            "memory/job/memory.limit_in_bytes": "3000",
            "memory/memory.limit_in_bytes": UNLIMITED,
            "cpu,cpuacct/x/memory.limit_in_bytes": "1",
        },
        3000,
    ),
    "of version 1 with another controller": (
        "4:hugetlb,memory:/job", {"memory/job/memory.limit_in_bytes": "2000"}, 2000
    ),
    "with a colon in its name": ("0::/a:b", {"a:b/memory.max": "2000"}, 2000),
    "of another group": ("0::/job", {"other/memory.max": "1000"}, MACHINE),
    "above the machine's": ("0::/", {"memory.max": str(1 << 60)}, MACHINE),
    "that cannot be read": ("0::/job", {"job/memory.max": "", "memory.max": "many"}, MACHINE),
    "with no controllers at all": ("", {}, MACHINE),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPED)
def test_memory_ends_at_the_limit_of_a_group(tmp_path, case):
    lines, files, expected = GROUPED[case]
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text(lines)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert usable_memory(own, groups) == expected


def test_without_control_groups_memory_is_the_machine_s(tmp_path):
    assert usable_memory(tmp_path / "none", tmp_path / "none") == MACHINE > 1 << 28
