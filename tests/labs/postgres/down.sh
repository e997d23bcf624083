#!/usr/bin/env bash
# Stops what up.sh started, by pid, and removes its folder. The packages stay.
set -uo pipefail
lab=${TRAINGUARD_POSTGRES_LAB:-${TMPDIR:-/tmp}/trainguard-lab-postgres}

stop() { # pidfile word signal
  local pid
  [ -s "$1" ] || return 0
  pid=$(head -n 1 "$1")
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "$2" || return 0
  kill "-$3" "$pid"
  for _ in $(seq 100); do
    grep -q '^State:[[:space:]]*[RSDI]' "/proc/$pid/status" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid"
}

for pid in $(cat "$lab/launched" 2>/dev/null); do # what tests left that were killed themselves
  if grep -qzx "TG_PG_LAB=$lab" "/proc/$pid/environ" 2>/dev/null; then kill -9 -- "-$pid"; fi
done
stop "$lab/db/data/postmaster.pid" postgres INT # at once, however many are connected
stop "$lab/redis/pid" redis-server TERM
rm -rf "${lab:?}"
