#!/usr/bin/env bash
# Stops what up.sh started and removes its folder and users. The packages stay.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAB=${TRAINGUARD_SLURM_LAB:-${TMPDIR:-/tmp}/trainguard-lab-slurm}
for name in tgacct tgbare; do bash "$here/cluster.sh" stop $name; done
for user in tglab tgops; do
  case $(getent passwd $user | cut -d: -f6) in "$LAB"/*) userdel $user 2>/dev/null ;; esac
done
rm -rf "${LAB:?}"
