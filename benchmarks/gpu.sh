#!/usr/bin/env bash
# All that a GPU must show, in some minutes on one card: the tests marked cuda, then what selection,
# steps, epochs and data cost there. Needs no network; any Python that has torch does.
#
#   bash benchmarks/gpu.sh                   # writes docs/results/gpu
#   OUT=/tmp/gpu bash benchmarks/gpu.sh --device cpu   # the same commands, small, to try the script
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

case "$*" in
    "" | "--device cuda") device=cuda ;;
    "--device cpu") device=cpu ;;
    *) echo "error: give nothing, --device cuda or --device cpu" >&2; exit 2 ;;
esac
PYTHON=${PYTHON:-python3}
OUT=${OUT:-docs/results/gpu}
mkdir -p -- "$OUT"
rm -f -- "$OUT"/*.log

# A part that fails is named in the table, and the others go on.
part() {
    local name=$1
    shift
    echo "== $name: $*"
    "$PYTHON" "$@" > "$OUT/$name.log" 2>&1 || echo "FAILED with exit code $?" >> "$OUT/$name.log"
    tail -n 4 -- "$OUT/$name.log"
}

step() {
    local name=$1 size=$2 batch=$3
    shift 3
    if [ "$device" = cpu ]; then  # the machine that tries the script has two cores
        batch=4
        set -- "$@" --iterations 1 --repeats 1
    fi
    part "step-$name" benchmarks/step.py --device "$device" --size "$size" --batch "$batch" "$@"
}

counts=11678912,25502912,138344128
images=()
epoch=()
if [ "$device" = cpu ]; then
    epoch=(--images 16 --batch 8)
    counts=1000000
    images=(--images 64 --repeats 1)
fi
part selection benchmarks/selection.py --device "$device" --counts "$counts"
step 32 32 128 --iterations 20
step 64 64 128 --iterations 20
step 224 224 256 --repeats 3
step 224-bf16 224 256 --repeats 5 --amp bf16 --channels_last
step resnet50-bf16 224 64 --repeats 5 --network resnet50 --amp bf16 --channels_last
step 32-eager 32 128 --iterations 20 --repeats 5 --cuda_graphs off
step 224-free 224 256 --repeats 3 --deterministic off
part epoch-32 benchmarks/epoch.py --device "$device" --size 32 "${epoch[@]}"
part epoch-224 benchmarks/epoch.py --device "$device" --size 224 --batch 256 --images 5120 "${epoch[@]}"
part data benchmarks/data.py --device "$device" --sizes 32,224 --batch 128 "${images[@]}"
part data-files benchmarks/data.py --device "$device" --sizes 224 --batch 128 --files \
    --workers "$(getconf _NPROCESSORS_ONLN)" "${images[@]}"
part tests -m pytest -q -m cuda -p no:cacheprovider tests/test_cuda.py
"$PYTHON" benchmarks/gpu_table.py "$OUT"
