#!/usr/bin/env bash
# Whole channels on scikit-learn's digits, from the shipped ResNet-20: 50 and 70 % fewer, beside the
# networks of torch-pruning (pip install torch-pruning) with as many multiply-adds, fine-tuned like the
# dense one; 20 passes over the training set for each (OMP 40). Then the networks of the first seed
# without their dead channels. About forty minutes on two cores.
#   SEEDS="7 9 17" bash docs/results/channels.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
save_dir=${SAVE_DIR:-result}
seeds=${SEEDS:-7 9 17}
first=${seeds%% *}
runs=$save_dir/channels
base="--experiment_name channels --save_dir $save_dir --dataset digits --network resnet20 --eval_every 0"
common="$base --density_list 0.5,0.3 --granularity channel --score_lr 0.03 --score_vp_lr 0.01"

queue vpns 5 "$seeds"
queue vpns 5 "$seeds" --pad_size 0
queue hydra 10 "$seeds"
queue omp 20 "$seeds"
queue random 20 "$seeds"
common=$base
queue dense 20 "$seeds"
run_queue

cells=()
for density in 0.5 0.3; do
    macs=$(awk -F, -v d=$density '$5 == d {print $14}' "$runs"/resnet20-digits-vpns/seed"$first"-*/results.csv)
    for importance in magnitude group; do
        file=$runs/$importance-$density.safetensors
        "$PYTHON" benchmarks/channel_norms.py --macs "$macs" --importance $importance --to "$file"
        queue dense 20 "$seeds" --weights "$file"
    done
done
run_queue
"$PYTHON" -m utils.report "$runs" --out docs/results/channels

unset OMP_NUM_THREADS
for model in "$runs"/resnet20-digits-*/seed"$first"-*/d*/model.safetensors; do
    name=${model#"$runs"/resnet20-digits-}
    "$PYTHON" main_vpns.py --device cpu --compact "$model" --to "$runs/compact/${name%/model.safetensors}"
done
