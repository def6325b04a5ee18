#!/usr/bin/env bash
# Stands for Python in test_launchers.py: imitates main_vpns.py, pytest, venv and pip, and hands
# everything else to the real one. It notes in $FAKE (a folder) what it was asked to do.
seed=7 method=vpns slot=cpu save_dir=result experiment=vpns
note() { echo "$*" >>"$FAKE/calls"; }

case "$1 $2" in
    "-c import sys"*)
        [ -z "$FAKE_OLD" ] || [[ $0 == */.venv/* ]] || exit 1 ;;
    "-m utils.python_env")
        [ -z "$FAKE_UNMET" ] || [[ $0 == */.venv/* ]] || {
            echo "found torch 2.7.0, needs >=2.8"
            echo "no scipy, needs any"
            exit 1
        } ;;
    "-m venv")
        note "venv"
        mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && exit 0 ;;
    "-m pip")
        note "pip ${*:3}"
        exit "${FAKE_PIP:-0}" ;;
    "-m utils.report")
        # Drawing takes a second, which most tests do not need.
        [ -n "$FAKE_REPORT" ] || [[ "$*" != *" --out "* ]] || exit 0 ;;
    "-m pytest")
        note "pytest ${*:3}"
        exit 0 ;;
    "--version "*)
        echo "Python 3.8.10" && exit 0 ;;
esac
[ "$1" = main_vpns.py ] || exec "$FAKE_REAL" "$@"

note "$*"
words=("$@")
for i in "${!words[@]}"; do
    case ${words[i]} in
        --seed) seed=${words[i + 1]} ;;
        --prune_method) method=${words[i + 1]} ;;
        --gpu) slot=gpu${words[i + 1]} ;;
        --save_dir) save_dir=${words[i + 1]} ;;
        --experiment_name) experiment=${words[i + 1]} ;;
    esac
done
echo "$slot $seed $OMP_NUM_THREADS" >>"$FAKE/slots"
mkdir "$FAKE/busy-$slot" || echo "$slot" >>"$FAKE/overlaps"
stopped() {
    sleep 0.4
    echo "$1" >>"$FAKE/saved"
    exit 75
}
for name in TERM USR1 USR2; do
    # shellcheck disable=SC2064
    trap "stopped $name" "$name"
done
touch "$FAKE/started-$seed"
# Bounded, so that a test that fails leaves nothing running.
for ((i = 0; i < 400; i++)); do [ -z "$FAKE_HOLD" ] || sleep 0.05; done
sleep "${FAKE_SECONDS:-0}"
rmdir "$FAKE/busy-$slot"
if [ "$seed" = "$FAKE_FAILS" ] || [ "$method" = "$FAKE_FAILS" ]; then
    echo "error: $([ "$seed" = "$FAKE_FAILS" ] && echo seed || echo method) $FAKE_FAILS is broken"
    exit "${FAKE_CODE:-3}"
fi
run=$save_dir/$experiment/resnet20-digits-$method/seed$seed-0123abcd
mkdir -p "$run"
echo '{"state": "done", "seconds": 1.5}' >"$run/run.json"
echo "{\"network\": \"resnet20\", \"dataset\": \"digits\", \"prune_method\": \"$method\"," \
    "\"seed\": $seed, \"epochs\": 8}" >"$run/config.json"
touch "$run/curves.png"
{
    echo density,real_density,kept,prunable,before,after_search,clean,prompted,passes
    if [ "$method" = dense ]; then echo 1,1,1000,1000,10.0,10.0,99.0,,8; fi
    if [ "$method" != dense ]; then echo "0.1,0.1,100,1000,10.0,80.0,9$((seed % 8)).5,97.25,32"; fi
} >"$run/results.csv"
echo "RESULT {\"run\": \"$run\"}"
