#!/usr/bin/env bash
# Starts a PostgreSQL and a Redis of Debian's packages on free loopback ports, in a folder of their own; prints
# the env file's path last. Prefect's processes are started by the tests, as deployments/compose says.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lab=${TRAINGUARD_POSTGRES_LAB:-${TMPDIR:-/tmp}/trainguard-lab-postgres}
if ! [ "$(id -u)" = 0 ] || ! command -v apt-get >/dev/null; then
  echo "postgres lab: needs root on Debian" >&2
  exit 2
fi
if [[ $here == /tmp/* ]] || ! setpriv --reuid 10001 --regid 10001 --clear-groups test -x "$here"; then
  echo "postgres lab: the containers' user must reach $here, and has a /tmp of its own: put the checkout neither" \
    "under /tmp nor into a folder that only its owner may enter" >&2
  exit 2
fi
mkdir -p "$lab"
"$here/../slurm/install.sh" "$lab" postgresql redis-server
bin=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin | sort -V | tail -n 1)

running() { # pidfile
  [ -s "$1" ] && grep -q '^State:[[:space:]]*[RSDI]' "/proc/$(head -n 1 "$1")/status" 2>/dev/null
}
until_ok() { # seconds what command...
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $limit ] || { echo "postgres lab: $what did not get ready; see $lab" >&2; exit 1; }
    sleep 0.1
  done
}
secret() { head -c 18 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

if running "$lab/db/data/postmaster.pid" && running "$lab/redis/pid" && [ -s "$lab/lab.env" ]; then
  echo "$lab/lab.env"
  exit 0
fi
"$here/down.sh" >&2
mkdir -p "$lab/db" "$lab/redis"
chmod 755 "$lab"
chown postgres: "$lab/db"
chown redis: "$lab/redis"
read -r pg_port redis_port <<<"$(python3 -c '
import socket
held = [socket.socket() for _ in range(2)]
for one in held: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))')"
root_password=$(secret) password=$(secret) redis_password=$(secret)

cd "$lab/db"
(umask 077 && printf '%s' "$root_password" >"$lab/db/root")
chown postgres: "$lab/db/root"
runuser -u postgres -- "$bin/initdb" -D "$lab/db/data" -U postgres --auth=scram-sha-256 --pwfile="$lab/db/root" \
  --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$lab/db/initdb.log" 2>&1 || { cat "$lab/db/initdb.log" >&2; exit 1; }
# Without fsync: no test here pulls the plug. No process of the server outlives its postmaster.
runuser -u postgres -- "$bin/postgres" -D "$lab/db/data" -h 127.0.0.1 -p "$pg_port" -k "$lab/db" -c fsync=off \
  -c max_connections=100 -c shared_buffers=64MB -c log_lock_waits=on </dev/null >"$lab/db/log" 2>&1 &
cd "$lab/redis"
(umask 077 && cat >"$lab/redis/conf" <<C
bind 127.0.0.1
port $redis_port
dir $lab/redis
pidfile $lab/redis/pid
logfile $lab/redis/log
daemonize yes
requirepass $redis_password
save ""
C
)
chown redis: "$lab/redis/conf"
runuser -u redis -- redis-server "$lab/redis/conf"
cd "$lab"
export PGPASSWORD=$root_password REDISCLI_AUTH=$redis_password
sql() { "$bin/psql" -qtA -h 127.0.0.1 -p "$pg_port" -U postgres "$@"; }
until_ok 40 PostgreSQL sql -c 'select 1'
until_ok 20 Redis redis-cli -p "$redis_port" ping
# As the image of deployments/compose makes it: one database, owned by the user who writes there.
sql -c "create role trainguard login password '$password'" -c 'create database trainguard owner trainguard'

(umask 077 && cat >"$lab/lab.env" <<C
TG_PG_LAB="$lab"
TG_PG_BIN="$bin"
TG_PG_PORT="$pg_port"
TG_PG_PASSWORD="$password"
TG_REDIS_PORT="$redis_port"
TG_REDIS_PASSWORD="$redis_password"
TRAINGUARD_TEST_POSTGRES="postgresql://postgres:$root_password@127.0.0.1:$pg_port/postgres"
C
)
echo "$lab/lab.env"
