#!/usr/bin/env bash
# Starts each real server that is asked for, runs its tests, stops it. LABS="slurm" selects.
# A lab is a folder here with up.sh (installs and starts, prints the path of an env file as its last
# line), down.sh, and test_*.py marked `lab("<name>")`. Several labs run side by side: they wait, mostly.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top" || exit 2
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "make test-labs installs Debian packages and starts servers: it needs root on Debian." >&2
  exit 2
fi
read -ra labs <<<"${LABS:-slurm kubernetes postgres}"
for lab in "${labs[@]}"; do
  if [ ! -x "$here/$lab/up.sh" ]; then
    echo "no lab named '$lab'; there are: $(cd "$here" && ls -d */ | tr -d / | tr '\n' ' ')" >&2
    exit 2
  fi
done

one() { # lab; a lab that is interrupted is taken down like one that has ended
  local lab=$1 work=0 printed result=0
  printed=$(mktemp)
  trap 'trap "" TERM; [ $work = 0 ] || { kill -TERM -- "-$work" 2>/dev/null; wait "$work"; }; rm -f "$printed"
    "$here/$lab/down.sh" || true; exit 143' TERM
  setsid "$here/$lab/up.sh" >"$printed" &
  work=$!
  if ! wait "$work"; then
    echo "lab $lab did not start" >&2
    result=1
  else
    cat "$printed" >&2 # tee /dev/stderr would empty a log file that this is written to
    tail -n 1 "$printed" >"$printed.facts"
    mv "$printed.facts" "$printed"
    ( set -a; . "$(cat "$printed")"; set +a
      exec setsid .venv/bin/pytest -m lab -o cache_dir=".pytest_cache/$lab" --durations=5 "tests/labs/$lab" ) &
    work=$!
    wait "$work" || result=1
  fi
  trap '' TERM
  rm -f "$printed"
  "$here/$lab/down.sh" || true
  return $result
}

failed=0
declare -A running
interrupted() {
  trap '' INT TERM HUP
  echo "== interrupted: taking the labs down" >&2
  kill -TERM "${running[@]}" 2>/dev/null
  wait
  exit 130
}
trap interrupted INT TERM HUP
if [ ${#labs[@]} = 1 ]; then
  echo "== lab ${labs[0]}: installing what it needs from Debian's packages and starting it"
  one "${labs[0]}" &
  running[${labs[0]}]=$!
  wait $! || failed=1
else
  logs=$(mktemp -d)
  for lab in "${labs[@]}"; do
    echo "== lab $lab: installing what it needs from Debian's packages and starting it; its output follows when it ends"
    one "$lab" >"$logs/$lab" 2>&1 &
    running[$lab]=$!
  done
  for lab in "${labs[@]}"; do
    wait "${running[$lab]}" || { failed=1; echo "== lab $lab FAILED"; }
    echo "== lab $lab"
    cat "$logs/$lab"
  done
  rm -rf "$logs"
fi
exit $failed
