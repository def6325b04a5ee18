#!/usr/bin/env bash
# A Slurm of two nodes on this one machine, for tests; root, slurm-wlm and munge are needed.
#
#   bash tests/one_machine_slurm.sh start FOLDER    ends with the line to export
#   bash tests/one_machine_slurm.sh stop FOLDER
#
# Configuration, key, logs, process numbers and state lie in FOLDER. Each node has all cores, and two
# GPUs in name.
set -euo pipefail
verb=${1:?start or stop}
mkdir -p "${2:?a folder}"
folder=$(cd "$2" && pwd)

if [ "$verb" = stop ]; then
    for name in node2 node1 controller munged; do
        if [ -s "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" || true; fi
    done 2>/dev/null
    exit 0
fi

mkdir -p "$folder/state"
chmod 755 "$folder"
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
touch "$folder/gpu0" "$folder/gpu1"
printf 'NodeName=node[1-2] Name=gpu File=%s/gpu[0-1]\n' "$folder" >"$folder/gres.conf"
host=$(hostname -s)
{
    echo "ClusterName=onemachine"
    echo "SlurmctldHost=$host(127.0.0.1)"
    echo "SlurmUser=root"
    echo "SlurmdUser=root"
    echo "SlurmctldPort=16917"
    echo "AuthType=auth/munge"
    echo "AuthInfo=socket=$folder/munge.sock"
    echo "CredType=cred/munge"
    echo "ProctrackType=proctrack/linuxproc"
    echo "TaskPlugin=task/none"
    echo "SelectType=select/cons_tres"
    echo "SelectTypeParameters=CR_CPU"
    echo "GresTypes=gpu"
    echo "MpiDefault=none"
    echo "ReturnToService=2"
    echo "SlurmctldPidFile=$folder/controller.pid"
    echo "SlurmdPidFile=$folder/%n.pid"
    echo "SlurmdSpoolDir=$folder/spool_%n"
    echo "StateSaveLocation=$folder/state"
    echo "SlurmctldLogFile=$folder/controller.log"
    echo "SlurmdLogFile=$folder/%n.log"
    echo "JobCompType=jobcomp/none"
    echo "AccountingStorageType=accounting_storage/none"
    echo "JobRequeue=1"
    echo "KillWait=5"
    echo "SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=1000"
    for number in 1 2; do
        echo "NodeName=node$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17103 + number))" \
            "CPUs=$(nproc) Gres=gpu:2 State=UNKNOWN"
    done
    echo "PartitionName=debug Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP"
} >"$folder/slurm.conf"

munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
export SLURM_CONF=$folder/slurm.conf
slurmctld
for number in 1 2; do slurmd -N "node$number"; done
for _ in $(seq 100); do
    if [ "$(sinfo -h -o '%T %D' 2>/dev/null)" = "idle 2" ]; then
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.2
done
tail -n 5 "$folder"/*.log >&2
exit 1
