"""`python -m utils.report`: see the package `report`."""

import sys

from utils.start import begin_process

if __name__ == "__main__":
    begin_process()

from report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
