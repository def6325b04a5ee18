#!/usr/bin/env bash
# Run the test suite; makes .venv first if the active Python lacks something.
#
#   bash run_tests.sh                    # everything but the slow tests, in two processes
#   bash run_tests.sh -m slow            # the slow ones
#   bash run_tests.sh tests/test_x.py    # arguments go to pytest
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")"

. ./utils/python_env.sh
python_env requirements-dev.txt
# A file's tests stay together, since they share what is costly to make.
if [ $# = 0 ]; then set -- --numprocesses 2 --dist loadfile; fi
exec "$PYTHON" -m pytest "$@"
