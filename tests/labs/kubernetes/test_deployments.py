"""The shipped manifests on the real API server, and the way in that a pod has."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.labs.kubernetes.conftest import Kubectl
from tests.labs.kubernetes.test_real_node import NODE, real_node
from tests.labs.kubernetes.test_rights import SHIPPED, Account, account
from tests.labs.kubernetes.test_watch import started, until

__all__ = ["account", "real_node"]  # fixtures

pytestmark = [pytest.mark.lab("kubernetes"), pytest.mark.timeout(280)]
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FILES = sorted(path.name for path in SHIPPED.glob("*.yaml"))


@pytest.fixture
async def places(kubectl: Kubectl) -> AsyncIterator[None]:
    """The namespaces that the manifests name."""
    for name in ("trainguard", "training"):
        await kubectl("create", "namespace", name, check=False)
        await kubectl("wait", "--for=jsonpath={.status.phase}=Active", f"namespace/{name}", check=False)
    yield


@pytest.mark.parametrize("file", FILES)
async def test_the_api_server_takes_each_shipped_manifest(kubectl: Kubectl, places: None, file: str) -> None:
    """A dry run on the server: admission and validation, nothing stored. kubectl refuses unknown fields."""
    told = await kubectl("apply", "--dry-run=server", "-o", "json", "-f", str(SHIPPED / file))
    wanted = [one for one in yaml.safe_load_all((SHIPPED / file).read_text("utf-8")) if one]
    taken = json.loads(told)
    assert len(taken.get("items", [taken])) == len(wanted)


async def test_a_field_that_does_not_exist_is_refused(kubectl: Kubectl, places: None) -> None:
    """Else the test above would prove nothing."""
    worker = list(yaml.safe_load_all((SHIPPED / "worker.yaml").read_text("utf-8")))[1]
    worker["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    told = await kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(worker), check=False)
    assert "livenessProb" in told


async def told_by(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next that `in_pod.py` says."""
    assert process.stdout is not None and process.stderr is not None
    line = await asyncio.wait_for(process.stdout.readline(), 120)
    assert line, (await process.stderr.read()).decode()[-3000:]
    answer: dict[str, Any] = json.loads(line)
    return answer


async def bound_token(kubectl: Kubectl, namespace: str, secret: str) -> str:
    """A token of the test's account that is worth nothing once a Secret is deleted, as a pod's is with its pod."""
    await kubectl("-n", namespace, "create", "secret", "generic", secret)
    bound = {"kind": "Secret", "apiVersion": "v1", "name": secret}
    ask = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"boundObjectRef": bound},
    }
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/tg/token"
    answer = json.loads(await kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(ask)))
    return str(answer["status"]["token"])


def expect_healthy(answer: dict[str, Any]) -> None:
    """A block without any setting got in, saw the job, and may do what was bound."""
    assert answer["in_cluster"] is True
    assert answer["liveness"] == "running"
    assert (answer["job_seen"], answer["logs_readable"]) == (True, True)
    assert "restart" in answer["possible"]
    assert "drain_node" not in answer["possible"]


async def test_a_block_without_settings_gets_in_with_the_files_a_pod_has_and_stays_in(
    account: Account, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    """Token and CA lie where the kubelet puts them, in a file system view of the test's own."""
    await account.bind("trainguard-watch")
    await account.bind("trainguard-restart-jobs")
    await started(kubectl, namespace)
    await kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=train", "-n", namespace, "--timeout=30s")
    first, second = [await bound_token(kubectl, namespace, name) for name in ("first", "second")]
    (tmp_path / "token").write_text(first)
    (tmp_path / "ca.crt").write_bytes((Path(os.environ["TG_KUBE_PKI"]) / "ca.crt").read_bytes())
    (tmp_path / "namespace").write_text(namespace)
    server = urlsplit(os.environ["TG_KUBE_SERVER"])
    mount = (
        'mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && mount --bind "$1" '
        '/run/secrets/kubernetes.io/serviceaccount && shift && exec "$@"'
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", mount, "pod", str(tmp_path)),
        *(sys.executable, str(HERE / "in_pod.py"), f"{namespace}/Job/train"),
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "KUBERNETES_SERVICE_HOST": str(server.hostname),
            "KUBERNETES_SERVICE_PORT": str(server.port),
        },
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    expect_healthy(await told_by(process))

    (tmp_path / "token").write_text(second)  # as the kubelet does within the hour
    await kubectl("-n", namespace, "delete", "secret", "first")
    bearer = ["--server", os.environ["TG_KUBE_SERVER"], "--token", first, "--insecure-skip-tls-verify"]

    async def refused() -> bool | None:
        told = await Kubectl("/dev/null")(*bearer, "get", "--raw", "/api", check=False)
        return "Unauthorized" in told or "must be logged in" in told or None

    await until(refused, 40)
    process.stdin.write(b"\n")
    expect_healthy(await told_by(process))
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0


def pod(namespace: str) -> dict[str, Any]:
    """A pod whose file system is this machine's Python and this checkout, under the test's service account."""
    server = urlsplit(os.environ["TG_KUBE_SERVER"])
    shared = ["/usr", "/lib", "/lib64", sys.base_prefix, str(ROOT)]
    volumes = [{"name": f"v{n}", "hostPath": {"path": path}} for n, path in enumerate(shared)]
    mounts = [{"name": f"v{n}", "mountPath": path, "readOnly": True} for n, path in enumerate(shared)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "guard", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": "tg",
            "hostNetwork": True,
            "nodeSelector": {"kubernetes.io/hostname": NODE},
            "containers": [
                {
                    "name": "main",
                    "image": "docker.io/lab/busybox:1",
                    "imagePullPolicy": "Never",
                    "command": [sys.executable, str(HERE / "in_pod.py"), f"{namespace}/Job/train"],
                    "workingDir": str(ROOT),
                    "env": [
                        # the cluster has no proxy for its services: their addresses lead nowhere
                        {"name": "KUBERNETES_SERVICE_HOST", "value": server.hostname},
                        {"name": "KUBERNETES_SERVICE_PORT", "value": str(server.port)},
                        {"name": "HOME", "value": "/tmp"},
                    ],
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


async def test_a_block_without_settings_gets_in_from_within_a_real_pod(
    account: Account, kubectl: Kubectl, namespace: str, real_node: None
) -> None:
    """A kubelet starts the pod and gives it the token of its service account."""
    await account.bind("trainguard-watch")
    await account.bind("trainguard-restart-jobs")
    await started(kubectl, namespace)
    await kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=train", "-n", namespace, "--timeout=30s")
    await kubectl.apply(pod(namespace))

    async def over() -> str | None:
        phase = (await kubectl.get("pod", "guard", "-n", namespace))["status"]["phase"]
        return str(phase) if phase in ("Succeeded", "Failed") else None

    phase = await until(over, 120)
    log = await kubectl("-n", namespace, "logs", "guard", check=False)
    assert phase == "Succeeded", f"{log} {json.dumps(await kubectl.get('pod', 'guard', '-n', namespace))}"
    expect_healthy(json.loads(log.splitlines()[-1]))
