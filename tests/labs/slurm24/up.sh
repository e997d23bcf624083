#!/usr/bin/env bash
# Slurm 24.11 of Debian 13, in a chroot, with accounting. Nothing of it runs with the other labs: LABS=slurm24 selects it.
# The first start fetches a base system (about two minutes).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=${TRAINGUARD_SLURM24_LAB:-${TMPDIR:-/tmp}/trainguard-lab-slurm24}
root=$lab/root inner=/var/tmp/trainguard-lab
if ! [ "$(id -u)" = 0 ] || ! command -v apt-get >/dev/null; then
  echo "slurm24 lab: needs root on Debian" >&2
  exit 2
fi
mkdir -p "$lab"
chmod 755 "$lab"
command -v debootstrap >/dev/null || "$here/../slurm/install.sh" "$lab" debootstrap
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 2>/dev/null | awk '/debian\/? / && !/security/ {print $1; exit}')
[ -x "$root/usr/bin/apt-get" ] || {
  echo "slurm24 lab: fetching Debian 13" >&2
  debootstrap --variant=minbase --include=ca-certificates trixie "$root" "$mirror" >"$lab/debootstrap.log" 2>&1 || {
    tail -n 5 "$lab/debootstrap.log" >&2
    exit 1
  }
}
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
for place in sys dev; do
  mountpoint -q "$root/$place" || { mount --rbind /$place "$root/$place" && mount --make-rslave "$root/$place"; }
done
cp /etc/hosts /etc/resolv.conf "$root/etc/"
for conf in /etc/apt/apt.conf.d/*; do # the host's proxies and certificates, where it needs any
  [ ! -f "$conf" ] || ! grep -qiE 'proxy|cainfo|verify' "$conf" || cp "$conf" "$root/etc/apt/apt.conf.d/"
done
mkdir -p "$root$inner"
cp "$here"/../slurm/{cluster,install}.sh "$root$inner/"
inside() { chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LAB=$inner "$@"; }
inside bash $inner/install.sh $inner slurm-wlm munge openssh-server openssh-client slurmdbd mariadb-server-core \
  mariadb-client-core iproute2 procps python3-minimal gawk
inside bash $inner/cluster.sh start tg24 tgc 2243 17611 yes
# The tests run outside: what the facts name lies below the chroot.
sed -E "s#=$inner#=$root$inner#" "$root$inner/tg24/facts.env" >"$lab/facts24.env"
echo "CHROOT=$root" >>"$lab/facts24.env"
cat >"$lab/lab.env" <<C
TRAINGUARD_SLURM24_LAB="$lab"
C
echo "$lab/lab.env"
