#!/usr/bin/env bash
# A job on SLURM: a Ray cluster for its time, one worker per GPU, ended with it.
#   sbatch jobs/clusters/slurm.sh jobs/5deg.yaml [--set key=value …]          from the project's root, after `make setup`
# The storage must be reachable from all nodes: s3://… with AWS_* in the environment, or a folder of a shared file system.
# SLURM signals preemption or the time limit 120 s ahead: the run writes a checkpoint, is queued again and resumes.
#SBATCH --job-name=mirage
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch jobs/clusters/slurm.sh JOB.yaml [--set key=value ...]" >&2; exit 2; }
[ -x .venv/bin/ray ] || { echo "slurm.sh: no .venv here. Submit from the project's root, after: make setup" >&2; exit 2; }
export PATH=$PWD/.venv/bin:$PATH

# Other users have accounts on these nodes: the cluster, including its job port, answers only with a token.
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.mirage/slurm-$SLURM_JOB_ID.token
mkdir -p .mirage
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d' ' -f1)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a head node over time, and must not meet
resources="--num-cpus=$SLURM_CPUS_PER_TASK --num-gpus=${SLURM_GPUS_ON_NODE:-0}"

# shellcheck disable=SC2086  # several words on purpose
srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 $resources --block &
for _ in $(seq 60); do ray status --address="$address:$port" >/dev/null 2>&1 && break; sleep 2; done
if [ "$SLURM_NNODES" -gt 1 ]; then
    others=$((SLURM_NNODES - 1))
    # shellcheck disable=SC2086
    srun --nodes=$others --ntasks=$others --cpus-per-task="$SLURM_CPUS_PER_TASK" --exclude="$head" \
        ray start --address="$address:$port" $resources --block &
fi

# The job itself runs here, on the head node, as `ray job submit` would run it there.
export RAY_ADDRESS=$address:$port
python -m orchestrator run "$@" &
job=$!
again=
trap 'again=1; kill -TERM $job' TERM # a checkpoint at the next step
status=0
wait $job || status=$?
if [ -n "$again" ]; then # the trap ended the first wait
    wait $job || status=$?
    rm -f "$RAY_AUTH_TOKEN_PATH"
    scontrol requeue "$SLURM_JOB_ID"
    exit "$status"
fi
rm -f "$RAY_AUTH_TOKEN_PATH"
exit "$status"
