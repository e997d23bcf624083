#!/usr/bin/env bash
# Starts each real server that is asked for, runs its tests, stops it. LABS="slurm kubernetes" selects.
# A lab is a folder here with up.sh (installs and starts, prints the path of an env file as its last
# line), down.sh, and test_*.py marked `lab("<name>")`.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top" || exit 2
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "make test-labs installs Debian packages and starts servers: it needs root on Debian." >&2
  exit 2
fi
failed=0
for lab in ${LABS:-slurm kubernetes}; do
  if [ ! -x "$here/$lab/up.sh" ]; then
    echo "no lab named '$lab'; there are: $(cd "$here" && ls -d */ | tr -d / | tr '\n' ' ')" >&2
    exit 2
  fi
  echo "== lab $lab: installing what it needs from Debian's packages and starting it"
  if ! facts=$(set -o pipefail; "$here/$lab/up.sh" | tee /dev/stderr | tail -n 1); then
    echo "lab $lab did not start" >&2
    failed=1
  else
    ( set -a; . "$facts"; set +a; .venv/bin/pytest -m lab "tests/labs/$lab" || {
      echo "Some failed: once more, those alone"
      .venv/bin/pytest -m lab "tests/labs/$lab" --last-failed --last-failed-no-failures none
    } ) || failed=1
  fi
  "$here/$lab/down.sh" || true
done
exit $failed
