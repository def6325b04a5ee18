"""Does this Python meet a requirements file? Asks the installed metadata and imports none of it.

`python -m utils.python_env requirements.txt` prints what is missing and exits 1 if anything is.
"""

import operator
import re
import sys
from importlib import metadata
from pathlib import Path

_COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "<": operator.lt}


def unmet(path: Path) -> list[str]:
    """The lines of a requirements file that the running Python does not meet, with what it has.

    Knows what our files use: `name`, then bounds with >= <= == <, comments, and `-r other.txt`.
    """
    problems = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            problems += unmet(path.parent / line[3:].strip())
        elif line:
            problems += _problem(line)
    return problems


def _problem(requirement: str) -> list[str]:
    """One requirement: [] if it is met, else one line."""
    name = re.match(r"[\w.-]+", requirement)[0]
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return [f"no {name}, needs {requirement.removeprefix(name) or 'any'}"]
    bounds = re.findall(r"(>=|<=|==|<)\s*([\w.]+)", requirement)
    met = all(_COMPARE[sign](_release(installed), _release(bound)) for sign, bound in bounds)
    return [] if met else [f"found {name} {installed}, needs {requirement.removeprefix(name)}"]


def _release(version: str) -> tuple[int, ...]:
    """The release numbers of a version without trailing zeros: 2.14.0+cpu is (2, 14)."""
    numbers = [int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


if __name__ == "__main__":
    missing = unmet(Path(sys.argv[1]))
    print("\n".join(missing), end="\n" if missing else "")
    sys.exit(bool(missing))
