#!/usr/bin/env bash
# Starts etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the hollow nodes on loopback.
# Builds them first where that was not done. Starting twice is no error. The last line printed is the path
# of the env file that the tests need:  set -a; . "$(tests/labs/kubernetes/up.sh | tail -n 1)"
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
home=$("$here/build.sh" | tail -n 1)
run=${TG_KUBE_RUN:-$home/run}
bin=$home/bin
python=$top/.venv/bin/python

running() { # by pid; a zombie does not run
  [ -s "$run/$1.pid" ] && grep -q '^State:[[:space:]]*[RSDI]' "/proc/$(cat "$run/$1.pid")/status" 2>/dev/null
}

if running kube-apiserver && running hollow; then
  echo "$run/env"
  exit 0
fi
"$here/down.sh" >&2 || true
rm -rf "$run"
mkdir -p "$run/pki" "$run/log"
cd "$run"

read -r api_port etcd_port peer_port manager_port scheduler_port control_port <<<"$("$python" "$here/ports.py" 6 26440)"

authority() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 7 -subj /CN=trainguard-lab \
    -addext 'keyUsage=critical,keyCertSign,digitalSignature' \
    -keyout pki/ca.key -out pki/ca.crt 2>/dev/null
  openssl genrsa -out pki/accounts.key 2048 2>/dev/null
  openssl rsa -in pki/accounts.key -pubout -out pki/accounts.pub 2>/dev/null
}

certificate() { # file, subject, alternative names
  local names=${3:-}
  openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "pki/$1.key" -out "pki/$1.csr" 2>/dev/null
  openssl x509 -req -days 7 -in "pki/$1.csr" -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial \
    -out "pki/$1.crt" 2>/dev/null -extfile <(
      echo 'extendedKeyUsage=serverAuth,clientAuth'
      if [ -n "$names" ]; then echo "subjectAltName=$names"; fi
    )
}

kubeconfig() { # user
  cat >"$run/$1.kubeconfig" <<CONFIG
apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
clusters:
  - name: lab
    cluster:
      server: https://127.0.0.1:$api_port
      certificate-authority-data: $(base64 -w0 pki/ca.crt)
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 "pki/$1.crt")
      client-key-data: $(base64 -w0 "pki/$1.key")
CONFIG
  chmod 600 "$run/$1.kubeconfig"
}

# Each server gets a script that starts it, so that a test can kill one and start it again.
server() { # name, command...
  local name=$1
  shift
  {
    echo '#!/usr/bin/env bash'
    printf 'setsid'
    printf ' %q' "$@"
    printf ' >>%q 2>&1 </dev/null &\n' "$run/log/$name.log"
    printf 'echo $! >%q\n' "$run/$name.pid"
  } >"$run/start-$name"
  chmod +x "$run/start-$name"
  "$run/start-$name"
}

until_ok() { # what, seconds, command...
  local what=$1 last=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$last" ]; then
      echo "$what did not come up; see $run/log" >&2
      exit 1
    fi
    sleep 0.2
  done
}

authority
certificate apiserver /CN=kube-apiserver IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc
certificate admin /O=system:masters/CN=admin
certificate kubelet-client /O=system:masters/CN=apiserver-kubelet-client
certificate kube-controller-manager /CN=system:kube-controller-manager
certificate kube-scheduler /CN=system:kube-scheduler
certificate node /O=system:nodes/CN=system:node:localhost IP:127.0.0.1,DNS:localhost
for user in admin kube-controller-manager kube-scheduler node; do kubeconfig $user; done

server etcd "$bin/etcd" --data-dir "$run/etcd" --unsafe-no-fsync --log-level error \
  --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
  --listen-peer-urls "http://127.0.0.1:$peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
  --initial-cluster "default=http://127.0.0.1:$peer_port"
server kube-apiserver "$bin/kube-apiserver" --etcd-servers="http://127.0.0.1:$etcd_port" \
  --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$api_port" \
  --endpoint-reconciler-type=none --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction,Priority \
  --client-ca-file="$run/pki/ca.crt" --tls-cert-file="$run/pki/apiserver.crt" \
  --tls-private-key-file="$run/pki/apiserver.key" --kubelet-certificate-authority="$run/pki/ca.crt" \
  --kubelet-client-certificate="$run/pki/kubelet-client.crt" \
  --kubelet-client-key="$run/pki/kubelet-client.key" --kubelet-preferred-address-types=Hostname,InternalIP \
  --service-account-key-file="$run/pki/accounts.pub" \
  --service-account-signing-key-file="$run/pki/accounts.key" \
  --service-account-issuer=https://kubernetes.default.svc --profiling=false --v=0
admin() { "$bin/kubectl" --kubeconfig "$run/admin.kubeconfig" "$@"; }
until_ok kube-apiserver 120 admin get --raw /readyz

server kube-controller-manager "$bin/kube-controller-manager" \
  --kubeconfig="$run/kube-controller-manager.kubeconfig" --leader-elect=false \
  --use-service-account-credentials=true --service-account-private-key-file="$run/pki/accounts.key" \
  --root-ca-file="$run/pki/ca.crt" --bind-address=127.0.0.1 --secure-port="$manager_port" --port=0 \
  --kube-api-qps=100 --kube-api-burst=200 --concurrent-gc-syncs=4 \
  --node-monitor-period=1s --node-monitor-grace-period=20s --pod-eviction-timeout=5s \
  --node-eviction-rate=50 --secondary-node-eviction-rate=50
server kube-scheduler "$bin/kube-scheduler" --kubeconfig="$run/kube-scheduler.kubeconfig" \
  --leader-elect=false --bind-address=127.0.0.1 --secure-port="$scheduler_port" --port=0
admin apply -f "$here/crds.yaml" >/dev/null
server hollow "$python" "$here/hollow.py" --server "https://127.0.0.1:$api_port" --pki "$run/pki" \
  --control "$control_port" hollow-a hollow-b hollow-c
until_ok hollow 60 curl -sf "http://127.0.0.1:$control_port/ready"
until_ok "the default service account" 60 admin -n default get serviceaccount default
until_ok "hollow-c" 60 admin wait --for=condition=Ready --timeout=10s node/hollow-a node/hollow-b node/hollow-c

cat >"$run/env" <<ENV
TG_KUBE_RUN=$run
TG_KUBE_HOME=$home
TG_KUBE_SERVER=https://127.0.0.1:$api_port
TG_KUBE_CONFIG=$run/admin.kubeconfig
TG_KUBE_PKI=$run/pki
TG_KUBE_CONTROL=http://127.0.0.1:$control_port
TG_KUBECTL=$bin/kubectl
ENV
echo "$run/env"
