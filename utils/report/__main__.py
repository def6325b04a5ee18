"""python -m utils.report: see the package."""

import sys

from utils.report import main

sys.exit(main())
