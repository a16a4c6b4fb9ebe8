#!/usr/bin/env bash
# Training on several machines, without Slurm too: the same line on each, with a folder that all of them see.
#     HEAD=FIRST_MACHINE MACHINES=2 bash configuration/slurm/machine.sh examples/configs/mdm_1b_8xh100.yaml --output_dir /shared/runs/mdm-1b
# GPUS: of each machine (8). PORT: on the first (29500). RESTARTS: how often a lost process or machine is forgiven (3).
# WAIT: seconds that the others wait for a machine to come back, by the same line (1800). RUN: a name of the run (mdm).
# What is lost takes all processes down; those that are there begin again from the last checkpoint.
set -euo pipefail
: "${HEAD:?say which machine is the first}" "${MACHINES:?say how many machines there are}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$MACHINES" --nproc_per_node "${GPUS:-8}" --max_restarts "${RESTARTS:-3}" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}" --rdzv_id "${RUN:-mdm}" \
    --rdzv_conf "join_timeout=${WAIT:-1800}" \
    "$(dirname "$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")")/examples/train.py" \
    "$@" --resume_from_checkpoint last
