"""The API server by kind, namespace and name: finds which version of a kind it has, pages through lists."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from trainguard.core.errors import NotFoundError, UnreachableError
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.kinds import Kind
from trainguard.transports.kube import Kube, Object
from trainguard.transports.kube_errors import ExpiredError

ABSENT_SECONDS = 30.0
"""For how long a kind that the cluster does not have is not asked for again."""
PAGE = 500
LISTS = 3
"""How often a list is begun whose mark expires before its last page (410)."""


class ClusterApi:
    """What the adapter asks of one cluster. Every method raises the errors of `transports.kube`."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self._versions: dict[str, str] = {}
        self._absent: dict[str, float] = {}

    async def version(self, kind: Kind) -> str:
        """Find the version under which the cluster has a kind. Raises NotFoundError where it has none."""
        if not kind.group or kind.group == "apps":
            return kind.versions[0]
        found = self._versions.get(kind.name)
        if found is not None:
            return found
        if time.monotonic() - self._absent.get(kind.name, float("-inf")) > ABSENT_SECONDS:
            for version in kind.versions:
                if await self._has(kind, version):
                    self._versions[kind.name] = version
                    return version
            self._absent[kind.name] = time.monotonic()
        raise NotFoundError(f"the cluster has no {kind.name} ({kind.group}): its operator is not installed")

    async def _has(self, kind: Kind, version: str) -> bool:
        try:
            answer = await self.kube.get(f"/apis/{kind.group}/{version}")
        except NotFoundError:
            return False
        return any(one.get("name") == kind.plural for one in answer.get("resources") or [])

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Read one object."""
        obj = await self.kube.get(kind.path(await self.version(kind), namespace, name))
        obj["kind"] = kind.name
        return obj

    async def page(
        self, kind: Kind, namespace: str, limit: int, token: str, labels: str = "", fields: str = ""
    ) -> Object:
        """Read one page of a list."""
        path = kind.path(await self.version(kind), namespace)
        with self._unless_gone(kind):
            return await self.kube.get(
                path, limit=limit, labelSelector=labels, fieldSelector=fields, **{"continue": token}
            )

    async def _whole(self, kind: Kind, namespace: str, labels: str) -> list[Object]:
        items, token = list[Object](), ""
        while True:
            page = await self.page(kind, namespace, PAGE, token, labels)
            for item in page.get("items") or []:
                item["kind"] = kind.name
                items.append(item)
            token = str((page.get("metadata") or {}).get("continue") or "")
            if not token:
                return items

    async def list(self, kind: Kind, namespace: str, labels: str = "") -> list[Object]:
        """Read a whole list."""
        why = ""
        for _ in range(LISTS):
            try:
                return await self._whole(kind, namespace, labels)
            except ExpiredError as error:
                why = str(error)
        raise UnreachableError(f"{kind.plural} can't be listed: {why}")

    async def watch(
        self, kind: Kind, namespace: str, version: str, seconds: float, opened: Callable[[], None]
    ) -> AsyncGenerator[Object, None]:
        """Watch a kind from a resourceVersion on, for about so many seconds."""
        path = kind.path(await self.version(kind), namespace)
        timeout = int(seconds * random.uniform(0.8, 1.0))  # noqa: S311 - spreads load, no secret
        with self._unless_gone(kind):
            async for event in self.kube.watch(path, opened, resourceVersion=version, timeoutSeconds=timeout):
                yield event

    @contextlib.contextmanager
    def _unless_gone(self, kind: Kind) -> Iterator[None]:
        """Forget the version of a kind whose collection is not there: its operator went, or serves another."""
        try:
            yield
        except NotFoundError:
            self._versions.pop(kind.name, None)
            raise

    async def patch(self, kind: Kind, obj: Object, change: Object, dry_run: bool = False) -> Object:
        """Merge-patch the object that was read, on condition that nobody changed it since."""
        own = reading.meta(obj)
        metadata = {
            **change.get("metadata", {}),
            "uid": own["uid"],
            "resourceVersion": own["resourceVersion"],
        }
        path = kind.path(await self.version(kind), str(own.get("namespace") or ""), own["name"])
        body = {**change, "metadata": metadata}
        answer = await self.kube.patch(path, body, dryRun="All" if dry_run else "")
        answer["kind"] = kind.name
        return answer

    async def delete(
        self,
        kind: Kind,
        obj: Object,
        policy: str = "",
        grace: int | None = None,
        unchanged: bool = False,
        dry_run: bool = False,
    ) -> None:
        """Delete the object that was read, and no other of its name; `unchanged`: only if nobody wrote to it since."""
        own = reading.meta(obj)
        body: dict[str, Any] = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {"uid": own["uid"]},
        }
        if unchanged:
            body["preconditions"]["resourceVersion"] = own["resourceVersion"]
        if policy:
            body["propagationPolicy"] = policy
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        path = kind.path(await self.version(kind), str(own.get("namespace") or ""), own["name"])
        if dry_run:
            body["dryRun"] = [
                "All"
            ]  # in the body: beside one, the server ignores the query and deletes in earnest
        await self.kube.delete(path, body)

    async def create(self, kind: Kind, obj: Object, dry_run: bool = False) -> Object:
        """Create an object."""
        path = kind.path(await self.version(kind), str(reading.meta(obj).get("namespace") or ""))
        answer = await self.kube.create(path, obj, dryRun="All" if dry_run else "")
        answer["kind"] = kind.name
        return answer
