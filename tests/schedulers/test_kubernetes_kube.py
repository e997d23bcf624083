"""The way to the API server: what each refusal becomes, how credentials are read, and what stays secret."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes_asyncio import client
from prefect_kubernetes.credentials import KubernetesClusterConfig, KubernetesCredentials

from tests.schedulers.kubernetes_replay import recorded
from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.core.errors import (
    AccessRefusedError,
    ConfigError,
    NotFoundError,
    RefusedError,
    SchedulerError,
    UnreachableError,
)
from trainguard.schedulers.kubernetes import KubernetesScheduler
from trainguard.transports.kube import Kube
from trainguard.transports.kube_access import KubeAccess, parse_kubeconfig
from trainguard.transports.kube_errors import (
    BudgetError,
    ConflictError,
    ExpiredError,
    LostAnswerError,
    error_of,
)

EVICTION = "/api/v1/namespaces/n/pods/p/eviction"
BUDGET = json.dumps({"details": {"causes": [{"reason": "DisruptionBudget"}]}, "message": "Cannot evict"})
ERRORS = [
    (400, "GET", "/x", "{}", RefusedError),
    (401, "GET", "/x", "Unauthorized", AccessRefusedError),
    (403, "GET", "/x", "{}", AccessRefusedError),
    (404, "GET", "/x", "404 page not found", NotFoundError),
    (409, "PATCH", "/x", '{"reason": "Conflict"}', ConflictError),
    (410, "GET", "/x", "{}", ExpiredError),
    (415, "PATCH", "/x", "{}", RefusedError),
    (422, "PATCH", "/x", "{}", RefusedError),
    (429, "POST", EVICTION, BUDGET, BudgetError),
    (429, "POST", "/x", "{}", UnreachableError),
    (500, "GET", "/x", "{}", UnreachableError),
    (500, "POST", "/x", "{}", LostAnswerError),
    (504, "GET", "/x", "", UnreachableError),
    (302, "GET", "/x", "<html>", UnreachableError),
]


@pytest.mark.parametrize(("status", "method", "path", "body", "kind"), ERRORS)
def test_every_status_is_an_error_of_ours(
    status: int, method: str, path: str, body: str, kind: type[SchedulerError]
) -> None:
    assert type(error_of(status, body, {}, method, path)) is kind


@pytest.mark.parametrize("name", ["http-403-401-rbac", "http-409-422-404-400-429"])
def test_every_recorded_refusal_is_named_and_none_is_taken_for_another(name: str) -> None:
    refused = 0
    for row in recorded("1.36.2")[name]:
        if row["kind"] != "HTTP" or row["response"]["status"] < 400:
            continue
        refused += 1
        answer, asked = row["response"], row["request"]
        body = answer["body"] if isinstance(answer["body"], str) else json.dumps(answer["body"])
        error = error_of(answer["status"], body, answer["headers"], asked["method"], asked["path"])
        wanted = {401: AccessRefusedError, 403: AccessRefusedError, 404: NotFoundError, 409: ConflictError}
        assert isinstance(error, wanted.get(answer["status"], SchedulerError)), row
        assert not isinstance(error, NotFoundError) or answer["status"] == 404
    assert refused >= 9


def test_a_pause_that_was_named_is_kept() -> None:
    error = error_of(429, "{}", {"Retry-After": "7"}, "GET", "/x")
    assert isinstance(error, UnreachableError)
    assert error.retry_after == 7


EXEC = "clusters: [{name: c, cluster: {server: 'https://h'}}]\nusers: [{name: u, user: {exec: {command: touch}}}]\n"
PLUGIN = EXEC.replace("exec: {command: touch}", "auth-provider: {name: gcp, config: {cmd-path: touch}}")


@pytest.mark.parametrize("text", [EXEC, PLUGIN])
def test_a_command_in_pasted_text_is_refused_unless_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match="command") as refused:
        parse_kubeconfig(text)
    assert "allow_exec" in refused.value.remedy
    assert parse_kubeconfig(text, allow_exec=True)
    with pytest.raises(ConfigError):
        KubernetesCluster(kubeconfig=text).make_scheduler()


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "clusters: 3"])
def test_text_that_is_no_kubeconfig_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_kubeconfig(text)


def test_a_pasted_kubeconfig_is_shown_nowhere() -> None:
    text = EXEC.replace("exec: {command: touch}", "token: very-secret")
    block = KubernetesCluster(kubeconfig=text)
    assert "very-secret" not in f"{block!r} {block} {block.model_dump()} {block.access()!r}"
    with pytest.raises(ValueError, match="kubeconfig") as refused:
        KubernetesCluster(kubeconfig="token: very-secret")
    assert "very-secret" not in str(refused.value)


def test_two_ways_in_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of"):
        KubernetesCluster(kubeconfig_path=tmp_path / "config", in_cluster=True)


@dataclass
class Server:
    """A small API server that knows one token."""

    token: str = "one"
    seen: list[str] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append(request.headers.get("Authorization", ""))
        if self.seen[-1] != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized")
        return web.json_response({"kind": "Status", "metadata": {}})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one, app = Server(), web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield one
    await runner.cleanup()


def kubeconfig(url: str, token: str) -> str:
    return (
        f"apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: c, cluster: {{server: '{url}'}}}}]\n"
        f"users: [{{name: u, user: {{token: {token}}}}}, {{name: v, user: {{token: other}}}}]\n"
        "contexts: [{name: a, context: {cluster: c, user: u}}, {name: b, context: {cluster: c, user: v}}]\n"
    )


async def test_a_token_that_was_renewed_in_the_file_is_read_again(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig(server.url, "one"))
    kube = Kube(KubeAccess(path=str(path)))
    await kube.get("/x")
    server.token = "two"
    path.write_text(kubeconfig(server.url, "two"))
    await kube.get("/x")
    assert server.seen == ["Bearer one", "Bearer one", "Bearer two"]
    server.token = "three"
    with pytest.raises(AccessRefusedError):
        await kube.get("/x")
    await kube.close()


async def test_the_context_that_was_named_is_used_and_no_default_is_set(server: Server) -> None:
    before = client.Configuration.get_default_copy().host
    kube = Kube(KubeAccess(text=kubeconfig(server.url, "one"), context="b"))
    server.token = "other"
    await kube.get("/x")
    assert client.Configuration.get_default_copy().host == before
    await kube.close()
    with pytest.raises(RuntimeError):
        await kube.get("/x")


def from_prefect(text: str, current: str, **more: Any) -> KubernetesCluster:
    found = KubernetesClusterConfig(config=yaml.safe_load(text), context_name=current)
    return KubernetesCluster(credentials=KubernetesCredentials(cluster_config=found), **more)


async def test_the_credentials_block_of_prefect_kubernetes_gets_in_and_sets_no_default(
    server: Server,
) -> None:
    before = client.Configuration.get_default_copy().host
    text = kubeconfig(server.url, "one")
    for current, more in (("b", {}), ("a", {"context": "b"})):
        block = from_prefect(text, current, **more)
        kube = Kube(block.access())
        server.token = "other"
        await kube.get("/x")
        await kube.close()
        assert "other" not in f"{block.access()!r}"
    assert server.seen == ["Bearer other", "Bearer other"]
    assert client.Configuration.get_default_copy().host == before


@pytest.mark.parametrize("text", [EXEC, PLUGIN])
def test_a_command_in_the_credentials_block_is_refused_unless_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match="command"):
        from_prefect(text, "a").make_scheduler()
    assert from_prefect(text, "a", allow_exec=True).access().allow_exec


async def test_a_context_that_is_none_is_a_setting_to_mend(server: Server) -> None:
    kube = Kube(KubeAccess(text=kubeconfig(server.url, "one"), context="nowhere"))
    with pytest.raises(ConfigError, match="kubeconfig"):
        await kube.get("/x")


async def test_nobody_listening_is_unreachable_and_nothing_was_sent() -> None:
    kube = Kube(KubeAccess(text=kubeconfig("http://127.0.0.1:9", "one")))
    with pytest.raises(UnreachableError) as refused:
        await kube.create("/x", {"a": 1})
    assert not isinstance(refused.value, LostAnswerError)
    await kube.close()


async def test_a_setting_that_is_wrong_leaves_jobs_unknown_not_gone(tmp_path: Path) -> None:
    from trainguard.core.job import Job, JobRef
    from trainguard.core.observation import Liveness

    scheduler = KubernetesScheduler("c", KubeAccess(path=str(tmp_path / "none")))
    job = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Job/t"), name="t")
    told = (await scheduler.observe([job]))[job.ref]
    await scheduler.close()
    assert (told.liveness, bool(told.reason)) == (Liveness.UNKNOWN, True)


DEPLOYED = Path(__file__).parents[2] / "deployments" / "kubernetes"


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOYED.glob("*.yaml")))
def test_what_is_deployed_can_be_read_and_runs_without_privileges(name: str) -> None:
    for document in yaml.safe_load_all((DEPLOYED / name).read_text("utf-8")):
        template = (document.get("spec") or {}).get("template") if document["kind"] == "Deployment" else None
        if template is not None:
            if document["spec"]["replicas"] == 1:
                assert document["spec"]["strategy"] == {"type": "Recreate"}
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            inner = template["spec"]["containers"][0]["securityContext"]
            assert (inner["allowPrivilegeEscalation"], inner["capabilities"]) == (False, {"drop": ["ALL"]})
        for rule in document.get("rules") or []:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert "secrets" not in rule["resources"]
