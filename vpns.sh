#!/usr/bin/env bash
# One network and dataset at several densities, over methods and seeds; then mean and standard
# deviation over the seeds, and a report that compares the methods.
#
# As it stands it is the authors' run: ResNet-18 on CIFAR-100, 40 to 90 % of the weights removed,
# 30 epochs of search and 30 of fine-tuning a level, seeds 7, 9, 17. What to expect from it:
# vpns_resnet18_cifar100.sh.
#
#   bash vpns.sh
#   NETWORK=vgg16 DATASET=dtd GPUS="0 1" bash vpns.sh
#   METHODS="dense vpns hydra" SEEDS=7 bash vpns.sh --batch_size 64
#   PRESET=paper METHODS="vpns hydra omp" bash vpns.sh
#   LAUNCHER=slurm JOBS=16 SBATCH_PARTITION=gpu bash vpns.sh
#   DRY_RUN=1 bash vpns.sh               # print the commands only
#
# Variables: NETWORK, DATASET, METHODS (or METHOD), SEEDS, DENSITIES (shares of weights kept; the
# leading 1 is a placeholder), EPOCHS (of each stage), GPUS (one run at a time on each; default 0 if
# there is one; empty: the CPU), DATA (the data's folder), SAVE_DIR, EXPERIMENT, and those of the
# optimizers below. PRESET=paper takes epochs and optimizers of each method from the paper, unless
# their variables are set. Relative paths count from this folder. Arguments go to main_vpns.py,
# last, so they win.
#
# LAUNCHER=slurm hands the cells to Slurm as an array of jobs of CPUS (4) cores and a GPU each, JOBS (8)
# at a time, and the report as a job that comes when all have ended: each cell saves before its time is up and queues itself again
# (docs/slurm/vpns.sbatch). sbatch reads its options from its own variables, such as SBATCH_PARTITION,
# SBATCH_ACCOUNT and SBATCH_TIMELIMIT. RETRIES (2) is how often a cell that ends with code 1 tries again.
#
# Repeating a command continues what was stopped and skips what is done. A cell that fails does not
# stop the others. In SAVE_DIR/EXPERIMENT, each try of a cell has a log of its own (logs/CELL.log,
# then CELL.2.log ...), and report is on all runs of the experiment, those of earlier commands too.
# Exit code: 0, that of the first cell that failed, or 75 if a signal stopped it.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
extra=("$@")

# Edit these two, or set NETWORK and DATASET, which win.
network=resnet18  # resnet18 resnet50 vgg16 vgg16_bn mobilenet_v2 resnet20
dataset=cifar100  # cifar10 cifar100 tiny_imagenet dtd flowers102 food101 oxfordpets stanfordcars ...

network=${NETWORK:-$network}
dataset=${DATASET:-$dataset}
methods=${METHODS:-${METHOD:-vpns}}
seeds=${SEEDS:-7 9 17}
densities=${DENSITIES:-1,0.6,0.5,0.4,0.3,0.2,0.1}
experiment=${EXPERIMENT:-vpns}
save_dir=${SAVE_DIR:-result}
flags=()
if [ -n "${PRESET:-}" ]; then flags+=(--preset "$PRESET"); fi

option() {  # FLAG VARIABLE DEFAULT: a preset knows better than the default, not than the variable
    local value=${!2:-}
    if [ -z "$value" ] && [ -z "${PRESET:-}" ]; then value=$3; fi
    if [ -n "$value" ]; then flags+=("$1" "$value"); fi
}

option --epochs EPOCHS 30
option --weight_optimizer WEIGHT_OPTIMIZER sgd
option --weight_lr WEIGHT_LR 0.01
option --weight_vp_optimizer WEIGHT_VP_OPTIMIZER sgd
option --weight_vp_lr WEIGHT_VP_LR 0.01
option --score_optimizer SCORE_OPTIMIZER adam
option --score_lr SCORE_LR 0.0001
option --score_vp_optimizer SCORE_VP_OPTIMIZER adam
option --score_vp_lr SCORE_VP_LR 0.0001

CDPATH='' cd -- "$(dirname -- "$0")"
. ./utils/python_env.sh
if [ -z "${GPUS+set}" ] && nvidia-smi -L >/dev/null 2>&1; then GPUS=0; fi
launcher=${LAUNCHER:-local}
case $launcher in
    local) ;;
    slurm | cell | report) GPUS=${GPUS-auto} ;;  # the latter two are its jobs; Slurm gives the GPU
    *) fail "LAUNCHER is local or slurm, not $launcher" ;;
esac
read -r -a slots <<<"$(tr ',' ' ' <<<"${GPUS:-cpu}")"
if [ ${#slots[@]} = 0 ]; then slots=(cpu); fi
results=$save_dir/$experiment
logs=$results/logs

build() {  # METHOD SEED SLOT: the command of one cell, into `cell`
    cell=("$PYTHON" main_vpns.py --experiment_name "$experiment" --dataset "$dataset"
        --network "$network" --prune_method "$1" --density_list "${densities// /,}"
        ${flags[@]+"${flags[@]}"} --seed "$2" --save_dir "$save_dir")
    if [ -n "${DATA:-}" ]; then cell+=(--data "$DATA"); fi
    case $3 in
        cpu) cell+=(--device cpu) ;;
        auto) ;;
        *) cell+=(--gpu "$3") ;;
    esac
    cell+=(${extra[@]+"${extra[@]}"})
}

show() {  # WORDS: one line that a shell reads back as the same words
    local word line=""
    for word in "$@"; do
        case $word in
            "" | *[!A-Za-z0-9_./,:=+-]*) line+=$(printf ' %q' "$word") ;;
            *) line+=" $word" ;;
        esac
    done
    echo "${line# }"
}

cells=()
for method in ${methods//,/ }; do
    for seed in ${seeds//,/ }; do cells+=("$method $seed"); done
done

if [ -n "${DRY_RUN:-}" ] && [ "$DRY_RUN" != 0 ]; then
    PYTHON=${PYTHON:-python3}
    for i in "${!cells[@]}"; do
        read -r method seed <<<"${cells[i]}"
        build "$method" "$seed" "${slots[i % ${#slots[@]}]}"
        show "${cell[@]}"
    done
    exit 0
fi

pids=() names=() tries=()  # by slot: process (empty: the slot is free), cell, log of this try
done_logs=() failures=()
stop="" exit_code=0

ask_to_stop() {  # SIGNAL
    stop=$1
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do kill -s "$1" "$pid" 2>/dev/null || true; done
}

# Ctrl-C reaches the cells as TERM: what a shell starts in the background ignores INT at first.
trap 'ask_to_stop TERM' TERM INT HUP
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop USR2' USR2

find_python requirements.txt || [ -n "$stop" ] || fail "no Python with the packages of" \
    "requirements.txt (${misfit:-Python 3.10 or newer}): run bash quickstart.sh once, or name one: PYTHON=/path/to/python3"
mkdir -p -- "$logs" || fail "cannot make $logs: choose another folder with SAVE_DIR"

write_report() {  # RUNS: logs of runs, and folders
    "$PYTHON" -m utils.report "$@" --out "$results/report"
}

submit() {  # what vpns.sh is to do, its arguments: the number of the job, into `job`
    job=$(sbatch --parsable --job-name="vpns-$experiment" "${options[@]}" docs/slurm/vpns.sbatch \
        env LAUNCHER="$1" "${kept[@]}" bash vpns.sh "${@:2}") || return
    job=${job%%;*}  # a cluster may follow
}

case $launcher in
    slurm)
        [ -n "$(command -v sbatch)" ] || fail "LAUNCHER=slurm needs sbatch: run it where Slurm is"
        options=(--array="1-${#cells[@]}%${JOBS:-8}" --output="$logs/slurm-%A_%a.log"
            --cpus-per-task="${CPUS:-4}")
        if [ "${slots[0]}" = cpu ]; then options+=(--gpus=0); fi
        # The jobs are those of now, whatever is edited or exported until they begin.
        kept=(NETWORK="$network" DATASET="$dataset" METHODS="$methods" SEEDS="$seeds"
            DENSITIES="$densities" EXPERIMENT="$experiment" SAVE_DIR="$save_dir"
            PYTHON="$PYTHON" GPUS="$GPUS")
        for name in DATA PRESET EPOCHS OMP_NUM_THREADS {WEIGHT,WEIGHT_VP,SCORE,SCORE_VP}_{OPTIMIZER,LR}; do
            if [ -n "${!name:-}" ]; then kept+=("$name=${!name}"); fi
        done
        export RETRIES=${RETRIES:-2}
        submit cell ${extra[@]+"${extra[@]}"} || exit 1
        for i in "${!cells[@]}"; do
            echo "queued   $network-$dataset-${cells[i]/ /-seed}: $logs/slurm-${job}_$((i + 1)).log"
        done
        array=$job
        options=(--dependency="afterany:$array" --gpus=0 --cpus-per-task=1
            --output="$logs/slurm-report.log")
        submit report || fail "the report is not queued; the cells are, as job $array"
        echo "queued   the report, job $job: $results/report"
        exit 0
        ;;
    cell)
        set_threads $(($(nproc) / ${SLURM_CPUS_PER_TASK:-$(nproc)}))
        read -r method seed <<<"${cells[$((SLURM_ARRAY_TASK_ID - 1))]}"
        build "$method" "$seed" "${slots[0]}"
        [ -z "$stop" ] || exit 75
        exec "${cell[@]}"
        ;;
    report)
        write_report "$results"
        exit
        ;;
esac
set_threads ${#slots[@]}

new_log() {  # NAME: a log that no other try writes to, into `log`
    local number=1
    log=$logs/$1.log
    # A try whose launcher was killed may still be running. With `set -C`, > takes new files only.
    until (set -C; : >"$log") 2>/dev/null || [ ! -e "$log" ]; do
        number=$((number + 1))
        log=$logs/$1.$number.log
    done
}

start() {  # METHOD SEED SLOT_INDEX
    local name=$network-$dataset-$1-seed$2 log
    new_log "$name"
    build "$1" "$2" "${slots[$3]}"
    echo "started  $name on ${slots[$3]}: $log"
    "${cell[@]}" >"$log" 2>&1 </dev/null &
    pids[$3]=$! names[$3]=$name tries[$3]=$log
    # The signal may have come while the cell was being started.
    if [ -n "$stop" ]; then ask_to_stop "$stop"; fi
}

collect() {  # Frees the slots whose cell has ended. Never blocks, so a signal cannot cut it short.
    local i running
    running=" $(jobs -pr | tr '\n' ' ')"
    for i in "${!pids[@]}"; do
        if [ -n "${pids[i]}" ] && [[ $running != *" ${pids[i]} "* ]]; then finish "$i"; fi
    done
}

reason() { grep -a '^error: ' "$1" | tail -n 1 || tail -n 1 "$1"; }  # LOG: why it failed

finish() {  # SLOT_INDEX
    local code=0 name=${names[$1]} log=${tries[$1]}
    wait "${pids[$1]}" || code=$?
    pids[$1]=""
    if [ "$code" = 0 ]; then
        echo "finished $name"
        if grep -aq '^RESULT ' "$log"; then done_logs+=("$log"); fi
    elif [ "$code" = 75 ] || { [ -n "$stop" ] && [ "$code" -gt 128 ]; }; then
        echo "stopped  $name: the same command continues it"
        exit_code=75
    else
        echo "FAILED   $name, exit code $code: $(reason "$log")" >&2
        failures+=("$name, exit code $code: $log")
        if [ "$exit_code" = 0 ]; then exit_code=$code; fi
    fi
}

busy() { [ -n "$(printf %s ${pids[@]+"${pids[@]}"})" ]; }

pause() { sleep 0.2 || true; }  # in a terminal, Ctrl-C ends the sleep too

free_slot() {  # Waits for a free slot, into `slot`; fails once a signal has come
    while [ -z "$stop" ]; do
        collect
        for slot in "${!slots[@]}"; do
            if [ -z "${pids[slot]:-}" ]; then return 0; fi
        done
        pause
    done
    return 1
}

for entry in "${cells[@]}"; do
    if ! free_slot; then
        exit_code=75
        break
    fi
    read -r method seed <<<"$entry"
    start "$method" "$seed" "$slot"
done
while busy; do
    pause
    collect
done

if [ ${#done_logs[@]} -gt 0 ]; then
    runs=("${done_logs[@]}")
    if compgen -G "$results/*/*/config.json" >/dev/null; then runs+=("$results"); fi
    echo
    code=0
    write_report "${runs[@]}" || code=$?
    exit_code=$((exit_code ? exit_code : code))
fi
for failure in ${failures[@]+"${failures[@]}"}; do echo "failed: $failure" >&2; done
exit "$exit_code"
