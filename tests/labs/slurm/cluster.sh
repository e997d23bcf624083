#!/usr/bin/env bash
# One real Slurm on one machine, without systemd: munged, slurmctld, some slurmd and an sshd to log in through;
# with accounting also slurmdbd and a MariaDB of its own. Also run inside the Debian 13 chroot of slurm24.
#   cluster.sh start NAME PREFIX SSH_PORT BASE_PORT yes|no    (yes: with accounting)
#   cluster.sh stop NAME
#   cluster.sh munge NAME                                     (starts its munged again)
# Everything is kept in $LAB/NAME. Daemons are known by their pid files there and by nothing else.
set -euo pipefail
: "${LAB:?the folder of the lab}"
verb=$1 name=$2
dir=$LAB/$name
user=tglab ops=tgops
nodes=4

say() { echo "slurm lab: $*" >&2; }
fail() { say "$*"; exit 1; }

running() { # pidfile word: does the process of that pid file run, and is it what it should be?
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q -- "$2"
}

until_ok() { # seconds what command...
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $limit ] || fail "$what did not get ready; its log is in $dir/log"
    sleep 0.1
  done
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

make_users() {
  local who home
  mkdir -p "$LAB/keys" "$LAB/home"
  chmod 755 "$LAB" "$LAB/home"
  for who in $user $ops; do
    home=$LAB/home/$who
    # '*' and not '!' as the password: an sshd without PAM takes '!' for a locked account.
    getent passwd $who >/dev/null || useradd -M -d "$home" -s /bin/bash -p '*' $who
    usermod -d "$home" $who 2>/dev/null || true
    mkdir -p "$home/.ssh"
    [ -f "$LAB/keys/$who" ] || ssh-keygen -q -t ed25519 -N '' -C $who -f "$LAB/keys/$who"
    cp "$LAB/keys/$who.pub" "$home/.ssh/authorized_keys"
    chown -R $who: "$home"
    chmod 700 "$home/.ssh"
  done
}

start_munge() {
  running "$dir/run/munged.pid" munged && return
  [ -f "$dir/munge/key" ] || head -c 128 /dev/urandom >"$dir/munge/key"
  chmod 400 "$dir/munge/key"
  chown -R munge: "$dir/munge"
  runuser -u munge -- munged --key-file="$dir/munge/key" --socket="$dir/munge/socket" --num-threads=4 \
    --pid-file="$dir/munge/munged.pid" --log-file="$dir/munge/munged.log" --seed-file="$dir/munge/seed"
  until_ok 30 munged test -S "$dir/munge/socket"
  ln -sf "$dir/munge/munged.pid" "$dir/run/munged.pid"
}

memory_limits() { # cgroup: real OUT_OF_MEMORY. accounting: Slurm's own watch, which says FAILED 0:9. Both at once is fatal.
  if [ -w /sys/fs/cgroup/memory/cgroup.procs ] && [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ]; then
    echo cgroup
  else
    echo accounting
  fi
}

write_conf() { # prefix base-port accounting
  local prefix=$1 base=$2 accounting=$3 slurm_user=root store task
  if [ "$accounting" = yes ]; then
    store="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((base + 1))
AccountingStoragePass=$dir/munge/socket
AccountingStoreFlags=job_comment,job_script,job_env"
  else
    # Without accounting there are no admin levels: only SlurmUser may drain.
    slurm_user=$ops store="AccountingStorageType=accounting_storage/none"
  fi
  oom=$(memory_limits)
  if [ "$oom" = cgroup ]; then task="TaskPlugin=task/cgroup"; else task="TaskPlugin=task/none
JobAcctGatherParams=OverMemoryKill"; fi
  cat >"$dir/etc/slurm.conf" <<C
ClusterName=$name
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$slurm_user
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits cred_expire + 1 s; Slurm's default is 120.
AuthInfo=socket=$dir/munge/socket,cred_expire=8
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
$task
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=1,batch_sched_delay=1
MaxArraySize=2001
MaxJobCount=20000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
DefMemPerCPU=100
JobRequeue=1
RequeueExitHold=98
SlurmctldTimeout=10
# Two loaded cores: a slurmd that is only slow must not be taken for dead.
SlurmdTimeout=25
KillWait=2
MinJobAge=${MIN_JOB_AGE:-25}
InactiveLimit=0
Waittime=0
CompleteWait=0
ReturnToService=1
PropagateResourceLimits=NONE
Prolog=$dir/etc/fault.sh
Epilog=$dir/etc/fault.sh
PrologFlags=Alloc
$store
NodeName=$prefix[1-$nodes] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((base + 11))-$((base + 10 + nodes))] CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=short Nodes=ALL MaxTime=5 DefaultTime=1 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=lowcancel Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=CANCEL GraceTime=0 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=100 PreemptMode=OFF State=UP
C
  cat >"$dir/etc/cgroup.conf" <<C
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=$([ "$oom" = cgroup ] && echo yes || echo no)
ConstrainSwapSpace=no
ConstrainCores=no
ConstrainDevices=no
MinRAMSpace=10
C
  # Faults on order: a file faults/prolog-fail.<node> makes that node's prolog fail, faults/epilog-sleep.<node>
  # holds how many seconds its epilog takes, and so on.
  cat >"$dir/etc/fault.sh" <<C
#!/bin/sh
case "\$SLURM_SCRIPT_CONTEXT" in prolog_slurmd) at=prolog ;; epilog_slurmd) at=epilog ;; *) exit 0 ;; esac
slow=$dir/faults/\$at-sleep.\$SLURMD_NODENAME
[ -e "\$slow" ] && sleep "\$(cat "\$slow")"
[ -e "$dir/faults/\$at-fail.\$SLURMD_NODENAME" ] && exit 1
exit 0
C
  chmod 755 "$dir/etc/fault.sh"
  chown -R $slurm_user "$dir/state"
  touch "$dir/log/slurmctld.log"
  chown $slurm_user "$dir/log/slurmctld.log"
}

start_accounting() { # base-port
  local dbd=$(($1 + 1)) db=$(($1 + 2))
  if ! running "$dir/run/mariadb.pid" mariadbd; then
    getent passwd mysql >/dev/null || useradd -r -M -s /usr/sbin/nologin mysql
    mkdir -p "$dir/db/data"
    chown -R mysql: "$dir/db"
    [ -d "$dir/db/data/mysql" ] || mariadb-install-db --no-defaults --force --user=mysql --datadir="$dir/db/data" \
      --skip-test-db --auth-root-authentication-method=normal >"$dir/log/mariadb-install.log" 2>&1
    setsid mariadbd --no-defaults --user=mysql --datadir="$dir/db/data" --socket="$dir/db/s" --port=$db \
      --bind-address=127.0.0.1 --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --performance-schema=OFF \
      --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --skip-log-bin \
      </dev/null >"$dir/log/mariadb.log" 2>&1 &
    echo $! >"$dir/run/mariadb.pid"
    until_ok 120 MariaDB mariadb --no-defaults -uroot -S "$dir/db/s" -e 'select 1'
    mariadb --no-defaults -uroot -S "$dir/db/s" -e "create database if not exists slurm_acct_db;
      create user if not exists slurm@'127.0.0.1' identified by 'lab'; create user if not exists slurm@localhost identified by 'lab';
      grant all on slurm_acct_db.* to slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@localhost"
  fi
  if ! running "$dir/run/slurmdbd.pid" slurmdbd; then
    (umask 077 && cat >"$dir/etc/slurmdbd.conf" <<C
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$dbd
SlurmUser=root
PidFile=$dir/run/slurmdbd.pid
LogFile=$dir/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$db
StorageUser=slurm
StoragePass=lab
StorageLoc=slurm_acct_db
CommitDelay=1
C
    )
    slurmdbd
    until_ok 120 slurmdbd listens $dbd
  fi
  until_ok 60 sacctmgr sacctmgr -n list cluster
  if [ -z "$(sacctmgr -nP list user $ops format=user)" ]; then # before slurmctld starts, so that it finds its cluster
    sacctmgr -i add cluster "$name" >/dev/null
    sacctmgr -i add account lab Cluster="$name" >/dev/null
    sacctmgr -i add user $user account=lab >/dev/null
    sacctmgr -i add user $ops account=lab adminlevel=Administrator >/dev/null
  fi
}

start_slurm() { # prefix
  local i prefix=$1
  if ! running "$dir/run/slurmctld.pid" slurmctld; then
    slurmctld
    until_ok 90 slurmctld sh -c 'scontrol ping | grep -q UP'
  fi
  for i in $(seq 1 $nodes); do
    running "$dir/run/slurmd-$prefix$i.pid" slurmd || { mkdir -p "$dir/spool/$prefix$i" && slurmd -N "$prefix$i"; }
  done
  until_ok 150 nodes sh -c "[ \$(sinfo -h -N -p main -o %T | grep -cxE 'idle|mixed|allocated') -ge $nodes ]"
}

start_sshd() { # port
  local kind
  running "$dir/run/sshd.pid" sshd && return
  for kind in ed25519 rsa; do
    [ -f "$dir/sshd/$kind" ] || ssh-keygen -q -t $kind -N '' -f "$dir/sshd/$kind"
  done
  mkdir -p /run/sshd
  cat >"$dir/sshd/config" <<C
Port $1
ListenAddress 127.0.0.1
HostKey $dir/sshd/ed25519
HostKey $dir/sshd/rsa
PidFile $dir/run/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
AllowUsers $user $ops
SetEnv SLURM_CONF=$dir/etc/slurm.conf
UseDNS no
MaxSessions 10
MaxStartups 100:30:200
Subsystem sftp internal-sftp
C
  /usr/sbin/sshd -f "$dir/sshd/config" -E "$dir/log/sshd.log"
  until_ok 30 sshd listens "$1"
}

write_facts() { # prefix ssh-port base-port accounting
  local kind
  for kind in ed25519 rsa; do
    awk -v host="[127.0.0.1]:$2" '{print host, $1, $2}' "$dir/sshd/$kind.pub"
  done >"$dir/known_hosts"
  cat >"$dir/facts.env" <<C
NAME=$name
HOST=127.0.0.1
PORT=$2
USER_NAME=$user
USER_KEY=$LAB/keys/$user
OPS_NAME=$ops
OPS_KEY=$LAB/keys/$ops
KNOWN_HOSTS=$dir/known_hosts
CONF=$dir/etc/slurm.conf
DIR=$dir
PREFIX=$1
NODES=$nodes
ACCOUNTING=$4
OOM=$(memory_limits)
C
}

start() { # prefix ssh-port base-port accounting
  mkdir -p "$dir"/{etc,run,log,state,spool,munge,sshd,db,faults}
  chmod 755 "$dir" "$dir"/{etc,run,log,spool,munge}
  export SLURM_CONF=$dir/etc/slurm.conf
  make_users
  start_munge
  write_conf "$1" "$3" "$4"
  [ "$4" = no ] || start_accounting "$3"
  start_slurm "$1"
  # What tests of an earlier run left, where it was interrupted and its lab is used again.
  rm -f "$dir"/faults/*
  scancel -u $user >/dev/null 2>&1 || true
  start_sshd "$2"
  write_facts "$@"
  say "$name is up (ssh port $2, accounting: $4)"
}

end() { # pidfile word seconds
  local pid i
  running "$1" "$2" || { rm -f "$1"; return 0; }
  pid=$(cat "$1")
  kill -CONT "$pid" 2>/dev/null || true
  kill "$pid" 2>/dev/null || true
  for i in $(seq 1 $(($3 * 10))); do
    if [ ! -d "/proc/$pid" ] || grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; then break; fi
    [ "$i" -lt $(($3 * 10)) ] || kill -KILL "$pid" 2>/dev/null || true
    sleep 0.1
  done
  rm -f "$1"
}

stop() {
  [ -f "$dir/etc/slurm.conf" ] || return 0
  export SLURM_CONF=$dir/etc/slurm.conf
  local pid step steps ids prefix
  end "$dir/run/sshd.pid" sshd 5
  ids=$(timeout 5 squeue -h -o %A 2>/dev/null | sort -u || true)
  [ -z "$ids" ] || { echo "$ids" | xargs -r -n 200 timeout 10 scancel --full -s KILL >/dev/null 2>&1 || true
    echo "$ids" | xargs -r -n 200 timeout 10 scancel >/dev/null 2>&1 || true; sleep 1; }
  # A slurmstepd outlives its slurmd; it is ours where it holds a socket in our spool folder.
  steps=$(ss -xlpH 2>/dev/null | grep -F "$dir/spool/" | grep -oE 'pid=[0-9]+' | cut -d= -f2 | sort -u || true)
  for pid in "$dir"/run/slurmd-*.pid; do [ ! -e "$pid" ] || end "$pid" slurmd 5; done
  for step in $steps; do
    if grep -q slurmstepd "/proc/$step/cmdline" 2>/dev/null; then
      kill -KILL $(cat "/proc/$step"/task/*/children 2>/dev/null) "$step" 2>/dev/null || true
    fi
  done
  end "$dir/run/slurmctld.pid" slurmctld 10
  end "$dir/run/slurmdbd.pid" slurmdbd 10
  end "$dir/run/mariadb.pid" mariadbd 15
  end "$dir/munge/munged.pid" munged 5
  prefix=$(sed -nE 's/^NodeName=([a-z]+)\[.*/\1/p' "$dir/etc/slurm.conf")
  for pid in /sys/fs/cgroup/*/slurm_"$prefix"[0-9]*; do
    [ ! -d "$pid" ] || find "$pid" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
  rm -rf "$dir"
  say "$name is gone"
}

case $verb in
start) start "$3" "$4" "$5" "$6" ;;
munge) start_munge ;;
stop) stop ;;
*) fail "no such verb: $verb" ;;
esac
