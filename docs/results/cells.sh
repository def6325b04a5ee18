# Sourced by the evidence scripts: runs cells side by side, one thread each, and skips what is done.
#   queue METHOD EPOCHS SEEDS [FLAGS]   one line a seed into the list
#   run_queue                           JOBS (default: the cores) at a time; fails if one failed
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
. ./utils/python_env.sh
find_python requirements.txt
export OMP_NUM_THREADS=1
cells=()

queue() {
    local method=$1 epochs=$2 seeds=$3 seed
    shift 3
    for seed in $seeds; do
        cells+=("main_vpns.py --prune_method $method --epochs $epochs --seed $seed $common $*")
    done
}

run_queue() {
    printf '%s\n' "${cells[@]}" |
        xargs -P "${JOBS:-$(nproc --all)}" -I{} sh -c "\"$PYTHON\" {} > /dev/null || { echo 'failed: {}'; exit 1; }"
}
