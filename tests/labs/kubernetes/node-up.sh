#!/usr/bin/env bash
# A real node beside the hollow ones: containerd, runc and a kubelet on this machine. Needs up.sh first, root
# and cgroup v1. It is called localhost, so that the API server finds it by name. All its pods use the host's network; images are made here, nothing is ever pulled.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
home=${TG_KUBE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/trainguard-labs/kubernetes}
run=${TG_KUBE_RUN:-$home/run}
bin=$home/bin
export PATH=$bin:$PATH

running() {
  [ -s "$run/$1.pid" ] && grep -q '^State:[[:space:]]*[RSDI]' "/proc/$(cat "$run/$1.pid")/status" 2>/dev/null
}
start() { # name, command...
  local name=$1
  shift
  running "$name" && return
  setsid "$@" >>"$run/log/$name.log" 2>&1 </dev/null &
  echo $! >"$run/$name.pid"
}
ctr() { "$bin/ctr" --address "$run/containerd.sock" --namespace k8s.io "$@"; }

[ -d /sys/fs/cgroup/memory ] || { echo "the real node needs cgroup v1" >&2; exit 3; }
mkdir -p "$run/cni"
cat >"$run/cni/10-lab.conf" <<'CNI'
{"cniVersion": "0.4.0", "name": "lab", "type": "loopback"}
CNI
cat >"$run/containerd.toml" <<CONFIG
version = 2
root = "$run/containerd/root"
state = "$run/containerd/state"
[grpc]
  address = "$run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/lab/pause:1"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$home/cni"
    conf_dir = "$run/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
CONFIG
start containerd "$bin/containerd" --config "$run/containerd.toml" --log-level warn
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
if ! ctr images list -q | grep -q lab/pause; then
  python3 "$here/mkimage.py" "$run/busybox.tar" docker.io/lab/busybox:1 "$bin/busybox"
  python3 "$here/mkimage.py" "$run/pause.tar" docker.io/lab/pause:1 "$bin/busybox" /bin/sleep 1000000
  ctr images import "$run/busybox.tar" >&2
  ctr images import "$run/pause.tar" >&2
fi

for controller in /sys/fs/cgroup/*/; do
  case $controller in */unified/) ;; *) mkdir -p "${controller}trainguard-lab" ;; esac
done
for file in cpus mems; do
  own=/sys/fs/cgroup/cpuset/trainguard-lab/cpuset.$file
  [ -n "$(cat "$own" 2>/dev/null)" ] || cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"$own"
done
# the kubelet sets these for the whole machine; node-down.sh puts them back
[ -s "$run/sysctl.before" ] || sysctl vm.overcommit_memory kernel.panic kernel.panic_on_oops >"$run/sysctl.before"

read -r kubelet_port health_port <<<"$(python3 "$here/ports.py" 2 26480)"
cat >"$run/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: $kubelet_port
readOnlyPort: 0
healthzPort: $health_port
tlsCertFile: $run/pki/node.crt
tlsPrivateKeyFile: $run/pki/node.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $run/pki/ca.crt}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /trainguard-lab
enforceNodeAllocatable: [pods]
failSwapOn: false
makeIPTablesUtilChains: false
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
maxPods: 20
nodeStatusUpdateFrequency: 2s
serializeImagePulls: false
CONFIG
start kubelet "$bin/kubelet" --config="$run/kubelet.yaml" --kubeconfig="$run/node.kubeconfig" \
  --container-runtime=remote --container-runtime-endpoint="unix://$run/containerd.sock" \
  --root-dir="$run/kubelet" --cert-dir="$run/pki" --hostname-override=localhost --v=1
for _ in $(seq 300); do
  state=$("$bin/kubectl" --kubeconfig "$run/admin.kubeconfig" get node localhost \
    -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null || true)
  [ "$state" = True ] && exit 0
  running kubelet || { tail -n 20 "$run/log/kubelet.log" >&2; exit 1; }
  sleep 0.2
done
tail -n 20 "$run/log/kubelet.log" >&2
exit 1
