#!/usr/bin/env bash
# VPNs in a few minutes on two CPU cores, nothing to download but the Python packages: the shipped
# ResNet-20 (trained on Fashion-MNIST) is fine-tuned on scikit-learn's 8x8 digits at 16x16, once
# dense and once pruned by VPNs at each sparsity below; ends with a table and a picture.
#
#   bash quickstart.sh                   # arguments go to both runs: bash quickstart.sh --epochs 1
#   SAVE_DIR=/tmp/out bash quickstart.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

densities=1,0.2,0.1,0.05,0.02            # 80, 90, 95 and 98 % sparsity
flags=(--epochs 5 --score_lr 0.01 --score_vp_lr 0.01)
save_dir=${SAVE_DIR:-result}

CDPATH='' cd -- "$(dirname -- "$0")"
. ./utils/python_env.sh
python_env requirements.txt
log=$(mktemp)
trap 'rm -f -- "$log"' EXIT

# The RESULT lines are for programs. Ctrl-C must not cut the pipe under a run that is still saving.
show() { (trap '' INT && tee -- "$log" | { grep --line-buffered -v '^RESULT ' || true; }); }

run() {  # METHOD DENSITIES [FLAGS OF THE USER]: one run, its output also in $log
    local method=$1 list=$2
    shift 2
    PYTHONUNBUFFERED=1 "$PYTHON" main_vpns.py --experiment_name quickstart --dataset digits \
        --network resnet20 --prune_method "$method" --density_list "$list" --seed 7 \
        --save_dir "$save_dir" "${flags[@]}" "$@" | show
}

also=", with as many passes over the data as each level of VPNs"
[ $# = 0 ] || also=  # flags of the user may say otherwise
echo "1/2 The dense network$also"
run dense 1 --epochs 20 "$@"
echo "2/2 VPNs at four sparsities"
run vpns "$densities" "$@"

# --help and --dry_run train nothing, so there is nothing to show.
grep -q '^RESULT ' "$log" || exit 0
echo
"$PYTHON" -m utils.report table "$log"
cat <<NEXT

How to go on (RUN is the run's folder above):
  $PYTHON main_vpns.py --evaluate RUN/d0.1/model.safetensors    test a pruned network
  $PYTHON -m tensorboard.main --logdir "$save_dir"              curves and the prompt, live
  $PYTHON main_vpns.py --help                                   every flag
  DRY_RUN=1 bash vpns_resnet18_cifar100.sh                      the paper's experiment (GPU)
  README.md                                                     your own images and networks
  $PYTHON main_vpns.py --predict PICTURES --model RUN/d0.1/model.safetensors    what it sees
NEXT
