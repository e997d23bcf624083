#!/usr/bin/env bash
# contain.sh DATA COMMAND...: run a command as deployments/compose/compose.yaml contains it, without Docker: the
# file system is read-only but for /tmp, which is new and empty, and /mnt, which is DATA; the user is 10001 and
# has no capability but that of reading where Python itself lies in root's home. The environment is the caller's.
set -euo pipefail
data=$1
shift
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --propagation private -- bash -c '
set -e
data=$1
shift
chown 10001:10001 "$data"
mount --bind "$data" /mnt
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,ro,bind /
cd /mnt
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all,+dac_read_search \
  --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search -- "$@"
' contain "$data" "$@"
