#!/usr/bin/env bash
# Start Slurm on this machine alone: munge, the controller and one node of two CPUs, over loopback.
#
#   tests/slurm/start.sh FOLDER   what it writes lies in FOLDER, a new one, to which /etc/slurm/slurm.conf points
#   tests/slurm/stop.sh FOLDER    ends it
#
# It installs nothing (apt-get install slurm-wlm munge) and has to be run by root, as whom its jobs run. The link is
# needed: the steps of a job that Snakemake starts do not see SLURM_CONF.
set -euo pipefail

folder=$(realpath -m "${1:?"usage: $0 FOLDER"}")
name=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
export PATH="$PATH:/usr/sbin:/sbin"
for program in munged slurmctld slurmd; do
  command -v "$program" >/dev/null || { echo "$program is not there: apt-get install slurm-wlm munge" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "$0 has to be run by root" >&2; exit 1; }
# A link whose controller does not answer was left by a run that was killed.
if [ -e /etc/slurm/slurm.conf ] && { [ ! -L /etc/slurm/slurm.conf ] || timeout 20 sinfo >/dev/null 2>&1; }; then
  echo "there is a Slurm here already: /etc/slurm/slurm.conf" >&2
  exit 1
fi
mkdir "$folder"
mkdir "$folder/state" "$folder/spool"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

cat >"$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=86400
NodeName=$name NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
ln -sfn "$folder/slurm.conf" /etc/slurm/slurm.conf
slurmctld
slurmd
for _ in $(seq 100); do
  [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && exit 0
  sleep 0.2
done
echo "the node did not come up; its logs are in $folder" >&2
exit 1
