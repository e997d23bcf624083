#!/usr/bin/env bash
# Starts two real Slurm clusters behind sshd, one with accounting and one without; prints the env file's path last.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAB=${TRAINGUARD_SLURM_LAB:-${TMPDIR:-/tmp}/trainguard-lab-slurm}
need="slurm-wlm munge openssh-server slurmdbd mariadb-server-core mariadb-client-core iproute2"
if ! [ "$(id -u)" = 0 ] || ! command -v apt-get >/dev/null; then
  echo "slurm lab: needs root on Debian" >&2
  exit 2
fi
mkdir -p "$LAB"
"$here/install.sh" "$LAB" $need
bash "$here/cluster.sh" start tgacct tga 2241 17811 yes
bash "$here/cluster.sh" start tgbare tgb 2242 17911 no
cat >"$LAB/lab.env" <<C
TRAINGUARD_SLURM_LAB=$LAB
TRAINGUARD_SLURM_CLUSTERS=tgacct tgbare
C
sed -i 's/=\(.*\)/="\1"/' "$LAB/lab.env"
echo "$LAB/lab.env"
