#!/usr/bin/env bash
# Run the test suite; makes .venv first if the active Python lacks something.
#
#   bash run_tests.sh                    # everything but the slow tests
#   bash run_tests.sh -m slow            # the slow ones
#   bash run_tests.sh tests/test_x.py    # arguments go to pytest
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")"

. ./utils/python_env.sh
python_env requirements-dev.txt
exec "$PYTHON" -m pytest "$@"
