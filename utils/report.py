"""`python -m utils.report`: see the package `report`."""

import sys

from report import main
from utils.streams import ready_streams

if __name__ == "__main__":
    ready_streams()
    sys.exit(main(sys.argv[1:]))
