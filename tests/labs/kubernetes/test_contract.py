"""The contract suite on the real API server: Jobs on hollow nodes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aiohttp
import pytest

from tests.labs.kubernetes.conftest import Hollow, Kubectl, MakeScheduler, job_manifest, job_of
from tests.labs.kubernetes.proxy import Proxy
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy
from trainguard.schedulers.base import Scheduler
from trainguard.testing.scheduler_contract import SchedulerContract
from trainguard.testing.scheduler_lab import Ability, Lab, Workload

pytestmark = pytest.mark.lab("kubernetes")
DOES = {
    Workload.HEALTHY: "healthy",
    Workload.QUIET: "quiet",
    Workload.CRASHING: "crash",
    Workload.FINISHING: "finish",
}
NAMES = itertools.count()


class KubernetesLab(Lab):
    patience: ClassVar[float] = 40.0
    settle: ClassVar[float] = 1.0
    tick: ClassVar[float] = 0.1
    resume_ways: ClassVar[frozenset[ResumeBy]] = frozenset({ResumeBy.ARGUMENT, ResumeBy.ENVIRONMENT})
    lacks: ClassVar[Mapping[Ability, str]] = {
        Ability.LIVE_BARS: "a container runtime writes a line to its log when it ends",
        Ability.ROTATE_LOG: "the kubelet gives the current file of a log only",
    }

    def __init__(
        self, make: MakeScheduler, proxy: Proxy, hollow: Hollow, kubectl: Kubectl, namespace: str
    ) -> None:
        self._make, self._proxy, self._hollow, self._kubectl, self._namespace = (
            make,
            proxy,
            hollow,
            kubectl,
            namespace,
        )
        self._scheduler = make()

    @property
    def scheduler(self) -> Scheduler:
        return self._scheduler

    def twin(self) -> Scheduler:
        return self._make()

    async def start(self, workload: Workload, resume: Resume | None = None) -> Job:
        name = f"train-{next(NAMES)}"
        await self._kubectl.apply(job_manifest(self._namespace, name, DOES[workload]))
        checkpoints = None if resume is None else CheckpointSpec(directory="/ckpt", resume=resume)
        return job_of(self._namespace, "Job", name, checkpoints=checkpoints)

    def unheard_of(self) -> Job:
        return job_of(self._namespace, "Job", f"nobody-{next(NAMES)}")

    async def crash(self, job: Job) -> None:
        await self._hollow.exit(self._namespace, await self._pod(job), 3)

    async def stop_by_owner(self, job: Job) -> None:
        await self._kubectl("-n", self._namespace, "delete", "job", job.name, "--wait=true")

    async def append_log(self, job: Job, data: bytes) -> None:
        assert await self._hollow.post(f"/pod/{self._namespace}/{await self._pod(job)}/log", data) == 200

    async def starts(self, job: Job) -> int:
        return (await self._hollow.count(self._namespace, job.name))["starts"]

    async def alive(self, job: Job) -> int:
        return (await self._hollow.count(self._namespace, job.name))["alive"]

    async def resumed_from(self, job: Job) -> str | None:
        container = (await self._newest(job))["spec"]["containers"][0]
        words = [*container.get("command", []), *container.get("args", [])]
        found = [words[n + 1] for n, word in enumerate(words) if word == "--resume"]
        found += [one["value"] for one in container.get("env", []) if one["name"] == "TG_RESUME"]
        # as the kubelet expands it
        return found[-1].replace("$$(", "$(") if found else None

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        await self._proxy.go_away()
        await asyncio.sleep(1.2)  # a stream that has just ended counts as seeing for a second
        try:
            yield
        finally:
            await self._proxy.come_back()

    @asynccontextmanager
    async def answers_lost(self) -> AsyncIterator[None]:
        self._proxy.lose_answers = True
        try:
            yield
        finally:
            self._proxy.lose_answers = False

    async def say(self, job: Job, word: str) -> None:
        """The pod's phase is a closed set; conditions are open by convention and must not confuse anybody."""
        url = f"{self._proxy.url}/api/v1/namespaces/{self._namespace}/pods/{await self._pod(job)}/status"
        headers = {"Content-Type": "application/merge-patch+json"}
        body = json.dumps({"status": {"phase": word}})
        async with (
            aiohttp.ClientSession() as session,
            session.patch(url, data=body, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()

    async def recreate(self, job: Job) -> None:
        await self._kubectl("-n", self._namespace, "delete", "job", job.name, "--cascade=foreground")
        await self._kubectl.apply(job_manifest(self._namespace, job.name, "healthy"))

    async def begin_own_restart(self, job: Job) -> None:
        # the first replacement comes at once; a quota keeps it away for as long as the test looks
        await self._kubectl("-n", self._namespace, "create", "quota", "none", "--hard=pods=0")
        patch = json.dumps({"spec": {"backoffLimit": 3}})
        await self._kubectl("-n", self._namespace, "patch", "job", job.name, "-p", patch)
        await self.crash(job)

    async def hold_by_owner(self, job: Job) -> None:
        patch = json.dumps({"spec": {"parallelism": 0}})
        await self._kubectl("-n", self._namespace, "patch", "job", job.name, "-p", patch)

    async def truncate_log(self, job: Job) -> None:
        assert await self._hollow.post(f"/pod/{self._namespace}/{await self._pod(job)}/truncate") == 200

    async def make_log_unreadable(self, job: Job) -> None:
        self._proxy.refuse(
            403, '{"kind": "Status", "message": "no"}', lambda asked: asked.path.endswith("/log")
        )

    def selector(self) -> str:
        return f"namespace={self._namespace}"

    async def _newest(self, job: Job) -> dict[str, Any]:
        found = await self._kubectl.get("pods", "-n", self._namespace, "-l", f"job-name={job.name}")
        pods = sorted(found["items"], key=lambda pod: pod["metadata"]["creationTimestamp"])
        newest: dict[str, Any] = pods[-1]
        return newest

    async def _pod(self, job: Job) -> str:
        async def look() -> str | None:
            try:
                return str((await self._newest(job))["metadata"]["name"])
            except IndexError:
                return None

        return await self.until(look, f"a pod of {job.name}")


class TestKubernetes(SchedulerContract):
    @pytest.fixture
    async def lab(
        self,
        make_scheduler: MakeScheduler,
        proxy: Proxy,
        hollow: Hollow,
        kubectl: Kubectl,
        namespace: str,
    ) -> Lab:
        return KubernetesLab(make_scheduler, proxy, hollow, kubectl, namespace)
