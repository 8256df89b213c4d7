#!/usr/bin/env bash
# Starts a run on every worker of a TPU pod slice, or starts it again after a preemption.
#
#   TPU=my-pod ZONE=us-central2-b WORKDIR=/mnt/runs/imagenet DATA=/mnt/data \
#     bash scripts/tpu_pod.sh --config=configs/imagenet_saol.py
#
# Data:    DATA must be there on every worker: a disk attached read-only to all, or a local copy. Each
#          worker reads its own part of every batch, at random places.
# Workdir: the same place for all workers, since each writes its part of a checkpoint and all read it:
#          a mounted Filestore or gcsfuse folder. Logs and pictures are written by worker 0 alone.
# Code:    the repository with its .venv (`make venv` and `.venv/bin/pip install "jax[tpu]"`) lies in
#          REPO on every worker. The processes find each other by themselves.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${WORKDIR:?folder of the run}" "${DATA:?folder of the data}"
REPO=${REPO:-saol_jax}
arguments=$(printf ' %q' "$@" "--workdir=$WORKDIR" "--config.data.data_dir=$DATA")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd $(printf %q "$REPO") && .venv/bin/python main.py$arguments"
