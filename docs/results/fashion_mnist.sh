#!/usr/bin/env bash
# VPNs, its control without a trainable pixel, HYDRA, OMP, random masks and the dense network on 6,000
# training images of Fashion-MNIST (a fixed stratified choice) and all 10,000 test images, from the
# shipped ResNet-20, which was trained on the whole training set: 8 passes for each level, OMP twice. The
# report goes to docs/results/fashion_mnist. About half an hour on two cores.
#   DATA=/folder/of/ubyte.gz bash docs/results/fashion_mnist.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
save_dir=${SAVE_DIR:-result}
common="--experiment_name fashion --save_dir $save_dir --dataset fashion_mnist --network resnet20"
common+=" --data ${DATA:-dataset} --train_images 6000 --batch_size 64 --eval_every 0"
common+=" --density_list 0.1,0.05,0.02 --score_lr 0.01 --score_vp_lr 0.01"
seeds=${SEEDS:-7 9 17}

queue dense 8 "$seeds"
queue vpns 2 "$seeds"
queue vpns 2 "$seeds" --pad_size 0
queue hydra 4 "$seeds"
queue omp 8 "$seeds"
queue random 8 "$seeds"
run_queue
"$PYTHON" -m utils.report "$save_dir/fashion" --out docs/results/fashion_mnist
