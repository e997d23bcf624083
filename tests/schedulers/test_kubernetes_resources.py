"""What a job may use, read from its own words."""

from __future__ import annotations

import pytest

from trainguard.schedulers.kubernetes.kinds import KINDS
from trainguard.schedulers.kubernetes.resources import memory_limit, quantity, time_limit
from trainguard.transports.kube import Object


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("24Mi", 24 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("64Ki", 65536),
        ("1G", 10**9),
        ("129e6", 129_000_000),
        ("500k", 500_000),
        ("128974848", 128974848),
        ("2048m", 2),
        (1024, 1024),
        ("", None),
        ("lots", None),
        ("-5Mi", None),
        (None, None),
    ],
)
def test_quantities_are_read_as_the_api_server_reads_them(text: object, bytes_: int | None) -> None:
    assert quantity(text) == bytes_


def job(**limits: str) -> Object:
    sidecar = {"name": "logs", "resources": {"limits": {"memory": "1Mi"}}}
    containers = [{"name": "main", "resources": {"limits": limits}}, sidecar]
    return {"kind": "Job", "spec": {"template": {"spec": {"containers": containers}}}}


def test_the_limit_is_that_of_the_container_that_trains() -> None:
    assert memory_limit(KINDS["Job"], job(memory="2Gi")) == 2**31
    assert memory_limit(KINDS["Job"], job(cpu="2")) is None


def test_of_several_roles_the_smallest_limit_counts() -> None:
    replicas = {
        role: {"template": {"spec": {"containers": [{"resources": {"limits": {"memory": size}}}]}}}
        for role, size in (("Master", "8Gi"), ("Worker", "4Gi"))
    }
    obj = {"spec": {"pytorchReplicaSpecs": replicas}}
    assert memory_limit(KINDS["PyTorchJob"], obj) == 2**32


def test_of_several_roles_the_limit_of_the_one_that_was_killed_for_memory_counts() -> None:
    replicas = {
        role: {"template": {"spec": {"containers": [{"resources": {"limits": {"memory": size}}}]}}}
        for role, size in (("Master", "8Gi"), ("Worker", "4Gi"))
    }
    killed = {
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "8Gi"}}}]},
        "status": {
            "containerStatuses": [{"name": "main", "lastState": {"terminated": {"reason": "OOMKilled"}}}]
        },
    }
    obj = {"spec": {"pytorchReplicaSpecs": replicas}}
    assert memory_limit(KINDS["PyTorchJob"], obj, [killed]) == 2**33


def test_time_limits_are_found_where_each_kind_has_them() -> None:
    assert time_limit(KINDS["Job"], {"spec": {"activeDeadlineSeconds": 60}}) == 60
    assert time_limit(KINDS["PyTorchJob"], {"spec": {"runPolicy": {"activeDeadlineSeconds": 90}}}) == 90
    jobs = [{"template": {"spec": {"activeDeadlineSeconds": limit}}} for limit in (50, 40)]
    assert time_limit(KINDS["JobSet"], {"spec": {"replicatedJobs": jobs}}) == 40
    assert time_limit(KINDS["Deployment"], {"spec": {"activeDeadlineSeconds": 60}}) is None
