"""What the tests on the real API server share: kubectl, hollow nodes, the proxy, the adapter."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.labs.kubernetes.proxy import Proxy
from trainguard.core.job import Job, JobRef
from trainguard.schedulers.kubernetes import KubernetesScheduler
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.transports.kube_access import KubeAccess

Object = dict[str, Any]
SKIP = "needs a real Kubernetes API server: run `make test-labs LABS=kubernetes` (root, Debian 12)"
CLUSTER = "lab"
LIMITS = Limits(ready=6.0, node=2.0, image=1.0, unschedulable=3.0, settled=5.0, idle=3.0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "TG_KUBE_SERVER" not in os.environ:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=SKIP))


class Kubectl:
    """The second opinion."""

    def __init__(self, config: str | None = None) -> None:
        self._command = [os.environ["TG_KUBECTL"], "--kubeconfig", config or os.environ["TG_KUBE_CONFIG"]]

    async def __call__(self, *words: str, stdin: str = "", check: bool = True) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 90)
        if check and process.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {err.decode()}")
        return out.decode() if not process.returncode else err.decode()

    async def get(self, *words: str) -> Object:
        found: Object = json.loads(await self("get", *words, "-o", "json"))
        return found

    async def apply(self, manifest: Object) -> None:
        await self("create", "-f", "-", stdin=json.dumps(manifest))


class Hollow:
    """The control port of the hollow nodes."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def post(self, path: str, data: bytes = b"") -> int:
        async with self._session.post(f"{self._url}{path}", data=data) as answer:
            return answer.status

    async def exit(self, namespace: str, pod: str, code: int, reason: str = "Error", says: str = "") -> None:
        how = json.dumps({"code": code, "reason": reason, "says": says}).encode()
        assert await self.post(f"/pod/{namespace}/{pod}/exit", how) == 200

    async def count(self, namespace: str, job: str) -> dict[str, int]:
        async with self._session.get(f"{self._url}/count/{namespace}/{job}") as answer:
            found: dict[str, int] = await answer.json()
            return found


def pod_template(does: str, restart: str, name: str, **container: Any) -> Object:
    """A pod that a hollow node plays."""
    return {
        "metadata": {"annotations": {"lab/does": does, "lab/job": name}, "labels": {"app": name}},
        "spec": {
            "restartPolicy": restart,
            "nodeSelector": {"lab/hollow": "true"},
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "lab/none:1", "command": ["train"], **container}],
        },
    }


def job_manifest(
    namespace: str, name: str, does: str, backoff: int = 0, restart: str = "Never", **spec: Any
) -> Object:
    """A batch/v1 Job."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backoffLimit": backoff, "template": pod_template(does, restart, name), **spec},
    }


def job_of(namespace: str, kind: str, name: str, **more: Any) -> Job:
    """The guarded job."""
    return Job(
        ref=JobRef(scheduler="kubernetes", cluster=CLUSTER, id=f"{namespace}/{kind}/{name}"),
        name=name,
        **more,
    )


@pytest.fixture
def kubectl() -> Kubectl:
    return Kubectl()


@pytest.fixture
async def hollow() -> AsyncIterator[Hollow]:
    async with aiohttp.ClientSession() as session:
        yield Hollow(session, os.environ["TG_KUBE_CONTROL"])


@pytest.fixture
async def namespace(kubectl: Kubectl) -> AsyncIterator[str]:
    """A namespace of the test's own. What is in it is let go without waiting."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    await kubectl("create", "namespace", name)
    yield name
    await kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with Proxy(os.environ["TG_KUBE_SERVER"], Path(os.environ["TG_KUBE_PKI"])) as one:
        yield one


MakeScheduler = Callable[..., KubernetesScheduler]


@pytest.fixture
async def make_scheduler(proxy: Proxy) -> AsyncIterator[MakeScheduler]:
    """Make adapters that reach the server through the proxy; all are closed in the end."""
    made = list[KubernetesScheduler]()

    def make(token: str = "", **more: Any) -> KubernetesScheduler:
        access = KubeAccess(text=proxy.kubeconfig(token))
        made.append(
            KubernetesScheduler(CLUSTER, access, **{"limits": LIMITS, "action_seconds": 30.0, **more})
        )
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def scheduler(make_scheduler: MakeScheduler) -> Iterator[KubernetesScheduler]:
    yield make_scheduler()
