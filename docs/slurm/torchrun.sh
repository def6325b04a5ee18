#!/usr/bin/env bash
# One task of `srun` on each machine of a Slurm job: torchrun with a process for each GPU of the
# machine (PROCESSES: so many instead), which meet on the first machine of the job.
#
#   srun docs/slurm/torchrun.sh main_vpns.py --network resnet50 --dataset imagenet
set -eu
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
exec "${PYTHON:-python3}" -m torch.distributed.run \
    --nnodes="$SLURM_NNODES" --node_rank="$SLURM_NODEID" \
    --nproc_per_node="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" \
    --master_addr="$address" --master_port=$((20000 + SLURM_JOB_ID % 20000)) "$@"
