#!/usr/bin/env bash
# Where does a prompt help? VPNs against its control without a trainable pixel, paired over the seeds,
# at 90 %, from EfficientNet-Lite0 with ImageNet weights (lite0.sh): on 10 and on 50 images a class of
# CIFAR-10; on 50 a class of Fashion-MNIST, which is far from ImageNet; and on 50 a class of CIFAR-10
# whose pictures are smaller than the canvas, so that the frame lies around them and not over them. The
# reports go to docs/results/prompt. About half an hour on two cores.
#   DATA=/folder/of/train/and/test FASHION=/folder/of/ubyte.gz bash docs/results/prompt.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
. docs/results/lite0.sh
seeds=${SEEDS:-7 9 17}
cifar=${DATA:-dataset/cifar10}
base="$common --density_list 0.1"

compare() { # REGIME EPOCHS FLAGS: VPNs, then its control
    common="--experiment_name prompt-$1 $base"
    queue vpns "$2" "$seeds" "${@:3}"
    queue vpns "$2" "$seeds" "${@:3}" --pad_size 0
}

ten=$(pictures ten 100 1000 --data "$cifar")
fifty=$(pictures fifty 500 1000 --data "$cifar")
fashion=$(pictures fashion 500 1000 --dataset fashion_mnist --data "${FASHION:-dataset}")
compare ten 8 "$ten" --batch_size 10
compare fifty 3 "$fifty"
compare fashion 3 "$fashion"
seeds="$seeds 21 33 42" # three left it open
compare around 3 "$fifty" --input_size 32 --pad_size 8
run_queue
for regime in ten fifty fashion around; do
    "$PYTHON" -m utils.report "$save_dir/prompt-$regime" --out "docs/results/prompt/$regime" \
        --reference "vpns, pad 0" --accuracy prompted
done
