#!/usr/bin/env bash
# Stops the real node, its containers first, and takes back mounts, cgroups and sysctls.
set -u
home=${TG_KUBE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/trainguard-labs/kubernetes}
run=${TG_KUBE_RUN:-$home/run}

stop() {
  local pid file=$run/$1.pid
  [ -s "$file" ] || return 0
  pid=$(cat "$file")
  if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q -e "$home" -e "$run"; then
    kill "$pid" 2>/dev/null
    for _ in $(seq 50); do
      grep -q '^State:[[:space:]]*[RSDI]' "/proc/$pid/status" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null
  fi
  rm -f "$file"
}
ctr() { "$home/bin/ctr" --address "$run/containerd.sock" --namespace k8s.io "$@" 2>/dev/null; }

stop kubelet
if [ "${1:-}" = --kubelet-only ]; then exit 0; fi
if [ -s "$run/containerd.pid" ]; then
  for task in $(ctr tasks list -q); do ctr tasks kill --all --signal SIGKILL "$task"; done
  sleep 0.5
  for task in $(ctr tasks list -q); do ctr tasks delete --force "$task"; done
  for container in $(ctr containers list -q); do ctr containers delete "$container"; done
  if [ "${1:-}" = --power-off ]; then exit 0; fi
  stop containerd
fi >/dev/null
awk -v run="$run/" 'index($2, run) == 1 {print $2}' /proc/mounts | sort -r | while read -r mount; do
  umount -l "$mount"
done
if [ -s "$run/sysctl.before" ]; then
  sysctl -q -p "$run/sysctl.before"
  rm -f "$run/sysctl.before"
fi
for tree in /sys/fs/cgroup/*/trainguard-lab; do
  [ -d "$tree" ] && find "$tree" -depth -type d -exec rmdir {} \; 2>/dev/null
done
exit 0
