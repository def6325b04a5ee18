"""python -m utils.report: see the package."""

import sys

from utils.errors import Interrupted
from utils.report import main
from utils.signals import Stop

stop = Stop()
stop.install()
try:
    code = main()
    stop.ignore()
except Interrupted as error:
    print(f"error: {error}", file=sys.stderr)
    code = error.exit_code
sys.exit(code)
