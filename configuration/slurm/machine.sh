#!/usr/bin/env bash
# Training that begins again where a process or a machine is lost: on one machine, or the same line on each of several,
# with a folder of the run that all of them see.
#     bash configuration/slurm/machine.sh examples/configs/mdm_1b_8xh100.yaml
#     HEAD=FIRST_MACHINE MACHINES=2 bash configuration/slurm/machine.sh examples/configs/mdm_1b_8xh100.yaml --output_dir /shared/runs/mdm-1b
# GPUS: of each machine (8). PORT: on the first (29500). RESTARTS: how often a loss is forgiven (3).
# WAIT: seconds that the others wait for a machine to come back, by the same line (1800). RUN: a name of the run (mdm).
# What is lost takes all processes down; those that are there begin again from the last checkpoint.
set -euo pipefail
MACHINES="${MACHINES:-1}"
[ "$MACHINES" = 1 ] && HEAD="${HEAD:-localhost}"
: "${HEAD:?say which of the $MACHINES machines is the first}"
# Otherwise torch's launcher keeps one store for all attempts, and processes of the second wait for those of the first.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$MACHINES" --nproc_per_node "${GPUS:-8}" --max_restarts "${RESTARTS:-3}" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}" --rdzv_id "${RUN:-mdm}" \
    --rdzv_conf "join_timeout=${WAIT:-1800}" \
    "$(dirname "$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")")/examples/train.py" \
    "$@" --resume_from_checkpoint last
