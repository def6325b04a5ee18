#!/usr/bin/env bash
# Which change of the recipe helps? VPNs at 95 % from EfficientNet-Lite0 with ImageNet weights
# (lite0.sh), one change at a time and then those that helped together, on 80 images a class of CIFAR-10;
# what did not lose there also on 50 a class of the digits. Measured on *other training images*: nothing
# here has seen a test image. The reports, whose accuracies are therefore of validation images, go to
# docs/results/recipes. About forty minutes on two cores.
#   DATA=/folder/of/train/and/test bash docs/results/recipes.sh
set -euo pipefail
. "$(dirname -- "$0")/cells.sh"
. docs/results/lite0.sh
seeds=${SEEDS:-7 9}
base="$common --density_list 0.05"
cifar10=$(pictures cifar10-validation 800 1000 --data "${DATA:-dataset/cifar10}" --validation)
digits=$(pictures digits-validation 500 500 --dataset digits --validation)

for task in cifar10 digits; do
    common="--experiment_name recipes-$task $base ${!task}"
    queue vpns 2 "$seeds"
    queue vpns 2 "$seeds" --pad_size 0
    queue vpns 2 "$seeds" --from_dense
    queue vpns 2 "$seeds" --distill
    queue vpns 2 "$seeds" --distill --distill_share 0.9
    queue vpns 2 "$seeds" --from_dense --distill
    queue vpns 2 "$seeds" --from_dense --distill --distill_share 0.9
    [ "$task" = cifar10 ] || continue
    queue vpns 2 "$seeds" --density_schedule cubic
    queue vpns 2 "$seeds" --label_smoothing 0.1
    queue vpns 2 "$seeds" --warmup_epochs 1 --schedule_by step
    queue vpns 2 "$seeds" --schedule_by step
    queue vpns 2 "$seeds" --ema 0.95
done
run_queue
for task in cifar10 digits; do
    "$PYTHON" -m utils.report "$save_dir/recipes-$task" --out "docs/results/recipes/$task"
    sed -i '1a\\n**Here "test images" are other training images: nothing in these runs has seen the test set.**' \
        "docs/results/recipes/$task/report.md"
done
