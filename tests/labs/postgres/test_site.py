"""deployments/compose, service by service: its own commands, in containers' stead, on a real Postgres and Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.labs.postgres.composed import AUTH, Site
from trainguard.cli.prefect_server import free_port

pytestmark = [pytest.mark.lab("postgres"), pytest.mark.timeout(280)]


def sql(statement: str) -> str:
    """Ask the database as trainguard's own user."""
    words = ["-h", "127.0.0.1", "-p", os.environ["TG_PG_PORT"], "-U", "trainguard", "-d", "trainguard"]
    told = subprocess.run(
        [f"{os.environ['TG_PG_BIN']}/psql", "-qtA", *words, "-c", statement],
        env={"PGPASSWORD": os.environ["TG_PG_PASSWORD"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def test_the_migrations_run_as_a_plain_owner_of_the_database(site: Site) -> None:
    assert sql("select rolsuper or rolcreatedb from pg_roles where rolname = 'trainguard'") == "f"
    assert int(sql("select count(*) from flow_run")) >= 0
    assert site.services["migrate"]["environment"]["PREFECT_API_DATABASE_MIGRATE_ON_START"] == "false"


def test_nobody_without_the_password_gets_in(site: Site) -> None:
    assert httpx.post(f"{site.url}/flows/filter", json={}).status_code == 401
    known = httpx.post(f"{site.url}/flows/filter", json={}, auth=httpx.BasicAuth(*AUTH.split(":")))
    assert known.status_code == 200


def test_the_ui_is_served_from_a_read_only_file_system(site: Site) -> None:
    page = httpx.get(f"http://127.0.0.1:{site.port}/", follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text.lower()


async def test_an_event_goes_through_redis_from_the_server_to_the_services(site: Site) -> None:
    """The server only takes events in; the process of the services writes them into the database."""
    name = f"lab.{uuid4().hex}"
    event = {
        "occurred": "2026-01-01T00:00:00Z",
        "event": name,
        "resource": {"prefect.resource.id": "lab"},
        "id": str(uuid4()),
    }
    async with httpx.AsyncClient(auth=httpx.BasicAuth(*AUTH.split(":"))) as client:
        event["occurred"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        (await client.post(f"{site.url}/events", json=[event])).raise_for_status()
        async with asyncio.timeout(60):
            while sql(f"select count(*) from events where event = '{name}'") != "1":
                await asyncio.sleep(0.2)


def test_the_redis_of_the_file_lets_in_only_who_knows_the_password(site: Site, tmp_path: Path) -> None:
    port = free_port()
    environment = {**site.environment("redis"), "PATH": "/usr/bin:/bin"}
    data = tmp_path / "redis"
    data.mkdir()
    shell, option, script = site.command("redis")
    script = script.replace("dir /data", f"dir /mnt\nport {port}\nbind 127.0.0.1")
    redis = site.launch(
        [str(Path(__file__).with_name("contain.sh")), str(data), shell, option, script], environment, "redis"
    )
    ask = ["redis-cli", "-p", str(port), "ping"]

    def answer(**more: str) -> str:
        return subprocess.run(ask, env={"PATH": "/usr/bin", **more}, capture_output=True, text=True).stdout

    deadline = time.monotonic() + 20
    while "PONG" not in answer(REDISCLI_AUTH=environment["REDISCLI_AUTH"]):
        assert time.monotonic() < deadline, site.log("redis")
        time.sleep(0.1)
    assert "NOAUTH" in answer()
    assert os.environ["TG_REDIS_PASSWORD"] not in Path(f"/proc/{redis.pid}/cmdline").read_text()
    assert site.stop(redis) in (0, -signal.SIGTERM)


def test_the_databases_of_the_lab_pass_the_health_checks_of_the_file(site: Site) -> None:
    lab = os.environ
    for name, port in (("postgres", lab["TG_PG_PORT"]), ("redis", lab["TG_REDIS_PORT"])):
        _, program, *words = site.services[name]["healthcheck"]["test"]
        where = ["-p", port] if name == "postgres" else ["-h", "127.0.0.1", "-p", port]
        environment = {**site.environment(name), "PATH": f"{lab['TG_PG_BIN']}:/usr/bin:/bin"}
        told = subprocess.run([program, *where, *words], env=environment, capture_output=True, text=True)
        assert told.returncode == 0, told


def test_the_worker_makes_its_pool_says_that_it_is_well_and_stops_when_asked(site: Site) -> None:
    worker = site.start("worker")
    site.until_healthy("worker", worker)
    deadline = time.monotonic() + 60
    while sql("select type from work_pool where name = 'guards'") != "trainguard":
        assert time.monotonic() < deadline, site.log("worker")[-3000:]
        time.sleep(0.2)
    while "started!" not in site.log("worker"):  # Prefect's own signal handler trips over its own greeting
        assert time.monotonic() < deadline, site.log("worker")[-3000:]
        time.sleep(0.2)
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    assert time.monotonic() - began < 60
    assert "Traceback" not in site.log("worker"), site.log("worker")[-3000:]
