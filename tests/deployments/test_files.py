"""What deployments/ ships agrees with itself, with the worker as built, and leaves no door open."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import get_current_settings

from tests.labs.postgres.composed import COMPOSE, MissingVariableError, read
from trainguard.worker import GuardWorker
from trainguard.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deployments"
GIVEN = {"POSTGRES_PASSWORD": "p", "REDIS_PASSWORD": "r", "PREFECT_AUTH": "n:a"}
OURS = ("migrate", "server", "services", "worker")
MANIFESTS = sorted((SHIPPED / "kubernetes").glob("*.yaml"))


def composed() -> dict[str, Any]:
    return read(GIVEN)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that a manifest makes."""
    for path in MANIFESTS:
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            if one and one["kind"] == "Deployment":
                yield f"{path.name}:{one['metadata']['name']}", one["spec"]["template"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods():
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{name}:{container['name']}", container


@pytest.mark.parametrize("name", GIVEN)
def test_compose_demands_each_password(name: str) -> None:
    with pytest.raises(MissingVariableError, match=name):
        read({key: value for key, value in GIVEN.items() if key != name})


def test_the_example_names_what_compose_demands_and_gives_nothing() -> None:
    lines = (SHIPPED / "compose" / "env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [f"{name}=" for name in GIVEN]


def test_no_password_is_written_down() -> None:
    secret = re.compile(
        r"(password|auth|secret)\w*\s*[:=]\s*\S+|requirepass\s+\S+|://[^\s/$:]*:[^\s/$]+@", re.I
    )
    harmless = re.compile(r"\$\{|\$\$|secretKeyRef|NAME:PASSWORD|USER:PASSWORD|:PASSWORD@|generic trainguard")
    for path in (COMPOSE, *MANIFESTS, *(SHIPPED / "systemd").glob("*")):
        for line in path.read_text("utf-8").splitlines():
            bare = line.strip().lstrip("#").strip()
            assert not secret.search(bare) or harmless.search(bare), f"{path.name}: {line}"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_and_write_as_little_as_possible(name: str) -> None:
    service = composed()[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_compose_listens_on_loopback_only_and_hides_the_databases() -> None:
    services = composed()
    assert services["server"]["ports"] == ["127.0.0.1:4200:4200"]
    assert [name for name, one in services.items() if one.get("ports")] == ["server"]
    assert services["postgres"]["networks"] == services["redis"]["networks"] == ["behind"]
    assert yaml.safe_load(COMPOSE.read_text())["networks"]["behind"]["internal"] is True


def test_whatever_is_waited_for_says_when_it_is_ready() -> None:
    services = composed()
    for name, one in services.items():
        for other, condition in one.get("depends_on", {}).items():
            assert condition["condition"] in ("service_healthy", "service_completed_successfully"), name
            if condition["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"][0] == "CMD", other


def test_every_pod_is_unprivileged_read_only_and_not_confused_by_its_services_names() -> None:
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["enableServiceLinks"] is False, f"{name}: PREFECT_SERVER_PORT would be a setting"
        assert not pod.get("hostNetwork"), name
        if pod.get("serviceAccountName") is None:
            assert pod["automountServiceAccountToken"] is False, name
    for name, container in containers():
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, name
        assert own["readOnlyRootFilesystem"] is True, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"]["memory"], name


def test_secrets_reach_pods_from_the_secret_alone() -> None:
    for name, container in containers():
        for variable in container.get("env", ()):
            if re.search(r"AUTH|DATABASE_CONNECTION|LEDGER|REDIS|DOCKET", variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "trainguard", name


def workers() -> Iterator[tuple[str, list[str], float, float]]:
    """Each way in which a worker is started: its words, seconds to drain, seconds until it is killed."""
    service = composed()["worker"]
    drain = float(service["environment"]["TRAINGUARD_WORKER_DRAIN_SECONDS"])
    yield "compose", service["command"], drain, float(service["stop_grace_period"].removesuffix("s"))
    for name, pod in pods():
        for container in pod["containers"]:
            if container["args"][:3] == ["prefect", "worker", "start"]:
                given = {one["name"]: one.get("value") for one in container["env"]}
                drain = float(given["TRAINGUARD_WORKER_DRAIN_SECONDS"] or 0)
                yield name, container["args"], drain, pod["terminationGracePeriodSeconds"]


def test_every_worker_is_of_our_type_and_has_time_to_hand_over() -> None:
    found = list(workers())
    assert len(found) == 3
    for name, words, drain, patience in found:
        assert words[words.index("--type") + 1] == GuardWorker.type, name
        assert words[words.index("--pool") + 1] == "guards", name
        assert "--with-healthcheck" in words, name
        assert WorkerSettings.model_fields["drain_seconds"].default <= drain < patience, name


def test_prefect_knows_every_option_that_is_used() -> None:
    used: dict[tuple[str, ...], set[str]] = {}
    for words in [composed()[name]["command"] for name in OURS] + [one["args"] for _, one in containers()]:
        if words[0] == "prefect":
            verb = tuple(word for word in words[1:4] if not word.startswith("-"))
            used.setdefault(verb, set()).update(word for word in words if word.startswith("--"))
    assert ("worker", "start") in used
    for verb, options in used.items():
        said = subprocess.run(
            [sys.executable, "-m", "prefect", *verb, "--help"], capture_output=True, text=True, check=True
        )
        assert not {option for option in options if option not in said.stdout}, verb


def test_probes_ask_where_the_worker_answers() -> None:
    port = get_current_settings().worker.webserver.port
    assert composed()["worker"]["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/health"
    for name, container in containers():
        if container["args"][:3] == ["prefect", "worker", "start"]:
            assert {one["name"]: one["containerPort"] for one in container["ports"]}["health"] == port, name
            assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "health"}, name


def test_compose_and_the_scaled_manifests_set_the_same_things() -> None:
    documents = list(yaml.safe_load_all((SHIPPED / "kubernetes" / "scaled.yaml").read_text("utf-8")))
    data = next(one["data"] for one in documents if one["kind"] == "ConfigMap")
    from_secret = {
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "PREFECT_REDIS_MESSAGING_URL",
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL",
        "PREFECT_SERVER_DOCKET_URL",
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_API_AUTH_STRING",
    }
    for name in ("migrate", "server", "services"):
        given = composed()[name]["environment"]
        assert {key: given[key] for key in given if key not in from_secret} == data, name


def test_the_image_gets_every_folder_that_the_package_is_made_of() -> None:
    text = (SHIPPED / "Dockerfile").read_text()
    mapped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for folder in mapped.values():
        assert f"COPY {folder} {folder}" in text
    for line in text.splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / word).exists() for word in line.split()[1:-1]), line
    assert f"USER {composed()['worker']['user'].partition(':')[0]}" in text


def test_docker_compose_itself_reads_the_file(tmp_path: Path) -> None:
    """Needs Docker's compose plugin, not its engine; Debian has only version 1, which knows no such file."""
    docker = shutil.which("docker-compose")
    if (
        docker is None
        or "version 1." in subprocess.run([docker, "version"], capture_output=True, text=True).stdout
    ):
        pytest.skip(
            "no docker-compose of version 2 on this machine: https://github.com/docker/compose/releases"
        )
    words = [docker, "-f", str(COMPOSE), "config", "--quiet"]
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    assert subprocess.run(words, env={**bare, **GIVEN}, capture_output=True).returncode == 0
    refused = subprocess.run(words, env=bare, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "see env.example" in refused.stderr
