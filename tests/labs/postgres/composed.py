"""The services of deployments/compose as processes on this machine: their own commands, environments and checks.

Docker is not there; names of services become loopback ports of the lab, and /data a folder.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainguard.cli.prefect_server import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
COMPOSE = ROOT / "deployments" / "compose" / "compose.yaml"
PATIENCE = 180.0
AUTH = "keeper:kept-for-the-lab"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<how>:[?-])(?P<rest>[^}]*)\})")


class MissingVariableError(Exception):
    """A variable that the file demands is not set."""


def interpolated(value: Any, given: Mapping[str, str]) -> Any:
    """Fill in variables as Compose does: `${NAME:?why}`, `${NAME:-default}`, and `$$` for a dollar sign."""

    def fill(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        found = given.get(match["name"], "")
        if not found and match["how"] == ":?":
            raise MissingVariableError(match["name"])
        return found or match["rest"]

    if isinstance(value, str):
        return _VARIABLE.sub(fill, value)
    if isinstance(value, Mapping):
        return {name: interpolated(one, given) for name, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, given) for one in value]
    return value


def read(given: Mapping[str, str]) -> dict[str, Any]:
    """Read the file's services. Raises MissingVariableError."""
    services: dict[str, Any] = interpolated(yaml.safe_load(COMPOSE.read_text("utf-8")), given)["services"]
    return services


class Site:
    """One start of the compose file's services."""

    def __init__(self, folder: Path, lab: Mapping[str, str]) -> None:
        self.folder = folder
        self.port, self.worker_port = free_port(), free_port()
        self._lab = Path(lab["TG_PG_LAB"])
        self._places = {
            "@postgres:5432": f"@127.0.0.1:{lab['TG_PG_PORT']}",
            "@redis:6379": f"@127.0.0.1:{lab['TG_REDIS_PORT']}",
            "//server:4200": f"//127.0.0.1:{self.port}",
            "127.0.0.1:4200": f"127.0.0.1:{self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.worker_port}",
        }
        self.services = read(
            {
                "POSTGRES_PASSWORD": lab["TG_PG_PASSWORD"],
                "REDIS_PASSWORD": lab["TG_REDIS_PASSWORD"],
                "PREFECT_AUTH": AUTH,
            }
        )
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Address of the API."""
        return f"http://127.0.0.1:{self.port}/api"

    def environment(self, name: str) -> dict[str, str]:
        """What a service's container has, with the lab's ports; plus what finds this checkout's programs."""
        given = {key: self._placed(str(one)) for key, one in self.services[name]["environment"].items()}
        own = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "LANG": "C.UTF-8"}
        return {
            **own,
            **{key: re.sub(r"^/data\b", "/mnt", one) for key, one in given.items()},
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.worker_port),
            "DO_NOT_TRACK": "1",
        }

    def command(self, name: str) -> list[str]:
        """A service's command; it listens on loopback alone."""
        words = [self._placed(word) for word in self.services[name]["command"]]
        ours = {"0.0.0.0": "127.0.0.1", "4200": str(self.port)}
        return [ours.get(word, word) for word in words]

    def contained(self, name: str) -> list[str]:
        """The command under the file's own restrictions: read-only, without rights, as another user."""
        data = self.folder / f"data-{name}"
        data.mkdir(exist_ok=True)
        return [str(HERE / "contain.sh"), str(data), *self.command(name)]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a service in its container's stead."""
        return self.launch(self.contained(name), self.environment(name), name)

    def launch(self, command: list[str], environment: dict[str, str], log: str) -> subprocess.Popen[bytes]:
        """Start any process that ends with this site, or with the lab where the tests were killed."""
        own = {**environment, "TG_PG_LAB": str(self._lab)}
        with (self.folder / f"{log}.log").open("ab") as output:
            process = subprocess.Popen(
                command, env=own, stdout=output, stderr=output, start_new_session=True, cwd=ROOT
            )
        with (self._lab / "launched").open("a") as pids:
            pids.write(f"{process.pid}\n")
        self._running.append(process)
        return process

    def log(self, name: str) -> str:
        """What a service printed."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        _, *words = self.services[name]["healthcheck"]["test"]
        asked = subprocess.run(
            [self._placed(word) for word in words], env=self.environment(name), capture_output=True
        )
        return asked.returncode == 0

    def until_healthy(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for a service."""
        deadline = time.monotonic() + PATIENCE
        while not self.healthy(name):
            assert process.poll() is None, f"{name} ended: {self.log(name)[-3000:]}"
            assert time.monotonic() < deadline, f"{name} is not healthy: {self.log(name)[-3000:]}"
            time.sleep(0.5)

    def stop(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> int:
        """End one process and its children; gives how it ended."""
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def close(self) -> None:
        """Leave nothing running."""
        for process in reversed(self._running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _placed(self, word: str) -> str:
        for name, place in self._places.items():
            word = word.replace(name, place)
        return word
