"""A Kubernetes API server in memory, as far as acting needs one: preconditions, dry runs, foreground deletion."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trainguard.transports.kube import Kube
from trainguard.transports.kube_access import KubeAccess
from trainguard.transports.kube_errors import error_of

Object = dict[str, Any]
PLURALS = {"jobs", "cronjobs", "deployments", "statefulsets", "pods", "nodes", "events", "namespaces"}


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, object]
    body: Object = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        return bool(self.query.get("dryRun") or self.body.get("dryRun"))

    @property
    def creates(self) -> bool:
        return self.method == "POST" and not self.dry and self.path.endswith("s")


class FakeKube(Kube):
    """Objects by path. `rules` are looked through first; one that gives a status and a text is the answer."""

    def __init__(self) -> None:
        super().__init__(KubeAccess())
        self.objects: dict[str, Object] = {}
        self.rules: list[Callable[[Asked], tuple[int, str] | None]] = []
        self.asked: list[Asked] = []
        self.page = 500
        self._numbers = itertools.count(1)

    def add(self, collection: str, obj: Object) -> Object:
        """Put an object there, as if it had been created."""
        made = copy.deepcopy(obj)
        own = made.setdefault("metadata", {})
        own.setdefault("uid", f"uid-{next(self._numbers)}")
        own.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        own["resourceVersion"] = str(next(self._numbers))
        self.objects[f"{collection}/{own['name']}"] = made
        return made

    async def watch(
        self, path: str, opened: Callable[[], None], **query: object
    ) -> AsyncGenerator[Object, None]:
        """A stream that says nothing more, as one does that was cut without a word."""
        opened()
        await asyncio.Event().wait()
        yield {}

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        asked = Asked(method, path, {k: v for k, v in query.items() if v not in (None, "")}, body or {})
        self.asked.append(asked)
        for rule in self.rules:
            answer = rule(asked)
            if answer is not None:
                text = answer[1] if answer[1].startswith("{") else json.dumps({"message": answer[1]})
                raise error_of(answer[0], text, {}, method, path)
        return copy.deepcopy(self._answer(asked))

    def _answer(self, asked: Asked) -> Object:
        plural = asked.path.rpartition("/")[2]
        if asked.method == "GET" and asked.path.startswith("/apis/") and asked.path.count("/") == 3:
            return {"resources": [{"name": one} for one in sorted(PLURALS)]}
        if asked.method == "POST":
            return self._create(asked)
        if asked.method == "GET" and plural in PLURALS:
            return self._list(asked)
        found = self.objects.get(asked.path)
        if found is None:
            raise error_of(404, '{"message": "not found"}', {}, asked.method, asked.path)
        if asked.method == "PATCH":
            return self._patch(asked, found)
        if asked.method == "DELETE":
            return self._delete(asked, found)
        return found

    def _list(self, asked: Asked) -> Object:
        found = [one for path, one in self.objects.items() if path.startswith(f"{asked.path}/")]
        begin = int(str(asked.query.get("continue") or 0))
        end = begin + self.page
        more = {"continue": str(end)} if end < len(found) else {}
        return {"items": found[begin:end], "metadata": {"resourceVersion": "1", **more}}

    def _create(self, asked: Asked) -> Object:
        path = f"{asked.path}/{asked.body['metadata']['name']}"
        if path in self.objects:
            raise error_of(409, '{"reason": "AlreadyExists"}', {}, "POST", asked.path)
        return asked.body if asked.dry else self.add(asked.path, asked.body)

    def _patch(self, asked: Asked, found: Object) -> Object:
        wanted = asked.body.get("metadata", {})
        for key in ("uid", "resourceVersion"):
            if key in wanted and wanted[key] != found["metadata"][key]:
                raise error_of(409, '{"reason": "Conflict"}', {}, "PATCH", asked.path)
        changed = _merged(found, asked.body)
        changed["metadata"]["resourceVersion"] = str(next(self._numbers))
        if not asked.dry:
            self.objects[asked.path] = changed
        return changed

    def _delete(self, asked: Asked, found: Object) -> Object:
        wanted = asked.body.get("preconditions", {})
        if any(wanted.get(key, found["metadata"][key]) != found["metadata"][key] for key in wanted):
            raise error_of(409, '{"reason": "Conflict"}', {}, "DELETE", asked.path)
        if not asked.dry:
            found["metadata"]["deletionTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            if not found["metadata"].get("finalizers"):
                del self.objects[asked.path]
        return {}


def _merged(base: Object, change: Object) -> Object:
    """JSON merge patch (RFC 7386)."""
    made = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = _merged(made[key], value)
        else:
            made[key] = copy.deepcopy(value)
    return made
