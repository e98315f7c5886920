#!/bin/bash
# A run on several machines under SLURM:  sbatch runs/slurm.sh runs/base.yaml folder=/shared/base
# Everything it reads and writes must lie where all machines see it. Mend the lines below to fit the cluster.
#SBATCH --job-name=modernbert
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Not through `head`: with pipefail, a scontrol cut off while it writes would end the job.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}

# How long torchrun lets the processes save after SIGTERM, in seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-150}

# One torchrun a machine, one process a GPU; a process that dies restarts them all from the last checkpoint.
srun torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-gpu}" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$first:${MASTER_PORT:-29500}" \
  --max-restarts 10 \
  -m modernbert pretrain "$@"
