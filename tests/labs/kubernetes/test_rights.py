"""The shipped RBAC is enough, and each right that is taken away is missed by name."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.labs.kubernetes.acting import OPERATORS, Operator, action, custom, fence, started_by_cron, workload
from tests.labs.kubernetes.conftest import Hollow, Kubectl, MakeScheduler, job_of, pod_template
from tests.labs.kubernetes.proxy import Proxy
from tests.labs.kubernetes.test_nodes import whole_nodes
from tests.labs.kubernetes.test_watch import pod_of, seen, started, until_seen
from trainguard.core.action import ActionKind, OutcomeStatus
from trainguard.core.errors import AccessRefusedError
from trainguard.core.evidence import EvidenceKind
from trainguard.core.job import Job
from trainguard.core.observation import Liveness

__all__ = ["whole_nodes"]
pytestmark = pytest.mark.lab("kubernetes")
SHIPPED = Path(__file__).parents[3] / "deployments" / "kubernetes"


@dataclass
class Account:
    """A service account of the test's own, and what is bound to it."""

    kubectl: Kubectl
    namespace: str
    token: str

    async def bind(self, role: str, cluster: bool = False) -> None:
        name = f"{role}-{self.namespace}"
        subject = {"kind": "ServiceAccount", "name": "tg", "namespace": self.namespace}
        ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
        metadata = {"name": name} if cluster else {"name": name, "namespace": self.namespace}
        kind = "ClusterRoleBinding" if cluster else "RoleBinding"
        body = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata}
        await self.kubectl.apply({**body, "roleRef": ref, "subjects": [subject]})

    async def grant(self, rules: list[dict[str, Any]], cluster: bool = False) -> None:
        """Bind a role of exactly these rules, in the namespace or everywhere."""
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"only-{self.namespace}"},
            "rules": rules,
        }
        await self.kubectl.apply(role)
        await self.bind(f"only-{self.namespace}", cluster)


@pytest.fixture
async def account(kubectl: Kubectl, namespace: str) -> AsyncIterator[Account]:
    await kubectl("apply", "-f", str(SHIPPED / "rights.yaml"))
    await kubectl("-n", namespace, "create", "serviceaccount", "tg")
    ask = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/tg/token"
    answer = json.loads(await kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(ask)))
    yield Account(kubectl, namespace, answer["status"]["token"])
    for role in (*shipped(), f"only-{namespace}"):
        await kubectl("delete", "clusterrolebinding", f"{role}-{namespace}", "--ignore-not-found")
    await kubectl("delete", "clusterrole", f"only-{namespace}", "--ignore-not-found")


def shipped() -> dict[str, list[dict[str, Any]]]:
    documents = yaml.safe_load_all((SHIPPED / "rights.yaml").read_text("utf-8"))
    return {one["metadata"]["name"]: one["rules"] for one in documents}


def test_what_bind_yaml_binds_is_shipped() -> None:
    documents = [one for one in yaml.safe_load_all((SHIPPED / "bind.yaml").read_text("utf-8")) if one]
    assert {one["roleRef"]["name"] for one in documents if "roleRef" in one} <= set(shipped())


async def test_the_shipped_rights_are_enough_to_see_collect_and_restart(
    account: Account, make_scheduler: MakeScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    await account.bind("trainguard-watch")
    await account.bind("trainguard-watch-nodes", cluster=True)
    await account.bind("trainguard-restart-jobs")
    scheduler = make_scheduler(account.token)
    job = await started(kubectl, namespace)
    await until_seen(scheduler, job, Liveness.RUNNING)
    access = await scheduler.validate(job)
    assert (access.job_seen, access.logs_readable, access.warnings) == (True, True, ())
    assert ActionKind.RESTART in access.possible
    assert ActionKind.DRAIN_NODE in access.impossible
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    evidence = await scheduler.collect(job, told)
    assert not [item for item in evidence if "could not be read" in item.text]
    assert (
        await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    ).status is OutcomeStatus.DONE
    with pytest.raises(AccessRefusedError):
        await scheduler.perform(
            job,
            action(
                ActionKind.CORDON_NODE,
                (await until_seen(scheduler, job, Liveness.RUNNING)).incarnation,
                nodes=("hollow-a",),
            ),
            fence(),
        )
    assert f"{namespace}/Job/train" in [ref.id for ref in await scheduler.discover(f"namespace={namespace}")]


async def test_the_shipped_rights_let_go_of_a_pod_on_a_node_that_is_off(
    account: Account,
    make_scheduler: MakeScheduler,
    proxy: Proxy,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    whole_nodes: None,
) -> None:
    await account.bind("trainguard-watch")
    await account.bind("trainguard-watch-nodes", cluster=True)
    await account.bind("trainguard-restart-jobs")
    await kubectl.apply(custom("PyTorchJob", namespace))
    pod = await Operator(kubectl, proxy, namespace, "PyTorchJob").make_pod()
    scheduler, job = make_scheduler(account.token), job_of(namespace, "PyTorchJob", "train")
    node = (await until_seen(scheduler, job, Liveness.RUNNING)).nodes[0]
    await hollow.post(f"/node/{node}/die")
    # a person vouches for it; the effect is one that takes no pods away
    await kubectl("taint", "node", node, "node.kubernetes.io/out-of-service=off:NoSchedule")
    lost = await until_seen(scheduler, job, Liveness.FAILED, seconds=70)
    assert lost.native == "NodeLost"
    outcome = await scheduler.perform(job, action(ActionKind.RESTART, lost.incarnation), fence())
    assert outcome.status is OutcomeStatus.DONE, outcome
    assert "NotFound" in await kubectl("-n", namespace, "get", "pod", pod, check=False)


class Case(NamedTuple):
    """An action and the role that allows it."""

    role: str
    kind: str
    what: ActionKind
    cluster: bool = False
    does: str = "healthy"
    when: Liveness = Liveness.RUNNING


ACTIONS = [
    Case("trainguard-restart-jobs", "Job", ActionKind.RESTART, does="oom", when=Liveness.FAILED),
    Case("trainguard-restart-pods", "Pod", ActionKind.RESTART, does="oom", when=Liveness.FAILED),
    Case("trainguard-rollout", "Deployment", ActionKind.RESTART),
    Case("trainguard-rollout", "StatefulSet", ActionKind.RESTART),
    Case(
        "trainguard-delete-pods", "Deployment", ActionKind.DELETE_POD, does="imagepull", when=Liveness.FAILED
    ),
    Case("trainguard-delete-pods", "Job", ActionKind.DELETE_POD, does="imagepull", when=Liveness.PENDING),
    *(
        Case("trainguard-delete-pods", kind, ActionKind.DELETE_POD, does="imagepull", when=Liveness.FAILED)
        for kind in ("StatefulSet", "DaemonSet")
    ),
    *(
        Case("trainguard-delete-pods", kind, ActionKind.DELETE_POD, does="imagepull", when=Liveness.PENDING)
        for kind in sorted(OPERATORS)
    ),
    *(Case("trainguard-restart-jobs", kind, ActionKind.RESTART) for kind in sorted(OPERATORS)),
    Case("trainguard-restart-jobs", "CronJob", ActionKind.RESTART, does="oom", when=Liveness.FAILED),
    Case("trainguard-rollout", "DaemonSet", ActionKind.RESTART),
    Case("trainguard-suspend", "Deployment", ActionKind.SUSPEND),
    Case("trainguard-suspend", "StatefulSet", ActionKind.CANCEL),
    Case("trainguard-suspend", "Job", ActionKind.CANCEL),
    Case("trainguard-suspend", "CronJob", ActionKind.SUSPEND),
    *(Case("trainguard-suspend", kind, ActionKind.SUSPEND) for kind in sorted(OPERATORS)),
    Case("trainguard-cordon", "Job", ActionKind.CORDON_NODE, cluster=True),
    Case("trainguard-cordon", "Job", ActionKind.UNCORDON_NODE, cluster=True),
    Case("trainguard-drain", "Job", ActionKind.DRAIN_NODE, cluster=True),
]


async def placed(kubectl: Kubectl, operator: Operator, namespace: str, case: Case) -> Job:
    """Start what the action is to be done to."""
    if case.kind == "Job":
        return await started(kubectl, namespace, case.does, backoff=int(case.what is ActionKind.DELETE_POD))
    if case.kind == "CronJob":
        return await started_by_cron(kubectl, namespace, case.does)
    if case.kind in OPERATORS:
        await kubectl.apply(custom(case.kind, namespace))
        await operator.make_pod(case.does)
        if case.kind == "RayJob" and case.when is Liveness.RUNNING:
            await operator.say(jobStatus="RUNNING")
        return job_of(namespace, case.kind, "train")
    if case.kind == "Pod":
        pod = {"apiVersion": "v1", "kind": "Pod", **pod_template(case.does, "Never", "train")}
        pod["metadata"] |= {"name": "train", "namespace": namespace}
        await kubectl.apply(pod)
    else:
        await kubectl.apply(workload(case.kind, namespace, case.does))
    return job_of(namespace, case.kind, "train")


@pytest.mark.parametrize("case", ACTIONS, ids=lambda case: f"{case.role}-{case.kind}-{case.what}")
async def test_each_actions_role_is_enough_and_needed(
    account: Account,
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    proxy: Proxy,
    namespace: str,
    case: Case,
) -> None:
    """Beside it only the right to see the job is granted: not even nodes can be read."""
    await account.bind("trainguard-watch")
    operator = Operator(kubectl, proxy, namespace, case.kind)
    job = await placed(kubectl, operator, namespace, case)
    without = make_scheduler(account.token)
    told = await until_seen(without, job, case.when)
    access = await without.validate(job)
    assert "add to a" in access.impossible[case.what]
    wanted = action(case.what, told.incarnation, nodes=told.nodes or ("hollow-c",))
    with pytest.raises(AccessRefusedError):
        await without.perform(job, wanted, fence())
    assert (await seen(without, job)).liveness is case.when
    await account.bind(case.role, case.cluster)
    scheduler = make_scheduler(account.token)
    assert case.what in (await scheduler.validate(job)).possible
    try:
        async with operator.obeying(case.what is ActionKind.SUSPEND and case.kind in OPERATORS):
            outcome = await scheduler.perform(job, wanted, fence())
        assert outcome.status is OutcomeStatus.DONE, outcome
    finally:
        if case.cluster:
            await kubectl("uncordon", *wanted.nodes)


TAKEN = [
    ("pods", "list", "pods can't be read"),
    ("pods", "watch", ""),
    ("pods", "get", ""),
    ("pods/log", "get", "train"),
    ("events", "list", "events could"),
    ("resourcequotas", "list", "resourcequotas"),
    ("jobs", "watch", ""),
    ("jobs", "list", ""),
]


@pytest.mark.parametrize(("resource", "verb", "missed"), TAKEN)
async def test_each_right_that_is_taken_away_degrades_one_thing_and_is_named(
    account: Account,
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    resource: str,
    verb: str,
    missed: str,
) -> None:
    await account.grant(without("trainguard-watch", resource, verb))
    scheduler = make_scheduler(account.token)
    job = await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    access = await scheduler.validate(job)
    assert any(f"{verb} {resource}" in warning for warning in access.warnings), access.warnings
    assert any("add to a" in warning for warning in access.warnings)
    if resource == "pods/log":
        assert not access.logs_readable
    if missed.startswith("pods"):
        assert missed in told.warning
    elif missed:
        evidence = await scheduler.collect(job, told)
        unread = [
            item.text
            for item in evidence
            if item.kind is EvidenceKind.STATUS and "could not be read" in item.text
        ]
        assert any(text.startswith(missed) for text in unread), unread
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    await until_seen(scheduler, job, Liveness.FAILED)


async def test_without_the_right_to_get_a_job_it_is_seen_and_can_not_be_validated(
    account: Account, make_scheduler: MakeScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    await account.grant(without("trainguard-watch", "jobs", "get"))
    scheduler, job = make_scheduler(account.token), await started(kubectl, namespace)
    await until_seen(scheduler, job, Liveness.RUNNING)
    with pytest.raises(AccessRefusedError, match='cannot get resource "jobs"'):
        await scheduler.validate(job)
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    await until_seen(scheduler, job, Liveness.FAILED)


@pytest.mark.parametrize(
    ("resource", "verb", "missed"),
    [
        ("nodes", "get", "node/"),
        ("nodes", "list", ""),
        ("nodes", "watch", ""),
        ("events", "list", "events of node/"),
    ],
)
async def test_each_right_to_nodes_that_is_taken_away_is_named_and_costs_no_verdict(
    account: Account,
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    resource: str,
    verb: str,
    missed: str,
) -> None:
    await account.bind("trainguard-watch")
    await account.bind("trainguard-restart-jobs")
    await account.grant(without("trainguard-watch-nodes", resource, verb), cluster=True)
    scheduler, job = make_scheduler(account.token), await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    warnings = (await scheduler.validate(job)).warnings
    assert len(warnings) == 1
    assert f"no right to {verb} {resource} cluster-wide: add to a ClusterRole" in warnings[0]
    unread = [item.text for item in await scheduler.collect(job, told) if "could not be read" in item.text]
    assert [text for text in unread if not (missed and text.startswith(missed))] == []
    assert bool(unread) == bool(missed)
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    outcome = await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert outcome.status is OutcomeStatus.DONE


def without(role: str, resource: str, verb: str) -> list[dict[str, Any]]:
    """The rules of a shipped role but for one verb on one resource."""
    rules = [
        {
            **rule,
            "resources": [one],
            "verbs": [word for word in rule["verbs"] if (one, word) != (resource, verb)],
        }
        for rule in shipped()[role]
        for one in rule["resources"]
    ]
    return [rule for rule in rules if rule["verbs"]]


async def test_a_rollout_that_could_not_delete_its_pods_is_not_begun(
    account: Account, make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await account.grant([*shipped()["trainguard-watch"], *without("trainguard-rollout", "pods", "delete")])
    await kubectl.apply(workload("StatefulSet", namespace, "healthy"))
    scheduler, job = make_scheduler(account.token), job_of(namespace, "StatefulSet", "train")
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    with pytest.raises(AccessRefusedError, match="delete"):
        await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert (await kubectl.get("statefulset", "train", "-n", namespace))["metadata"]["generation"] == 1


async def test_a_drain_without_the_right_to_evict_leaves_the_node_alone(
    account: Account, make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await account.bind("trainguard-watch")
    await account.grant(without("trainguard-drain", "pods/eviction", "create"), cluster=True)
    scheduler, job = make_scheduler(account.token), await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    drain = action(ActionKind.DRAIN_NODE, told.incarnation, nodes=told.nodes)
    with pytest.raises(AccessRefusedError, match="pods/eviction"):
        await scheduler.perform(job, drain, fence())
    assert "unschedulable" not in (await kubectl.get("node", told.nodes[0]))["spec"]


async def test_without_any_right_nothing_is_known_and_nothing_is_guessed(
    account: Account, make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    scheduler = make_scheduler(account.token)
    assert (await seen(scheduler, job)).liveness is Liveness.UNKNOWN
    for ask in (scheduler.validate(job), scheduler.logs(job), scheduler.discover("*")):
        with pytest.raises(AccessRefusedError) as refused:
            await ask
        assert refused.value.remedy
    told = job_of(namespace, "Job", "nobody")
    assert (await seen(scheduler, told)).liveness is Liveness.UNKNOWN


async def test_a_token_that_is_none_is_refused_as_such(make_scheduler: MakeScheduler, namespace: str) -> None:
    with pytest.raises(AccessRefusedError, match="401"):
        await make_scheduler("nonsense").validate(job_of(namespace, "Job", "train"))
    assert os.environ["TG_KUBE_SERVER"]
