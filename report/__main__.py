"""python -m utils.report, or python -m report: see the package."""

import sys

from report import main as write
from utils.errors import Interrupted
from utils.signals import Stop


def main() -> None:
    """Do what the command line says and end the process with its exit code."""
    stop = Stop()
    stop.install()
    try:
        code = write()
        stop.ignore()
    except Interrupted as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
