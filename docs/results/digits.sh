#!/usr/bin/env bash
# All ten methods and the control (VPNs without a trainable pixel) on scikit-learn's digits, from the
# shipped ResNet-20: 20 passes over the training set for each level (LTH for each round, OMP twice), the
# paper's proportions. The report goes to docs/results/digits. About half an hour on two cores.
#   SEEDS="7 9 17" bash docs/results/digits.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
save_dir=${SAVE_DIR:-result}
common="--experiment_name digits --save_dir $save_dir --dataset digits --network resnet20 --eval_every 0"
common+=" --density_list 0.1,0.05,0.02,0.01 --score_lr 0.01 --score_vp_lr 0.01"
seeds=${SEEDS:-7 9 17}

queue dense 20 "$seeds"
queue vpns 5 "$seeds"
queue vpns 5 "$seeds" --pad_size 0
queue hydra 10 "$seeds"
queue bip 10 "$seeds"
queue omp 20 "$seeds"
for method in random snip grasp synflow; do queue $method 20 "$seeds"; done
queue lth 20 7
run_queue
"$PYTHON" -m utils.report "$save_dir/digits" --out docs/results/digits
