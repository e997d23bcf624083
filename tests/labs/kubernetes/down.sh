#!/usr/bin/env bash
# Stops what up.sh and node-up.sh started, by pid, and takes back what they changed on this machine.
set -u
here=$(cd "$(dirname "$0")" && pwd)
home=${TG_KUBE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/trainguard-labs/kubernetes}
run=${TG_KUBE_RUN:-$home/run}

stop() {
  local pid file=$run/$1.pid
  [ -s "$file" ] || return 0
  pid=$(cat "$file")
  # the pid may be another process's by now: only what runs from our folders is ours
  if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -e "$home" -e "$here" -e "$run"; then
    kill "$pid" 2>/dev/null
    for _ in $(seq 50); do
      grep -q '^State:[[:space:]]*[RSDI]' "/proc/$pid/status" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null
  fi
  rm -f "$file"
}

[ -x "$here/node-down.sh" ] && TG_KUBE_RUN=$run "$here/node-down.sh"
for name in hollow kube-scheduler kube-controller-manager kube-apiserver etcd; do stop "$name"; done
# what is left are logs to read: no keys, and no kubeconfig of an administrator
[ ! -d "$run" ] || find "$run" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf --one-file-system {} +
exit 0
