#!/usr/bin/env bash
# Does it pay to train the dense network first? `--from_dense` at 95 %, and VPNs, HYDRA and GMP, from
# EfficientNet-Lite0 with ImageNet weights (lite0.sh): 800 images of CIFAR-10 and 500 of the digits,
# measured on test images. Each method has 8 passes over the training set; the dense network has 8 more,
# so that VPNs and GMP stand there with 16 as well. GMP at 94.25 % has as many weights that count as the
# others at 95 %: of what it keeps an eighth lies in rows of the head that no class reads. The reports
# go to docs/results/from_dense. About an hour on two cores.
#   DATA=/folder/of/train/and/test bash docs/results/from_dense.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
. docs/results/lite0.sh
seeds=${SEEDS:-7 9 17}
base="$common --density_list 0.05"
cifar10=$(pictures cifar10 800 1000 --data "${DATA:-dataset/cifar10}")
digits=$(pictures digits 500 360 --dataset digits)

for task in cifar10 digits; do
    common="--experiment_name from_dense-$task $base ${!task}"
    queue vpns 2 "$seeds" --from_dense
    queue vpns 2 "$seeds"
    queue hydra 4 "$seeds"
    queue gmp 4 "$seeds"
    queue vpns 4 "$seeds"
    queue gmp 8 "$seeds"
    queue hydra 4 "$seeds" --from_dense
    queue gmp 4 "$seeds" --from_dense
    queue gmp 4 "$seeds" --density_list 0.0575
    queue gmp 8 "$seeds" --density_list 0.0575
done
run_queue
for task in cifar10 digits; do
    "$PYTHON" -m utils.report "$save_dir/from_dense-$task" --out "docs/results/from_dense/$task" \
        --reference "vpns, epochs 2, from the dense network"
done
