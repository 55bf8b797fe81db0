#!/usr/bin/env bash
# End what tests/slurm/start.sh FOLDER started: its jobs, Slurm, munge.
set -uo pipefail

folder=$(realpath "${1:?"usage: $0 FOLDER"}")
scancel --user="$(id -un)"
for _ in $(seq 100); do
  [ -z "$(squeue --noheader --states=RUNNING,COMPLETING)" ] && break
  sleep 0.2
done
for service in slurmd slurmctld munged; do
  [ -f "$folder/$service.pid" ] && kill "$(cat "$folder/$service.pid")"
done
[ "$(readlink /etc/slurm/slurm.conf)" = "$folder/slurm.conf" ] && rm /etc/slurm/slurm.conf
exit 0
