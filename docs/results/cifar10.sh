#!/usr/bin/env bash
# All methods from EfficientNet-Lite0 with ImageNet weights on CIFAR-10 at 48 pixels (lite0.sh): 800
# training images, a fixed stratified choice, the first 100 test images of each class, 8 passes over the
# training set for each level (LTH more: each of its rounds trains, and a level goes on from the one
# before). The report goes to docs/results/cifar10. About an hour on two cores.
#   DATA=/folder/of/train/and/test bash docs/results/cifar10.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
. docs/results/lite0.sh
seeds=${SEEDS:-7 9}
first=${seeds%% *}
flags=$(pictures cifar10 800 1000 --data "${DATA:-dataset/cifar10}")
common="--experiment_name cifar10 $flags $common --density_list 0.2,0.1,0.05"

for seed in $seeds; do
    queue dense 8 "$seed"
    queue vpns 2 "$seed"
    queue vpns 2 "$seed" --pad_size 0
    queue hydra 4 "$seed"
    queue bip 4 "$seed"
    queue omp 4 "$seed"
    queue gmp 4 "$seed"
    queue acdc 4 "$seed"
    queue rigl 4 "$seed"
    queue snip 8 "$seed"
    queue synflow 8 "$seed"
    queue random 8 "$seed"
    [ "$seed" != "$first" ] || queue lth 4 "$seed"
done
run_queue
"$PYTHON" -m utils.report "$save_dir/cifar10" --out docs/results/cifar10
