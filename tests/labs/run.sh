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

one() { # lab
  local facts result=0
  if ! facts=$(set -o pipefail; "$here/$1/up.sh" | tee /dev/stderr | tail -n 1); then
    echo "lab $1 did not start" >&2
    result=1
  else
    ( set -a; . "$facts"; set +a; .venv/bin/pytest -m lab -o cache_dir=".pytest_cache/$1" --durations=5 "tests/labs/$1" ) || result=1
  fi
  "$here/$1/down.sh" || true
  return $result
}

failed=0
if [ ${#labs[@]} = 1 ]; then
  echo "== lab ${labs[0]}: installing what it needs from Debian's packages and starting it"
  one "${labs[0]}" || failed=1
else
  logs=$(mktemp -d)
  declare -A running
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
