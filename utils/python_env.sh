# shellcheck shell=bash
# Which Python runs this project. Sourced from the project folder by the scripts, right after
# their `cd` there; nothing here runs on its own.
#
#   python_env FILE     sets PYTHON to a Python that meets requirements file FILE: the active one
#                       ($PYTHON, else python3), else that of .venv, which is made if need be
#   find_python FILE    the same without making or installing anything; fails if there is none
#   set_threads N       shares the cores among N processes, unless OMP_NUM_THREADS is set

unset PYTHONSAFEPATH  # `python -m` below takes modules from this folder

# A relative $PYTHON was meant from the folder of whoever called the script.
case "${PYTHON:-python3}" in
    /*) ;;
    */*) PYTHON=$OLDPWD/$PYTHON ;;
esac

fail() {
    echo "error: $*" >&2
    exit 1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

misfit=""  # what the first Python that was looked at lacks

meets() {  # PYTHON FILE
    local lacks
    new_enough "$1" && lacks=$("$1" -m utils.python_env "$2") && return 0
    misfit=${misfit:-$(echo "${lacks:-}" | paste -sd ';' -)}
    return 1
}

find_python() {
    local candidate
    misfit=""
    for candidate in "${PYTHON:-python3}" "$PWD/.venv/bin/python"; do
        if meets "$candidate" "$1"; then
            export PYTHON=$candidate
            return 0
        fi
    done
    return 1
}

# The number of threads changes the last bits of a result, so no run is left to guess it.
set_threads() {
    local cores
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}
}

python_env() {
    set_threads 1
    find_python "$1" || install_env "$1"
}

install_env() {
    local base=${PYTHON:-python3} venv=$PWD/.venv
    if [ ! -e "$venv" ]; then
        check_base "$base"
        [ -w "$PWD" ] || fail "$PWD cannot be written, where .venv would be: copy the project to" \
            "a folder of yours, or name a Python that has the packages: PYTHON=/path/to/python3"
        echo "Making .venv with $base"
        "$base" -m venv "$venv" || fail "$base cannot make .venv: install its venv module" \
            "(Debian and Ubuntu: apt install python3-venv), remove .venv and run this again"
    fi
    export PYTHON=$venv/bin/python
    new_enough "$PYTHON" || fail "the Python in .venv is broken or older than 3.10:" \
        "remove the folder .venv and run this again"
    if [ -n "$misfit" ]; then echo "$base does not fit: $misfit"; fi
    echo "Installing $1 into .venv (once; README.md has a smaller install for machines without a GPU)"
    "$PYTHON" -m pip install -r "$1" || fail "pip could not install $1 (its reason is above):" \
        "connect to the network, or name a Python that has the packages: PYTHON=/path/to/python3"
}

check_base() {
    command -v "$1" >/dev/null || fail "$1 not found: install Python 3.10 or newer," \
        "or name one: PYTHON=/path/to/python3"
    new_enough "$1" || fail "Python 3.10 or newer is needed, $1 is" \
        "$("$1" --version 2>&1 | cut -d ' ' -f 2): name a newer one: PYTHON=/path/to/python3"
}
