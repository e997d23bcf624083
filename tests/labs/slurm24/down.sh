#!/usr/bin/env bash
# Stops the cluster. The chroot stays for the next start; `down.sh --purge` removes it too.
set -uo pipefail
lab=${TRAINGUARD_SLURM24_LAB:-${TMPDIR:-/tmp}/trainguard-lab-slurm24}
root=$lab/root inner=/var/tmp/trainguard-lab
[ ! -f "$root$inner/cluster.sh" ] ||
  chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LAB=$inner bash $inner/cluster.sh stop tg24
for place in proc sys dev; do
  mountpoint -q "$root/$place" && umount -R -l "$root/$place"
done
if [ "${1:-}" = --purge ]; then
  for place in proc sys dev; do
    ! mountpoint -q "$root/$place" || { echo "slurm24 lab: $root/$place is still mounted" >&2; exit 1; }
  done
  rm -rf --one-file-system "${lab:?}"
fi
exit 0
