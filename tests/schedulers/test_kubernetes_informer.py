"""One list and watch: what is held is what the cluster has, under the words that lead to it now."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from tests.schedulers import kubernetes_fake
from tests.schedulers.kubernetes_fake import Asked, FakeKube
from tests.schedulers.kubernetes_replay import VERSIONS, recorded
from trainguard.core.errors import NotFoundError
from trainguard.schedulers.kubernetes import informer as informer_module
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.informer import Informer, Sight
from trainguard.schedulers.kubernetes.kinds import KINDS
from trainguard.schedulers.kubernetes.ownership import index_words, job_words, own_pods
from trainguard.transports.kube import Kube

Object = dict[str, Any]
PODS, JOBS = "/api/v1/namespaces/ml/pods", "/apis/batch/v1/namespaces/ml/jobs"
END = b""
"""Ends a stream, as the server does after `timeoutSeconds`."""


class StreamingKube(FakeKube):
    """Says on its streams what a test puts on the line, read by the real transport."""

    watch = Kube.watch

    def __init__(self) -> None:
        super().__init__()
        self.line: asyncio.Queue[bytes] = asyncio.Queue()
        self.marks: asyncio.Queue[str] = asyncio.Queue()
        """The resourceVersion of every stream that was opened."""

    def say(self, word: str, obj: Object) -> None:
        self.line.put_nowait(json.dumps({"type": word, "object": obj}).encode())

    async def lines(
        self, path: str, silence: float = 0, opened: Callable[[], None] | None = None, **query: object
    ) -> AsyncGenerator[bytes, None]:
        self.marks.put_nowait(str(query["resourceVersion"]))
        if opened is not None:
            opened()
        while line := await self.line.get():
            yield line

    def lists(self, path: str) -> int:
        return sum(1 for asked in self.asked if asked.path == path)


@pytest.fixture
def kube() -> StreamingKube:
    return StreamingKube()


class Watched:
    """An informer, and a way to wait for what it hears."""

    def __init__(self, kube: StreamingKube, kind: str) -> None:
        self._heard = asyncio.Event()
        self.informer = Informer(ClusterApi(kube), KINDS[kind], "ml", self._heard.set, index=index_words)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await self._heard.wait()
                self._heard.clear()

    def pods_of(self, job: Object) -> list[str]:
        found = own_pods(job, self.informer.indexed(job_words(job)))
        return [str(pod["metadata"]["name"]) for pod in found]


@pytest.fixture
async def watched(kube: StreamingKube) -> AsyncIterator[Callable[[str], Watched]]:
    made = list[Watched]()

    def watch(kind: str) -> Watched:
        made.append(Watched(kube, kind))
        made[-1].informer.start()
        return made[-1]

    yield watch
    for one in made:
        await one.informer.stop()


def owner(kind: str, uid: str) -> Object:
    return {"apiVersion": "apps/v1", "kind": kind, "name": "train", "uid": uid, "controller": True}


def pod(*owners: Object, version: str = "2", **labels: str) -> Object:
    meta = {"name": "train-0", "namespace": "ml", "uid": "p", "resourceVersion": version}
    born = "2026-01-01T00:00:00Z"
    return {
        "metadata": {**meta, "creationTimestamp": born, "ownerReferences": list(owners), "labels": labels}
    }


def workload(uid: str, kind: str = "StatefulSet") -> Object:
    born = "2026-02-02T00:00:00Z"
    return {
        "kind": kind,
        "metadata": {"name": "train", "namespace": "ml", "uid": uid, "creationTimestamp": born},
    }


async def test_a_pod_that_was_released_and_then_deleted_is_nobodys_and_blinds_nobody(
    kube: StreamingKube, watched: Callable[[str], Watched]
) -> None:
    kube.add(PODS, pod(owner("StatefulSet", "u1")))
    one, job = watched("Pod"), workload("u1")
    await one.until(lambda: one.pods_of(job) == ["train-0"])
    kube.say("MODIFIED", pod(version="3"))
    await one.until(lambda: not one.pods_of(job))
    kube.say("DELETED", pod(version="4"))
    await one.until(lambda: one.informer.deleted("ml", "train-0") is not None)
    assert one.informer.indexed(job_words(job)) == []


async def test_a_pod_that_another_object_adopted_is_that_ones(
    kube: StreamingKube, watched: Callable[[str], Watched]
) -> None:
    kube.add(PODS, pod(owner("StatefulSet", "u1")))
    one, before, after = watched("Pod"), workload("u1"), workload("u2")
    await one.until(lambda: one.pods_of(before) == ["train-0"])
    kube.say("MODIFIED", pod(version="3"))
    kube.say("MODIFIED", pod(owner("StatefulSet", "u2"), version="4"))
    await one.until(lambda: one.pods_of(after) == ["train-0"])
    assert one.pods_of(before) == []


async def test_an_owner_that_changed_between_two_lists_is_known(
    kube: StreamingKube, watched: Callable[[str], Watched]
) -> None:
    kube.add(PODS, pod(owner("StatefulSet", "u1")))
    one, before, after = watched("Pod"), workload("u1"), workload("u2")
    await one.until(lambda: one.pods_of(before) == ["train-0"])
    kube.add(PODS, pod(owner("StatefulSet", "u2")))
    await one.informer.refresh(5)
    assert (one.pods_of(before), one.pods_of(after)) == ([], ["train-0"])


async def test_a_bookmark_moves_the_mark_and_is_no_object(
    kube: StreamingKube, watched: Callable[[str], Watched]
) -> None:
    kube.add(PODS, pod())
    one = watched("Pod")
    assert await kube.marks.get() == "1"
    kube.say("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "77"}, "spec": {}})
    kube.line.put_nowait(END)
    assert await asyncio.wait_for(kube.marks.get(), 5) == "77"
    assert kube.lists(PODS) == 1
    assert list(one.informer.named()) == ["train-0"]


async def test_what_was_lost_where_nobody_could_see_it_is_found_by_listing_again_after_a_while(
    kube: StreamingKube, watched: Callable[[str], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer_module, "RESYNC_SECONDS", 0.0)
    kube.add(PODS, pod())
    one = watched("Pod")
    await one.until(lambda: one.informer.get("ml", "train-0") is not None)
    await kube.marks.get()
    del kube.objects[f"{PODS}/train-0"]  # and no event says so
    kube.line.put_nowait(END)
    await one.until(lambda: one.informer.get("ml", "train-0") is None)
    assert one.informer.deleted("ml", "train-0") is not None


async def test_where_every_stream_ends_as_soon_as_it_begins_it_polls(
    kube: StreamingKube, watched: Callable[[str], Watched]
) -> None:
    for _ in range(20):
        kube.line.put_nowait(END)
    one = watched("Pod")
    await one.until(lambda: one.informer.sight is Sight.POLLING)
    assert (one.informer.seeing, kube.marks.qsize()) == (True, 3)


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_recorded_410_means_listing_again_and_nothing_is_lost(
    kube: StreamingKube, watched: Callable[[str], Watched], version: str
) -> None:
    errors = [row["object"] for row in recorded(version)["http-and-watch-410-gone"] if row["type"] == "ERROR"]
    assert errors and all(error["code"] == 410 for error in errors)
    one = watched("Pod")
    await kube.marks.get()
    for number, error in enumerate(errors):
        kube.add(PODS, {"metadata": {"name": f"p-{number}", "namespace": "ml"}})  # no event says so
        kube.say("ERROR", error)
        await one.until(partial(one.informer.get, "ml", f"p-{number}"))
        assert await asyncio.wait_for(kube.marks.get(), 5) == "1"
    assert kube.lists(PODS) == 1 + len(errors)
    assert (one.informer.sight, one.informer.error) == (Sight.WATCHING, None)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_recorded_bookmarks_are_marks_to_go_on_from(
    kube: StreamingKube, watched: Callable[[str], Watched], version: str
) -> None:
    rows = [row for row in recorded(version)["watch-bookmarks-and-timeout"] if row["kind"] == "Job"]
    last = max(n for n, row in enumerate(rows) if row["type"] == "BOOKMARK")
    one = watched("Job")
    await kube.marks.get()
    for row in rows[: last + 1]:
        kube.say(row["type"], row["object"])
    kube.line.put_nowait(END)
    mark = await asyncio.wait_for(kube.marks.get(), 5)
    assert mark == rows[last]["object"]["metadata"]["resourceVersion"]
    assert list(one.informer.named()) == ["train"]
    assert kube.lists(JOBS) == 1


async def test_a_kind_that_is_served_under_another_version_is_found_again(
    kube: StreamingKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that is upgraded may stop serving the version that was found first."""
    served = ["v1"]

    def crd(asked: Asked) -> tuple[int, str] | None:
        parts = asked.path.split("/")
        if "kubeflow.org" not in asked.path:
            return None
        return None if parts[3] in served else (404, "404 page not found")

    kube.rules.append(crd)
    monkeypatch.setattr(kubernetes_fake, "PLURALS", {"mpijobs"})
    api = ClusterApi(kube)
    old, new = (f"/apis/kubeflow.org/{version}/namespaces/ml/mpijobs" for version in ("v1", "v2beta1"))
    kube.add(old, {"metadata": {"name": "a", "namespace": "ml"}})
    kube.add(new, {"metadata": {"name": "b", "namespace": "ml"}})
    assert [one["metadata"]["name"] for one in await api.list(KINDS["MPIJob"], "ml")] == ["a"]
    served[:] = ["v2beta1"]
    with pytest.raises(NotFoundError):
        await api.list(KINDS["MPIJob"], "ml")
    assert [one["metadata"]["name"] for one in await api.list(KINDS["MPIJob"], "ml")] == ["b"]
