"""The lab's clusters as the tests drive them: as root on the machine, behind the adapter's back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from trainguard.core.job import CheckpointSpec, Job, JobRef, Resume
from trainguard.schedulers.slurm import Settings, SlurmScheduler
from trainguard.transports.ssh import SshTarget

T = TypeVar("T")
HERE = Path(__file__).parent


@dataclass
class Cluster:
    """One of the lab's clusters."""

    facts: dict[str, str]
    made: list[SlurmScheduler] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.facts["NAME"]

    @property
    def folder(self) -> Path:
        return Path(self.facts["DIR"])

    @property
    def lab(self) -> str:
        return self.within(self.folder.parent)

    @property
    def home(self) -> Path:
        return Path(self.facts["USER_KEY"]).parent.parent / "home" / self.facts["USER_NAME"]

    @property
    def accounting(self) -> bool:
        return self.facts["ACCOUNTING"] == "yes"

    def node(self, number: int) -> str:
        return f"{self.facts['PREFIX']}{number}"

    def target(self, *, ops: bool = False, port: int | None = None) -> SshTarget:
        who = "OPS" if ops else "USER"
        known = Path(self.facts["KNOWN_HOSTS"])
        if port is not None:  # a proxy: the same key under another port
            lines = known.read_text().replace(f":{self.facts['PORT']} ", f":{port} ")
            known = known.with_name(f"known_hosts.{port}")
            known.write_text(lines)
        return SshTarget(
            host=self.facts["HOST"],
            port=port or int(self.facts["PORT"]),
            user=self.facts[f"{who}_NAME"],
            key_file=self.facts[f"{who}_KEY"],
            known_hosts=str(known),
        )

    def scheduler(
        self, *, ops: bool = False, port: int | None = None, path: tuple[str, ...] = (), settle: float = 4.0
    ) -> SlurmScheduler:
        made = SlurmScheduler(
            self.name,
            self.target(ops=ops, port=port),
            path=path,
            settings=Settings(settle=settle, requeue_delay=3),
        )
        self.made.append(made)
        return made

    async def close(self) -> None:
        for made in self.made:
            await made.close()
        self.made.clear()

    def run(self, *argv: str, user: str | None = None, check: bool = True, lab: str = "") -> str:
        """Run one of Slurm's commands as the job's owner, or as another user."""
        env = {
            "SLURM_CONF": self.within(Path(self.facts["CONF"])),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": self.within(self.home),
            "LAB": lab,
        }
        who = user or self.facts["USER_NAME"]
        call = argv if who == "root" else ("runuser", "-u", who, "--", *argv)
        if "CHROOT" in self.facts:
            call = ("chroot", self.facts["CHROOT"], *call)
        done = subprocess.run(
            call, env=env, cwd=self.home, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def job_folder(self) -> Path:
        folder = self.home / f"run-{uuid.uuid4().hex[:10]}"
        folder.mkdir()
        for path in (folder, folder / "ckpt"):
            path.mkdir(exist_ok=True)
            self.give(path)
        return folder

    def give(self, path: Path) -> None:
        """Make the job's owner the owner of a file."""
        owner = self.home.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    def within(self, path: Path) -> str:
        """Name a path as the cluster sees it: that of another Debian lives in a chroot."""
        return str(path).removeprefix(self.facts.get("CHROOT", ""))

    def submit(self, folder: Path, script: str, *options: str, args: tuple[str, ...] = ()) -> str:
        """Submit a batch script from a job's folder; gives the id."""
        path = folder / "job.sh"
        path.write_text(script)
        path.chmod(0o755)
        self.give(path)
        chdir = f"--chdir={self.within(folder)}"
        return self.run("sbatch", "--parsable", chdir, *options, self.within(path), *args).strip()

    def job(
        self, native: str, folder: Path | None = None, resume: Resume | None = None, **more: object
    ) -> Job:
        spec = None
        if folder is not None:
            spec = CheckpointSpec(directory=self.within(folder / "ckpt"), resume=resume or Resume())
        ref = JobRef(scheduler="slurm", cluster=self.name, id=native)
        return Job.model_validate({"ref": ref, "name": f"job {native}", "checkpoints": spec, **more})

    # Faults

    @staticmethod
    def gone(pid: int) -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True

    def pid(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def signal(self, daemon: str, number: int) -> None:
        os.kill(self.pid(daemon), number)

    def start(self, daemon: str, *argv: str) -> None:
        """Start a daemon that was stopped."""
        self.run(daemon, *argv, user="root")

    def stop_munge(self) -> None:
        pid = self.pid("munged")
        self.signal("munged", signal.SIGTERM)
        self.wait(lambda: self.gone(pid), 10, "munged has ended")

    def start_munge(self) -> None:
        self.run(
            "bash", str(HERE / "cluster.sh"), "munge", self.name, user="root", lab=str(self.folder.parent)
        )

    def kill_node(self, number: int) -> None:
        self.signal(f"slurmd-{self.node(number)}", signal.SIGKILL)

    def revive_node(self, number: int) -> None:
        node = self.node(number)
        pid = self.folder / "run" / f"slurmd-{node}.pid"
        if not pid.exists() or not Path(f"/proc/{pid.read_text().strip()}").exists():
            self.start("slurmd", "-N", node)
        self.wait(lambda: self._up(node), 120, f"{node} is up")

    def _up(self, node: str) -> bool:
        state = self.run("sinfo", "-h", "-N", "-n", node, "-p", "main", "-o", "%T").strip()
        if state.startswith(("down", "drain")):
            self.run("scontrol", "update", f"nodename={node}", "state=resume", user="root", check=False)
        return state in {"idle", "mixed", "allocated"}

    def mend(self) -> None:
        """Take back what an interrupted test left: nodes that are down or drained."""
        for node in set(self.run("sinfo", "-h", "-N", "-t", "down,drain", "-o", "%N", check=False).split()):
            self.run("scontrol", "update", f"nodename={node}", "state=resume", user="root", check=False)

    def fault(self, name: str, number: int, text: str = "") -> Path:
        path = self.folder / "faults" / f"{name}.{self.node(number)}"
        path.write_text(text)
        path.chmod(0o644)
        return path

    @staticmethod
    def wait(look: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not look():
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s: {what}")
            time.sleep(0.2)

    def state(self, native: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", native, "-o", "%T", check=False).strip()


async def until(look: Callable[[], Awaitable[T | None]], what: str, seconds: float = 120.0) -> T:
    """Ask until there is an answer."""
    end = time.monotonic() + seconds
    while True:
        answer = await look()
        if answer is not None:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.3)


class Proxy:
    """A way to the login node that can be cut, and counts connections. It runs in threads of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._goal = (host, port)
        self._door: socket.socket | None = None
        self._pipes: set[socket.socket] = set()
        self.port = 0
        self.connections = 0

    def open(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def cut(self) -> None:
        """Close the door and everything that went through it."""
        if self._door is not None:
            self._door.shutdown(socket.SHUT_RDWR)
            self._door.close()
            self._door = None
        for pipe in list(self._pipes):
            self._end(pipe)

    def _end(self, pipe: socket.socket) -> None:
        self._pipes.discard(pipe)
        with contextlib.suppress(OSError):
            pipe.shutdown(socket.SHUT_RDWR)
        pipe.close()

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                near, _ = door.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(self._goal)
            self._pipes |= {near, far}
            for one, two in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(one, two), daemon=True).start()

    def _pump(self, one: socket.socket, two: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                two.sendall(data)
        except OSError:
            pass
        for pipe in (one, two):
            self._end(pipe)
