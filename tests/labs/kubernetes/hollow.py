"""Hollow nodes: kubelets without containers, for a real control plane.

Each registers a node, keeps its heartbeat, takes the pods that the scheduler gives it through the states that
their annotation `lab/does` names, and serves their logs over the kubelet's own HTTPS endpoint, so that
`pods/log` goes through the real API server. Tests drive it over a loopback control port.

lab/does: healthy (prints steps), quiet, finish, crash, fail:<code>, oom, pending, imagepull, configerror,
crashloop, oomloop. lab/after: seconds until it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

Object = dict[str, Any]
GRACE = 0.3
BACKOFF = 1.0
BAD_IMAGE = "rpc error: code = NotFound desc = failed to pull and unpack image"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Log:
    """A container log as a runtime keeps it: whole lines with nanosecond stamps."""

    rows: list[tuple[int, bytes]] = field(default_factory=list)
    half: bytes = b""

    def write(self, data: bytes) -> None:
        *whole, self.half = (self.half + data).split(b"\n")
        for line in whole:
            stamp = max(time.time_ns(), self.rows[-1][0] + 1 if self.rows else 0)
            self.rows.append((stamp, line + b"\n"))

    def text(self, query: dict[str, str]) -> bytes:
        rows = self.rows
        if query.get("sinceTime"):
            since = datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00")).timestamp()
            rows = [row for row in rows if row[0] >= since * 1e9]
        if query.get("tailLines"):
            rows = rows[max(0, len(rows) - int(query["tailLines"])) :]
        stamped = query.get("timestamps") == "true"
        data = b"".join((_stamp(row[0]) + b" " if stamped else b"") + row[1] for row in rows)
        return data[: int(query["limitBytes"])] if query.get("limitBytes") else data


def _stamp(nanos: int) -> bytes:
    seconds, rest = divmod(nanos, 1_000_000_000)
    # as the kubelet writes them: trailing zeros of the fraction are left out
    fraction = f"{rest:09d}".rstrip("0")
    head = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{head}{'.' + fraction if fraction else ''}Z".encode()


@dataclass
class Play:
    """One pod on a hollow node."""

    pod: Object
    log: Log = field(default_factory=Log)
    before: Log | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0
    reason: str = ""
    restarts: int = 0
    running: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.pod["metadata"]["namespace"], self.pod["metadata"]["name"]

    @property
    def job(self) -> str:
        meta = self.pod["metadata"]
        labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
        return str(notes.get("lab/job") or labels.get("job-name") or meta["name"])


class Cluster:
    """All hollow nodes of one process."""

    def __init__(self, server: str, pki: Path, names: list[str]) -> None:
        self.server, self.pki, self.names = server, pki, names
        self.plays: dict[str, Play] = {}
        self.by_name: dict[tuple[str, str], Play] = {}
        self.starts: Counter[tuple[str, str]] = Counter()
        self.muted: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.ready = asyncio.Event()
        self.kubelet_port = 0

    async def run(self, control_port: int) -> None:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(str(self.pki / "admin.crt"), str(self.pki / "admin.key"))
        connector = aiohttp.TCPConnector(ssl=context, limit=50)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=2**21
        ) as self.http:
            await self.serve(control_port)
            for name in self.names:
                await self.register(name)
                self.spawn(self.beat(name))
            await self.watch()

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def call(self, method: str, path: str, body: Object | None = None, patch: str = "merge") -> Object:
        """Ask the API server, again and again while it is away: tests kill it."""
        while True:
            try:
                return await self.ask(method, path, body, patch)
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.3)

    async def ask(self, method: str, path: str, body: Object | None, patch: str) -> Object:
        kind = f"application/{patch}-patch+json" if method == "PATCH" else "application/json"
        url = f"{self.server}{path}"
        async with self.http.request(
            method, url, data=json.dumps(body) if body is not None else None, headers={"Content-Type": kind}
        ) as answer:
            text = await answer.text()
            if answer.status >= 400 and answer.status not in (404, 409):
                print(f"{method} {path}: {answer.status} {text[:300]}", file=sys.stderr, flush=True)
            return {"code": answer.status, **(json.loads(text) if text.startswith("{") else {})}

    async def serve(self, control_port: int) -> None:
        kubelet = web.Application()
        kubelet.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self.container_logs)
        runner = web.AppRunner(kubelet, access_log=None)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(self.pki / "node.crt"), str(self.pki / "node.key"))
        context.load_verify_locations(str(self.pki / "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.kubelet_port = runner.addresses[0][1]
        control = web.Application(client_max_size=64 * 1024 * 1024)
        control.router.add_get("/ready", self.is_ready)
        control.router.add_get("/count/{namespace}/{job}", self.count)
        control.router.add_post("/pod/{namespace}/{pod}/exit", self.exit)
        control.router.add_post("/pod/{namespace}/{pod}/log", self.append)
        control.router.add_post("/pod/{namespace}/{pod}/truncate", self.truncate)
        control.router.add_post("/node/{node}/{word}", self.node)
        control_runner = web.AppRunner(control, access_log=None)
        await control_runner.setup()
        await web.TCPSite(control_runner, "127.0.0.1", control_port).start()

    # nodes

    async def register(self, name: str) -> None:
        meta = {"name": name, "labels": {"kubernetes.io/hostname": name, "lab/hollow": "true"}}
        await self.call("POST", "/api/v1/nodes", {"metadata": meta})
        lease = {
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _micro()},
        }
        await self.call("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease)

    async def beat(self, name: str) -> None:
        since = now()
        while True:
            if name not in self.muted:
                await self.call(
                    "PATCH", f"/api/v1/nodes/{name}/status", self.node_status(since), "strategic-merge"
                )
                path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
                answer = await self.call("PATCH", path, {"spec": {"renewTime": _micro()}})
                if answer["code"] == 404:
                    await self.register(name)
            await asyncio.sleep(2)

    def node_status(self, since: str) -> Object:
        size = {"cpu": "1000", "memory": "4000Gi", "pods": "3000"}
        fine = {"lastHeartbeatTime": now(), "lastTransitionTime": since, "message": "hollow"}
        quiet = ("MemoryPressure", "DiskPressure", "PIDPressure")
        conditions = [{"type": word, "status": "False", "reason": "Fine", **fine} for word in quiet]
        conditions.append({"type": "Ready", "status": "True", "reason": "KubeletReady", **fine})
        return {
            "status": {
                "capacity": size,
                "allocatable": size,
                "conditions": conditions,
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet_port}},
            }
        }

    # pods

    async def watch(self) -> None:
        while True:
            try:
                await self.follow()
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                print(f"watch: {error!r}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.5)

    async def follow(self) -> None:
        pods = await self.call("GET", "/api/v1/pods")
        for pod in pods.get("items") or []:
            self.take(pod)
        version = pods["metadata"]["resourceVersion"]
        self.ready.set()
        url = f"{self.server}/api/v1/pods?watch=1&resourceVersion={version}&timeoutSeconds=300"
        async with self.http.get(url) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] == "DELETED":
                    self.forget(event["object"])
                elif event["type"] != "BOOKMARK":
                    self.take(event["object"])

    def take(self, pod: Object) -> None:
        meta = pod["metadata"]
        node = pod["spec"].get("nodeName")
        if node not in self.names or node in self.muted:
            return
        uid = meta["uid"]
        if uid not in self.plays:
            if pod["status"].get("phase") in ("Succeeded", "Failed"):
                return
            play = self.plays[uid] = self.by_name[(meta["namespace"], meta["name"])] = Play(pod)
            self.spawn(self.act(play))
        play = self.plays[uid]
        play.pod = pod
        if meta.get("deletionTimestamp"):
            self.spawn(self.end(play))

    def forget(self, pod: Object) -> None:
        play = self.plays.pop(pod["metadata"]["uid"], None)
        if play is not None:
            play.running = False
            play.ended.set()

    async def end(self, play: Play) -> None:
        """What a kubelet does with a deleted pod: TERM, a moment's patience, then the object goes."""
        if play.running:
            await asyncio.sleep(GRACE)
            play.code, play.reason = 143, "Error"
            play.ended.set()
        play.running = False
        namespace, name = play.key
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": play.pod["metadata"]["uid"]}}
        await self.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", body)

    async def act(self, play: Play) -> None:
        notes = play.pod["metadata"].get("annotations") or {}
        does, after = notes.get("lab/does", "healthy"), float(notes.get("lab/after", "0.3"))
        if does == "pending":
            return
        if does in ("imagepull", "configerror"):
            word = "ImagePullBackOff" if does == "imagepull" else "CreateContainerConfigError"
            await self.say(play, "Pending", {"waiting": {"reason": word, "message": f"{BAD_IMAGE} ({does})"}})
            return
        while not play.pod["metadata"].get("deletionTimestamp"):
            await self.once(play, does, after)
            policy = play.pod["spec"].get("restartPolicy", "Always")
            if play.pod["metadata"]["uid"] not in self.plays:
                return
            if policy == "Never" or (policy == "OnFailure" and play.code == 0):
                phase = "Failed" if play.code else "Succeeded"
                await self.say(play, phase, self.terminated(play))
                return
            await self.again(play)

    async def once(self, play: Play, does: str, after: float) -> None:
        """One run of the container."""
        play.ended.clear()
        play.running = True
        self.starts[(play.key[0], play.job)] += 1
        await self.say(play, "Running", {"running": {"startedAt": now()}}, ready=True)
        if does == "healthy":
            self.spawn(self.steps(play))
        elif does != "quiet":
            self.spawn(self.fate(play, does, after))
        await play.ended.wait()
        play.running = False

    async def again(self, play: Play) -> None:
        """The kubelet starts the container again: at once, later with a pause that has a name."""
        await self.say(play, "Running", self.terminated(play))
        await asyncio.sleep(0.2)
        if play.restarts:
            waiting = {
                "waiting": {
                    "reason": "CrashLoopBackOff",
                    "message": "back-off 10s restarting failed container",
                }
            }
            await self.say(play, "Running", waiting, last=self.terminated(play))
            await asyncio.sleep(BACKOFF)
        play.restarts += 1
        play.before, play.log = play.log, Log()

    async def steps(self, play: Play) -> None:
        step, run = 0, play.restarts
        while play.running and play.restarts == run:
            step += 1
            play.log.write(f"step {step}/100000\n".encode())
            await asyncio.sleep(0.2)

    async def fate(self, play: Play, does: str, after: float) -> None:
        await asyncio.sleep(after)
        if does == "finish":
            play.log.write(b"step 1/1\n")
            play.code, play.reason = 0, "Completed"
        elif does.startswith("oom"):
            play.log.write(b"allocating\n")
            play.code, play.reason = 137, "OOMKilled"
        else:
            play.log.write(b"tgcrash: the injected failure\n")
            play.code, play.reason = int(does.partition(":")[2] or 3), "Error"
        play.ended.set()

    def terminated(self, play: Play) -> Object:
        return {
            "terminated": {
                "exitCode": play.code,
                "reason": play.reason or ("Error" if play.code else "Completed"),
                "startedAt": now(),
                "finishedAt": now(),
            }
        }

    async def say(
        self, play: Play, phase: str, state: Object, ready: bool = False, last: Object | None = None
    ) -> None:
        if play.pod["spec"]["nodeName"] in self.muted:
            return
        namespace, name = play.key
        if last is None and play.restarts:
            last = self.terminated(play)
        flags = {"Initialized": True, "Ready": ready, "ContainersReady": ready, "PodScheduled": True}
        body = {
            "metadata": {"uid": play.pod["metadata"]["uid"]},
            "status": {
                "phase": phase,
                "hostIP": "127.0.0.1",
                "startTime": now(),
                "conditions": [
                    {"type": word, "status": "True" if on else "False", "lastTransitionTime": now()}
                    for word, on in flags.items()
                ],
                "containerStatuses": [
                    {
                        "name": one["name"],
                        "image": one["image"],
                        "imageID": "",
                        "ready": ready,
                        "started": ready,
                        "restartCount": play.restarts,
                        "state": state,
                        "lastState": last or {},
                    }
                    for one in play.pod["spec"]["containers"]
                ],
            },
        }
        await self.call("PATCH", f"/api/v1/namespaces/{namespace}/pods/{name}/status", body)

    # what the API server asks of a kubelet

    async def container_logs(self, request: web.Request) -> web.Response:
        play = self.by_name.get((request.match_info["namespace"], request.match_info["pod"]))
        if play is None:
            return web.Response(status=404, text="pod does not exist")
        if play.pod["spec"]["nodeName"] in self.muted:
            assert request.transport is not None
            request.transport.close()
            return web.Response(status=500)
        query = dict(request.query)
        log = play.before if query.get("previous") == "true" else play.log
        if log is None:
            container = request.match_info["container"]
            text = f"previous terminated container {container!r} in pod {play.key[1]!r} not found"
            return web.Response(status=400, text=text)
        return web.Response(body=log.text(query), content_type="text/plain")

    # what tests ask

    async def is_ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready.is_set() else 503)

    def asked(self, request: web.Request) -> Play:
        play = self.by_name.get((request.match_info["namespace"], request.match_info["pod"]))
        if play is None:
            raise web.HTTPNotFound()
        return play

    async def exit(self, request: web.Request) -> web.Response:
        play, how = self.asked(request), await request.json()
        play.code, play.reason = int(how.get("code", 1)), str(how.get("reason", "Error"))
        play.log.write(str(how.get("says", "")).encode())
        play.ended.set()
        return web.Response()

    async def append(self, request: web.Request) -> web.Response:
        self.asked(request).log.write(await request.read())
        return web.Response()

    async def truncate(self, request: web.Request) -> web.Response:
        play = self.asked(request)
        play.log = Log()
        return web.Response()

    async def count(self, request: web.Request) -> web.Response:
        namespace, job = request.match_info["namespace"], request.match_info["job"]
        mine = [play for play in self.plays.values() if play.key[0] == namespace and play.job == job]
        return web.json_response(
            {"starts": self.starts[(namespace, job)], "alive": sum(play.running for play in mine)}
        )

    async def node(self, request: web.Request) -> web.Response:
        name, word = request.match_info["node"], request.match_info["word"]
        if word == "mute":
            self.muted.add(name)
        elif word == "die":  # everything on it is gone with it
            self.muted.add(name)
            for play in self.plays.values():
                if play.pod["spec"]["nodeName"] == name:
                    play.running = False
        else:
            self.muted.discard(name)
            pods = await self.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{name}")
            for pod in pods.get("items") or []:
                self.take(pod)
        return web.Response()


def _micro() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--pki", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("nodes", nargs="+")
    given = parser.parse_args()
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in given.nodes)
    asyncio.run(Cluster(given.server, given.pki, given.nodes).run(given.control))


if __name__ == "__main__":
    main()
