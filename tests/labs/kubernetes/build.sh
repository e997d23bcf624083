#!/usr/bin/env bash
# Builds a Kubernetes 1.20.2 control plane, kubelet and kubectl from Debian bookworm's own source package, once.
# Everything lands in a cache outside the checkout; a second call finds it there and returns at once.
# Prints the folder that holds the result as its last line. Needs root, about 130 MB of downloads and
# 2.5 GB of disk while it works (0.6 GB afterwards); some minutes on 2 cores.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/trainguard-labs
home=$cache/kubernetes
recipe=2 # raise it when this file makes something else of the same sources
commands="kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl"
packages="golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev
  etcd-server containerd runc containernetworking-plugins busybox-static"

say() { echo "[build ${SECONDS}s] $*" >&2; }

mkdir -p "$home"
exec 9>"$home/lock"
flock 9 # two lab runs on one machine build once

if [ "$(cat "$home/done" 2>/dev/null)" = "$recipe" ]; then
  echo "$home"
  exit 0
fi

work=$home/work
rm -rf "$work"
mkdir -p "$work"/{lists/partial,archives/partial,download,root,gopath/src/k8s.io} "$home/bin"

# An apt state of our own: the machine's Debian source with its source packages switched on,
# so that nothing of the machine's package state changes.
apt_sources() {
  local archive
  archive=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -n 1)
  cat >"$work/lab.sources" <<SOURCES
Types: deb deb-src
URIs: $archive
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
}
apt_lab() {
  apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/parts" \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=root "$@"
}

fetch() {
  apt_sources
  mkdir -p "$work/parts" && mv "$work/lab.sources" "$work/parts/"
  apt_lab update
  cd "$work/download"
  # shellcheck disable=SC2086 # a list of package names
  apt_lab download $packages
  apt_lab source --download-only kubernetes >/dev/null
  say "downloaded $(du -sh . | cut -f1)"
  local deb
  for deb in *.deb; do dpkg-deb --extract "$deb" "$work/root"; done
}

unpack() {
  tar -C "$work" -xzf kubernetes_*.orig.tar.gz
  source=$(find "$work" -maxdepth 1 -name 'kubernetes-*' -type d)
  tar -C "$source" -xJf kubernetes_*.debian.tar.xz
  local name
  while read -r name; do
    patch --silent --strip=1 --directory="$source" <"$source/debian/patches/$name"
  done <"$source/debian/patches/series"
}

mend() {
  # 1. The vendored reflect2 breaks on this Go, which is why kubectl as packaged crashes; Debian's newer one works.
  local reflect2=$source/vendor/github.com/modern-go/reflect2
  rm -f "$reflect2"/*.go "$reflect2"/*.s
  cp "$work"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2/"
  # 2. A comparison of reflect.Values that newer Go answers differently: left as it is, every empty
  #    string in a custom resource is refused as if it were null.
  local file
  for file in github.com/go-openapi/validate/type.go k8s.io/kube-openapi/pkg/validation/validate/type.go; do
    sed -i 's/if data == nil || reflect\.DeepEqual(.*{$/if data == nil {/' "$source/vendor/$file"
    grep -q 'if data == nil {' "$source/vendor/$file" || { say "$file: nothing to mend"; exit 1; }
  done
}

go_setup() {
  export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/gocache
  export GO111MODULE=off CGO_ENABLED=0 GOFLAGS=
  export PATH=$GOROOT/bin:$PATH
  ln -sfn "$source" "$GOPATH/src/k8s.io/kubernetes"
  cd "$GOPATH/src/k8s.io/kubernetes"
}

# 3. Debian's source lacks a generated file; it is made from the types that ask for it.
openapi() {
  go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  local inputs
  inputs=$(grep --recursive --files-with-matches --include='*.go' '+k8s:openapi-gen=' staging/src/k8s.io pkg cmd |
    grep -Ev 'code-generator|sample-(apiserver|controller)|/generated/|_test\.go|zz_generated|/testdata/|/examples/' |
    xargs -n1 dirname | sort -u |
    sed -e 's,^staging/src/,k8s.io/kubernetes/vendor/,' -e 's,^\(pkg\|cmd\)/,k8s.io/kubernetes/\1/,' |
    paste -sd,)
  "$work/openapi-gen" --logtostderr -O zz_generated.openapi -r /dev/null \
    -h hack/boilerplate/boilerplate.generatego.txt \
    -p k8s.io/kubernetes/pkg/generated/openapi -i "$inputs" --output-base "$GOPATH/src"
  say "openapi generated"
}

compile() {
  local flags="" package pair command
  for package in component-base/version client-go/pkg/version; do
    for pair in gitVersion=v1.20.2 gitMajor=1 gitMinor=20 gitTreeState=clean; do
      flags="$flags -X k8s.io/kubernetes/vendor/k8s.io/$package.$pair"
    done
  done
  for command in $commands; do
    go build -tags providerless,dockerless -ldflags "-s -w $flags" -o "$home/bin/$command" "./cmd/$command"
    say "built $command"
  done
}

keep() {
  local root=$work/root
  cp "$root/usr/bin/etcd" "$root"/usr/bin/containerd* "$root/usr/bin/ctr" "$home/bin/"
  cp "$root/usr/sbin/runc" "$home/bin/"
  cp "$root/bin/busybox" "$home/bin/busybox"
  mkdir -p "$home/cni"
  cp "$root"/usr/lib/cni/* "$home/cni/"
}

fetch
unpack
mend
go_setup
openapi
compile
keep
cd "$home"
rm -rf "$work"
echo "$recipe" >"$home/done"
say "done: $(du -sh "$home" | cut -f1)"
echo "$home"
