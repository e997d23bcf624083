#!/usr/bin/env python3
"""Runs a training command so that it outlives whoever started it, and can be told to restart it.

One file, standard library only, Python 3.8 or later, Linux. Copy it to an instance and run it there:

    python supervisor.py start --config supervisor.toml -- python train.py --lr 3e-4
    python supervisor.py status STATE        # one JSON object
    python supervisor.py tell STATE stop     # also: restart, free_disk, install, set_aside
    python supervisor.py logs STATE --cursor ''

Three processes, so that none but the training itself can end the training:

    starter      gone as soon as the command runs
    supervisor   owns the attempts, writes state.json, obeys the inbox; may be killed and started again
    shim         one an attempt: parent of the command, writes its log and its exit; minds nothing else

The command writes into a FIFO that it holds open itself: it gets no SIGPIPE when the shim dies, and waits at
worst until the next supervisor reads on. What is true is kept in files that are written once
(`attempts/N/{spec,started,exit,stopped}.json`, `results/FENCE.json`); state.json is their summary.

Files below the state folder:

    spec.json        command, configuration, working directory       env.json   the environment (mode 0600)
    state.json       see docs/supervisor.md                          lock, trainer.lock   flock
    attempts/0001/   spec, started, exit, stopped, the FIFO          logs/attempt-0001.log, .000067108864.log
    inbox/FENCE.json commands    results/FENCE.json their results    evidence/FENCE/  saved before a kill

Log pieces are named by the byte at which they start in the attempt's stream, so that a position in the stream
stays good over rotation, truncation and deletion.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import difflib
import errno
import fcntl
import fnmatch
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Json = dict[str, Any]

VERSION = 1
STATUSES = ("pending", "running", "retrying", "done", "failed", "stopped", "refused")
"""`pending`: before attempt 1. `stopped`: ended by its owner or a guard, never revived by itself.
`refused`: the gate said no. The others are what they say."""
OVER = ("done", "failed", "stopped", "refused")
FENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}\Z")
MIB = 1 << 20
FAILPOINTS = (
    "command-seen",
    "command-accepted",
    "evidence-saved",
    "old-killed",
    "spec-written",
    "shim-spawned",
    "attempt-started",
    "state-written",
    "result-written",
)
"""Between a command's arrival and its end; a test names the one at which the supervisor is killed."""
SHIM_FAILPOINTS = ("shim-locked", "command-forked", "command-recorded")
"""The same for a shim that starts a command."""


class SupervisorError(Exception):
    """Something the user must mend. `field` is the setting, `remedy` the next thing to do."""

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{field}: {problem}" + (f"\n  {remedy}" if remedy else ""))
        self.field, self.problem, self.remedy = field, problem, remedy


class StateError(Exception):
    """The state folder could not be read: nothing is known about the job."""


class MissingError(StateError):
    """There is no such state folder, or it never was one."""


class Refusal(Exception):
    """A command is refused; nothing was changed."""


# ---------------------------------------------------------------- files


def failpoint(name: str) -> None:
    """Die here, as kill -9 would, where a test asked for it: TRAINGUARD_FAILPOINT=NAME@FILE, once per FILE."""
    wanted, _, marker = os.environ.get("TRAINGUARD_FAILPOINT", "").partition("@")
    if wanted == name:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace a file whole or not at all. Raises OSError, and leaves the old file, when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = json.dumps(value, indent=1, sort_keys=True).encode("utf-8", "surrogateescape")
    descriptor = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(str(temporary), str(path))  # noqa: PTH105 - one idiom for the whole function
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    descriptor = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems can't
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Json | None:
    """Read a small JSON object; None where there is no file. Raises StateError for everything else."""
    try:
        with path.open("rb") as file:
            data = file.read(8 * MIB + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}") from error
    try:
        value = json.loads(data.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise StateError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise StateError(f"{path}: not a JSON object")
    return value


def take_lock(path: Path, wait: float = 0.0) -> int | None:
    """Take an exclusive lock that the kernel frees when we die; None where another holds it."""
    descriptor = os.open(str(path), os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        else:
            return descriptor


# ---------------------------------------------------------------- processes


def boot_id() -> str:
    """Name this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Name the set of process ids that ours belongs to."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - Path.readlink needs Python 3.9
    except OSError:
        return ""


def stat_of(pid: int) -> list[str] | None:
    """Split /proc/PID/stat after the command's name: state is [0], parent [1], session [3]."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rfind(")") + 2 :].split()


def start_of(pid: int) -> int | None:
    """Tell when a living process started, in clock ticks since boot: with its pid, its identity."""
    fields = stat_of(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_alive(pid: object, started: object) -> bool:
    """Tell whether the very process that was recorded still runs. A zombie does not."""
    return isinstance(pid, int) and pid > 0 and start_of(pid) == started


def all_pids() -> list[int]:
    """List the processes that we can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def descendants(root: int) -> set[int]:
    """Find all living descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        fields = stat_of(pid)
        if fields is not None and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), []):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def carrying(token: str) -> set[int]:
    """Find the living processes whose environment names this attempt, whoever their parent is now."""
    mark = f"TRAINGUARD_ATTEMPT={token}".encode()
    found = set()
    for pid in all_pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if mark in environment.split(b"\0") and start_of(pid) is not None:
            found.add(pid)
    return found


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def tree_usage(pids: Iterable[int]) -> tuple[float, int]:
    """Add up processor seconds and resident bytes."""
    ticks, pages = 0, 0
    for pid in pids:
        fields = stat_of(pid)
        if fields is not None:
            ticks += int(fields[11]) + int(fields[12])
            pages += int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def proportional_memory(pid: int) -> int:
    """Give a process's share of memory in bytes: pages that several processes map count in parts."""
    try:
        match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return int(match.group(1)) * 1024 if match else tree_usage([pid])[1]


def tail_of(path: Path, size: int) -> bytes:
    """Read at most `size` bytes before a file's end; nothing where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
    except OSError:
        return b""


def output_of(argv: Sequence[str], timeout: float = 5.0) -> str:
    """Run a small tool and give what it says; an empty text where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,uuid,utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)


def parse_gpus(text: str, visible: str | None = None) -> list[Json]:
    """Read nvidia-smi's table, only the GPUs that CUDA_VISIBLE_DEVICES names. Memory in bytes."""
    wanted = None if visible is None else {word.strip() for word in visible.split(",")}
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 5 or not cells[0].isdigit():
            continue
        if (
            wanted is not None
            and cells[0] not in wanted
            and not any(w and cells[1].startswith(w) for w in wanted)
        ):
            continue
        numbers = [float(cell) if re.match(r"[\d.]+\Z", cell) else None for cell in cells[2:]]
        used, total = ((None if n is None else int(n * MIB)) for n in numbers[1:])
        gpus.append(
            {"index": int(cells[0]), "percent": numbers[0], "memory_used": used, "memory_total": total}
        )
    return gpus


class GpuSampler:
    """Asks nvidia-smi without ever waiting for it: a broken driver makes it hang."""

    def __init__(self, visible: str | None) -> None:
        self.visible = visible
        self.tool = shutil.which("nvidia-smi")
        self.process: subprocess.Popen[bytes] | None = None
        self.asked = 0.0
        self.gpus: list[Json] | None = None

    def poll(self, every: float) -> None:
        """Take a finished answer, or ask again after `every` seconds."""
        if self.tool is None:
            return
        now = time.monotonic()
        if self.process is None:
            if now - self.asked >= every or not self.asked:
                self.asked = now
                self.process = subprocess.Popen(
                    GPU_QUERY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
        elif self.process.poll() is not None:
            text = self.process.stdout.read().decode("utf-8", "replace") if self.process.stdout else ""
            self.gpus = parse_gpus(text, self.visible) if self.process.returncode == 0 else None
            self._forget()
        elif now - self.asked > 20:
            self.process.kill()
            self.gpus = None
            self._forget()

    def _forget(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None


# ---------------------------------------------------------------- configuration

SIZES = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": MIB}
SIZES.update({"g": 10**9, "gb": 10**9, "gib": 1 << 30, "t": 10**12, "tb": 10**12, "tib": 1 << 40})

DEFAULTS: Json = {
    "state": "",
    "name": "",
    "project": "",
    "command": [],
    "cwd": "",
    "env": {},
    "sample_seconds": 2.0,
    "stop_seconds": 5.0,
    "leftover_seconds": 30.0,
    "linger_seconds": 3600.0,
    "faulthandler": True,
    "retry": {"max": 0, "delay_seconds": 10.0, "exit_codes": [], "fixes": []},
    "log": {"max_bytes": "64MiB", "keep": 16},
    "memory": {"limit": 0, "max": 0, "method": "auto"},
    "gate": {"disk_free": "200MiB", "disk_paths": [], "memory": 0, "gpu_memory": 0},
    "resume": {"by": "nothing", "name": ""},
    "checkpoints": {"directory": ""},
    "heartbeat": {"file": "", "step_pattern": ""},
    "eval": {"by": "argument", "name": "", "values": []},
    "free_disk": {"paths": [], "patterns": [], "older_than_seconds": 3600.0},
    "install": {"python": "", "packages": {}, "commands": {}},
}
SIZE_FIELDS = {
    "log.max_bytes",
    "memory.limit",
    "memory.max",
    "gate.disk_free",
    "gate.memory",
    "gate.gpu_memory",
}
CHOICES = {
    "memory.method": ("auto", "cgroup", "watchdog"),
    "resume.by": ("argument", "environment", "symlink", "nothing"),
    "eval.by": ("argument", "environment"),
}
FIXES = ("install_dependency", "free_disk", "reduce_eval_size")


def parse_size(value: object, field: str) -> int:
    """Read 1073741824, "1GiB" or "1 GB" as bytes."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return int(value)
    match = re.match(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z", value) if isinstance(value, str) else None
    if match is None or match.group(2).lower() not in SIZES:
        raise SupervisorError(field, f"{value!r} is no size", 'write bytes as a number, or "512MiB", "4GiB"')
    return int(float(match.group(1)) * SIZES[match.group(2).lower()])


def same_kind(value: object, default: object) -> bool:
    """Tell whether a value can stand where the default stands."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(default))


def checked(raw: Any, defaults: Json = DEFAULTS, prefix: str = "") -> Json:
    """Fill in defaults and refuse what is misspelt or of the wrong kind. Raises SupervisorError."""
    for key in raw:
        if key not in defaults:
            near = difflib.get_close_matches(key, list(defaults), n=1)
            remedy = (
                f"did you mean {prefix}{near[0]}?" if near else f"there are: {', '.join(sorted(defaults))}"
            )
            raise SupervisorError(prefix + key, "no such setting", remedy)
    result: Json = {}
    for key, default in defaults.items():
        field, value = prefix + key, raw.get(key, default)
        if field in SIZE_FIELDS:
            result[key] = parse_size(value, field)
        elif not same_kind(value, default):
            raise SupervisorError(field, f"{value!r} should be a {type(default).__name__}")
        elif isinstance(default, dict) and default:
            result[key] = checked(value, default, f"{field}.")
        else:
            result[key] = value
        if value not in CHOICES.get(field, (value,)):
            raise SupervisorError(field, f"{value!r} is none of {', '.join(CHOICES[field])}")
    return result


def check_config(raw: Json) -> Json:
    """Check a whole configuration, also what single fields can't tell."""
    config = checked(raw)
    for fix in config["retry"]["fixes"]:
        if fix not in FIXES:
            near = difflib.get_close_matches(str(fix), FIXES, n=1)
            raise SupervisorError(
                "retry.fixes", f"no fix is called {fix!r}", f"did you mean {(near or FIXES)[0]}?"
            )
    if config["log"]["max_bytes"] < 4096 or config["log"]["keep"] < 1:
        raise SupervisorError("log", "max_bytes must be at least 4096 and keep at least 1")
    if not all(isinstance(word, str) for word in config["command"]):
        raise SupervisorError("command", "must be a list of words", 'write ["python", "train.py"]')
    if not all(isinstance(value, str) for value in config["env"].values()):
        raise SupervisorError("env", "every value must be a text", 'write WORKERS = "4"')
    try:
        re.compile(config["heartbeat"]["step_pattern"])
    except re.error as error:
        raise SupervisorError("heartbeat.step_pattern", f"not a regular expression: {error}") from error
    return config


def load_config(path: Path | None) -> Json:
    """Read supervisor.toml, supervisor.json, or JSON from standard input (`-`). Raises SupervisorError with what to mend."""
    if path is None:
        return check_config({})
    standard_input = str(path) == "-"
    try:
        data = sys.stdin.buffer.read() if standard_input else path.read_bytes()
    except OSError as error:
        raise SupervisorError("--config", f"{path}: {error.strerror}") from error
    try:
        if standard_input or path.suffix == ".json":
            raw = json.loads(data.decode())
        else:
            import tomllib

            raw = tomllib.loads(data.decode())
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        raise SupervisorError(
            "--config", f"Python {version} can't read TOML", "write the same settings as supervisor.json"
        ) from None
    except ValueError as error:
        raise SupervisorError("--config", f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise SupervisorError("--config", f"{path} holds no table of settings")
    return check_config(raw)


# ---------------------------------------------------------------- log pieces


def piece_path(logs: Path, attempt: int, start: int) -> Path:
    """Name the piece of an attempt's log that begins at byte `start`."""
    name = f"attempt-{attempt:04d}"
    return logs / (f"{name}.{start:012d}.log" if start else f"{name}.log")


def pieces(logs: Path, attempt: int) -> list[tuple[int, Path]]:
    """List an attempt's log pieces with the byte at which each starts. Raises OSError."""
    pattern = re.compile(rf"attempt-{attempt:04d}(?:\.(\d{{12}}))?\.log\Z")
    found = []
    for name in os.listdir(str(logs)):  # noqa: PTH208
        match = pattern.match(name)
        if match:
            found.append((int(match.group(1) or 0), logs / name))
    return sorted(found)


class LogWriter:
    """Appends to the pieces of one attempt's log. Never raises: a full disk costs log, not the training."""

    def __init__(self, logs: Path, attempt: int, max_bytes: int, keep: int) -> None:
        self.logs, self.attempt, self.max_bytes, self.keep = logs, attempt, max_bytes, keep
        self.descriptor: int | None = None
        self.start = self.size = self.dropped = 0
        self.problem = ""
        self.position = 0
        with contextlib.suppress(OSError):
            for start, path in pieces(logs, attempt):
                self.position = max(self.position, start + path.stat().st_size)

    def write(self, data: bytes) -> None:
        """Append, in a new piece where the old one is full, cut short or deleted."""
        try:
            self._make_room()
            if self.dropped and self.descriptor is not None:
                note = f"\n[trainguard] {self.dropped} bytes of log were lost: {self.problem}\n"
                self._put(note.encode())
                self.dropped = 0
            cut = self._cut(data)
            self._put(data[:cut])
            if cut < len(data):
                self._close()
                self._make_room()
                self._put(data[cut:])
        except OSError as error:
            self.dropped += len(data)
            self.problem = error.strerror or str(error)

    def _cut(self, data: bytes) -> int:
        """Find where the data should go on in a new piece: after the first line end past the limit."""
        room = self.max_bytes - self.size
        if len(data) <= room:
            return len(data)
        end = data.find(b"\n", max(0, room))
        return end + 1 if end >= 0 else len(data)

    def _make_room(self) -> None:
        if self.descriptor is not None:
            stat = os.fstat(self.descriptor)
            if self.size >= self.max_bytes or stat.st_size < self.size or not stat.st_nlink:
                self._close()
        if self.descriptor is None:
            self.start = self.position
            path = piece_path(self.logs, self.attempt, self.start)
            self.descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self.size = os.fstat(self.descriptor).st_size
            self._name_current(path)
            for _, old in pieces(self.logs, self.attempt)[: -self.keep]:
                old.unlink()

    def _name_current(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            temporary = self.logs / ".current.log"
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            temporary.symlink_to(path.name)
            temporary.replace(self.logs / "current.log")

    def _put(self, data: bytes) -> None:
        if self.descriptor is None:
            return
        while data:
            written = os.write(self.descriptor, data)
            self.size += written
            self.position += written
            data = data[written:]

    def _close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def line_end(data: bytes) -> int:
    """Find the end of the last whole line; a carriage return ends one too (progress bars)."""
    return max(data.rfind(b"\n"), data.rfind(b"\r")) + 1


def whole_characters(data: bytes) -> int:
    """Find how much of the data does not tear its last UTF-8 character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if need > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def read_span(found: list[tuple[int, Path]], offset: int, size: int) -> tuple[int, bytes, bool]:
    """Read up to `size` bytes of the stream from `offset`, over pieces.

    Returns where the data begins (later than `offset` if that part is lost), the data, and whether what comes
    next in the stream is lost.
    """
    begin, position = -1, offset
    parts: list[bytes] = []
    for index, (start, path) in enumerate(found):
        following = found[index + 1][0] if index + 1 < len(found) else None
        if following is not None and position >= following:
            continue
        if position < start:
            if parts:
                return begin, b"".join(parts), True
            position = start
        room = size - (position - begin if parts else 0)
        with path.open("rb") as file:
            file.seek(position - start)
            data = file.read(room if following is None else min(room, following - position))
        if data:
            begin = position if not parts else begin
            parts.append(data)
            position += len(data)
            if len(data) == room:
                break
    return (begin if parts else position), b"".join(parts), False


def usable(data: bytes, full: bool, over: bool, tear: bool) -> int:
    """Tell how much of the data can be given out: whole lines, and more only where waiting gains nothing."""
    if over and not full:
        return len(data)
    end = line_end(data)
    if not end and full and tear:
        end = whole_characters(data) or len(data)
    return end


def newest_start(logs: Path, attempt: int, limit: int) -> int:
    """Find where to begin so that at most `limit` bytes come, at the beginning of a line."""
    found = pieces(logs, attempt)
    if not found:
        return 0
    last_start, last = found[-1]
    end = last_start + last.stat().st_size
    begin = max(found[0][0], end - limit)
    if begin == 0:
        return 0
    at, data, _ = read_span(found, begin - 1 if begin > found[0][0] else begin, min(limit, 65536))
    newline = data.find(b"\n")
    return at + newline + 1 if newline >= 0 and at + newline + 1 < end else begin


def read_logs(folder: Path, cursor: str, limit: int) -> Json:
    """Give what is new in the logs of all attempts since the cursor.

    Returns {"chunks": [{"attempt", "offset", "data", "skipped", "first_line"}], "cursor", "more"}. A cursor that
    can't be understood counts as empty. Raises StateError where the logs can't be read.
    """
    logs = folder / "logs"
    numbers = attempt_numbers(folder)
    if not numbers:
        raise MissingError(f"{folder}: no attempt was ever started here")
    try:
        attempt, offset, lines = parse_cursor(cursor, numbers)
        if attempt is None:
            attempt = numbers[-1]
            offset = newest_start(logs, attempt, limit)
            lines = 0 if offset == 0 else None
        return _read_on(folder, attempt, offset, lines, limit, numbers)
    except OSError as error:
        raise StateError(f"{logs}: {error.strerror or error}") from error


def parse_cursor(cursor: str, numbers: list[int]) -> tuple[int | None, int, int | None]:
    """Split a cursor into attempt, byte, and lines read so far (None: the beginning was skipped)."""
    match = re.match(r"(\d{1,9}):(\d{1,18}):(\d{1,18}|-)\Z", cursor)
    if match is None or int(match.group(1)) not in numbers:
        return None, 0, None
    return int(match.group(1)), int(match.group(2)), None if match.group(3) == "-" else int(match.group(3))


def _read_on(
    folder: Path, attempt: int, offset: int, lines: int | None, limit: int, numbers: list[int]
) -> Json:
    chunks: list[Json] = []
    left = limit
    while True:
        newest = attempt == numbers[-1]
        over = not newest or (folder / "attempts" / f"{attempt:04d}" / "exit.json").exists()
        at, data, gap = _span(folder / "logs", attempt, offset, left)
        full = len(data) == left
        end = usable(data, full, over or gap, left == limit)
        if at != offset:
            lines = None
        if end:
            first = None if lines is None else lines + 1
            data = data[:end]
            chunks.append(
                {"attempt": attempt, "offset": at, "data": data, "skipped": at - offset, "first_line": first}
            )
            lines = None if lines is None else lines + data.count(b"\n")
            offset, left = at + end, left - end
        if full or (newest and not gap):
            cursor = f"{attempt}:{offset}:{'-' if lines is None else lines}"
            return {"chunks": chunks, "cursor": cursor, "more": full and bool(chunks)}
        if not gap:
            attempt, offset, lines = min(n for n in numbers if n > attempt), 0, 0


def _span(logs: Path, attempt: int, offset: int, size: int) -> tuple[int, bytes, bool]:
    try:
        return read_span(pieces(logs, attempt), offset, size)
    except FileNotFoundError:
        return read_span(
            pieces(logs, attempt), offset, size
        )  # a piece was rotated away meanwhile: look again


def attempt_numbers(folder: Path) -> list[int]:
    """List the attempts that were ever made here, in order. Raises StateError."""
    try:
        names = os.listdir(str(folder / "attempts"))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror or error}") from error
    return sorted(int(n) for n in names if n.isdigit() and (folder / "attempts" / n / "spec.json").exists())


# ---------------------------------------------------------------- memory limits


class CgroupLimit:
    """A memory limit that the kernel keeps, in a control group of the attempt's own (version 1 or 2)."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self.version = folder, version

    @classmethod
    def make(cls, name: str, limit: int) -> CgroupLimit | None:
        """Make the group below our own; None where we may not, or where there is no memory controller."""
        own = own_cgroup()
        if own is None:
            return None
        version, parent = own
        group = cls(parent / name, version)
        try:
            group.folder.mkdir(exist_ok=True)
            if version == 2:
                (group.folder / "memory.max").write_text(str(limit))
                with contextlib.suppress(OSError):
                    (group.folder / "memory.swap.max").write_text("0")
            else:
                (group.folder / "memory.limit_in_bytes").write_text(str(limit))
                with contextlib.suppress(OSError):
                    (group.folder / "memory.memsw.limit_in_bytes").write_text(str(limit))
        except OSError:
            group.remove()
            return None
        return group

    def enter(self) -> None:
        """Move the calling process into the group."""
        (self.folder / "cgroup.procs").write_text("0" if self.version == 2 else str(os.getpid()))

    def kills(self) -> int:
        """Count the processes that the kernel killed here for memory."""
        return oom_kills(self.folder, self.version) or 0

    def remove(self) -> None:
        """Remove the group; it stays while a process is in it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def own_cgroup() -> tuple[int, Path] | None:
    """Find our own memory control group as (version, folder)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return 1, first_folder(Path("/sys/fs/cgroup/memory"), path)
    for line in lines:
        if line.startswith("0::"):
            folder = first_folder(Path("/sys/fs/cgroup"), line[3:])
            return (2, folder) if (folder / "cgroup.controllers").exists() else None
    return None


def first_folder(root: Path, path: str) -> Path:
    """Find the group's folder; inside a container the path may lead nowhere and the root is the group."""
    folder = root / path.lstrip("/")
    return folder if folder.is_dir() else root


def oom_kills(folder: Path, version: int) -> int | None:
    """Read how many processes of a control group were killed for memory."""
    name = "memory.events" if version == 2 else "memory.oom_control"
    try:
        match = re.search(r"^oom_kill (\d+)$", (folder / name).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) if match else None


def memory_available() -> int | None:
    """Tell how many bytes a new process can have: of the machine, or of our control group if that is less."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    available = int(match.group(1)) * 1024 if match else None
    own = own_cgroup()
    if own is None:
        return available
    names = (
        ("memory.max", "memory.current")
        if own[0] == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    try:
        limit, used = (int((own[1] / name).read_text()) for name in names)
    except (OSError, ValueError):  # "max": no limit
        return available
    return min(available, max(0, limit - used)) if available is not None else max(0, limit - used)


# ---------------------------------------------------------------- one attempt


class Attempt:
    """The files of one attempt, and what they and /proc say of it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.state_folder, self.number = folder, number
        self.folder = folder / "attempts" / f"{number:04d}"

    def read(self, name: str) -> Json | None:
        """Read spec, started, exit or stopped. Raises StateError where it is garbage."""
        return read_json(self.folder / f"{name}.json")

    def write(self, name: str, value: Json) -> None:
        """Write one of the attempt's facts. Raises OSError."""
        write_json(self.folder / f"{name}.json", value)

    @property
    def spec(self) -> Json:
        """Give what the attempt was to run. Raises StateError."""
        spec = self.read("spec")
        if spec is None:
            raise StateError(f"{self.folder}: no spec.json")
        return spec

    def command_alive(self) -> bool:
        """Tell whether the training command itself runs."""
        started = self.read("started") or {}
        same_boot = started.get("boot_id") == boot_id()
        return same_boot and is_alive(started.get("pid"), started.get("pid_started"))

    def shim_alive(self) -> bool:
        """Tell whether its shim runs."""
        started = self.read("started") or {}
        return is_alive(started.get("shim"), started.get("shim_started"))

    def processes(self, thorough: bool = True) -> set[int]:
        """Find every living process of the attempt, wherever it went in the process tree.

        Not `thorough` means below its shim only: enough to measure, not to be sure that all are gone.
        """
        started = self.read("started") or {}
        found = carrying(str(self.spec["token"])) if thorough else set()
        if self.command_alive():
            found |= {int(started["pid"])} | descendants(int(started["pid"]))
        if self.shim_alive():
            found |= descendants(int(started["shim"]))
            found.discard(int(started["shim"]))
        found.discard(os.getpid())
        return found


class Shim:
    """Parent of one attempt's command. Writes its log and its end, keeps its memory limit, outlives everybody."""

    def __init__(self, folder: Path, number: int) -> None:
        self.attempt = Attempt(folder, number)
        self.spec = self.attempt.spec
        log = self.spec["log"]
        self.log = LogWriter(folder / "logs", number, log["max_bytes"], log["keep"])
        self.limit: CgroupLimit | None = None
        self.watchdog = 0
        self.over_limit = 0
        self.weigh_at = 0.0
        self.outer_kills: int | None = None
        self.pid = 0
        self.child = True

    def run(self) -> int:
        """Start the command unless that was done before, and stay until its last process is gone."""
        folder = self.attempt.folder
        if take_lock(folder / "lock") is None or self.attempt.read("exit") is not None:
            return 0
        started = self.attempt.read("started")
        if started is not None and not self.attempt.command_alive():
            same = started.get("boot_id") == boot_id()
            self._record(
                None, None, "its end was not seen" if same else "the machine was restarted", started["at"]
            )
            return 1
        failpoint("shim-locked")
        if take_lock(self.attempt.state_folder / "trainer.lock", wait=20.0) is None:
            self._record(None, None, "not started: another attempt of this job still runs")
            return 1
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        become_subreaper()
        pipe = folder / "out.pipe"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(str(pipe), 0o600)
        source = os.open(str(pipe), os.O_RDWR | os.O_NONBLOCK)
        self._limit_memory()
        if started is not None:
            self._rejoin(started)
        elif not self._start(pipe):
            return 1
        self._follow(source)
        self._see_off(source)
        if self.limit is not None:
            self.limit.remove()
        return 0

    def _rejoin(self, started: Json) -> None:
        """Take over a command whose shim died: read on where its FIFO was left."""
        self.pid, self.child = int(started["pid"]), False
        started.update(shim=os.getpid(), shim_started=start_of(os.getpid()))
        self.attempt.write("started", started)

    def _tree(self) -> set[int]:
        return descendants(os.getpid()) if self.child else self.attempt.processes()

    def _limit_memory(self) -> None:
        limit, method = self.spec["memory_limit"], self.spec["memory_method"]
        if limit and method != "watchdog":
            self.limit = CgroupLimit.make(f"trainguard-{self.spec['token']}", limit)
        if limit and self.limit is None:
            if method == "cgroup":
                self._say(
                    "memory.method is cgroup, but no control group could be made here: watching instead"
                )
            self.watchdog = limit
        own = own_cgroup()
        self.outer_kills = oom_kills(own[1], own[0]) if own else None

    def _start(self, pipe: Path) -> bool:
        """Fork; tell the world who the command is; only then let it begin."""
        go_read, go_write = os.pipe()
        error_read, error_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go_write)
            self._become_command(pipe, go_read, error_write)
        os.close(error_write)
        os.close(go_read)
        failpoint("command-forked")
        self.attempt.write(
            "started",
            {
                "pid": self.pid,
                "pid_started": start_of(self.pid),
                "shim": os.getpid(),
                "shim_started": start_of(os.getpid()),
                "at": time.time(),
                "boot_id": boot_id(),
                "memory_method": "cgroup" if self.limit else "watchdog" if self.watchdog else "",
            },
        )
        failpoint("command-recorded")
        os.write(go_write, b"g")
        os.close(go_write)
        problem = os.read(error_read, 4096).decode("utf-8", "replace")
        os.close(error_read)
        if problem:
            os.waitpid(self.pid, 0)
            self._say(problem)
            self._record(127, None, f"the command could not be started: {problem}")
        return not problem

    def _become_command(self, pipe: Path, go: int, error: int) -> None:
        """In the child: take on everything the command needs, wait for the go, become it. Never returns."""
        try:
            os.setsid()
            if self.limit is not None:
                self.limit.enter()
            output = os.open(str(pipe), os.O_RDWR)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.spec["cwd"])
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            environment = (read_json(self.attempt.state_folder / "env.json") or {}).get("env", {})
            environment.update(self.spec["env"])
            if not os.read(go, 1):
                os._exit(125)
            os.execvpe(self.spec["argv"][0], self.spec["argv"], environment)  # noqa: S606 - no shell: its virtue
        except (OSError, StateError, ValueError) as fault:
            os.write(error, str(fault).encode()[:4000])
        finally:
            os._exit(127)

    def _follow(self, source: int) -> None:
        """Write the log until the command ends, then record how it ended."""
        status = None
        while status is None:
            self._pump(source, 0.1 if self.watchdog else 0.2)
            self._watch_memory()
            status = self._reap()
            if not self.child and status is None and not self.attempt.command_alive():
                break
        deadline = time.monotonic() + 5
        while self._pump(source, 0) and time.monotonic() < deadline:
            pass
        if status is None:
            self._record(None, None, "its end was not seen: its shim had died before")
        else:
            self._record(*split_status(status), "")

    def _pump(self, source: int, wait: float) -> bool:
        """Move what is in the FIFO into the log; True if there was something."""
        if not select.select([source], [], [], wait)[0]:
            return False
        try:
            data = os.read(source, 1 << 18)
        except BlockingIOError:
            return False
        self.log.write(data)
        return bool(data)

    def _reap(self) -> int | None:
        """Take leave of ended children; give the command's status if it is among them."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == self.pid:
                found = status

    def _watch_memory(self) -> None:
        """Without a control group: kill the tree once it holds more than its limit, as Slurm does.

        Resident memory counts what forked workers share once for each of them. So before anything is killed
        the shares are counted, which costs the command time: at most once a second.
        """
        if not self.watchdog or self.over_limit or time.monotonic() < self.weigh_at:
            return
        tree = self._tree()
        if tree_usage(tree)[1] <= self.watchdog:
            return
        used = sum(proportional_memory(pid) for pid in tree)
        self.weigh_at = time.monotonic() + 1.0
        if used > self.watchdog:
            self.over_limit = used
            self._say(
                f"memory: {used} bytes in {len(tree)} processes exceed the limit of {self.watchdog}: "
                f"killed with SIGKILL"
            )
            signal_all(tree, signal.SIGKILL)

    def _oom_killed(self, number: int | None) -> bool | None:
        """Tell whether memory ended the command; None where nobody can tell."""
        if self.over_limit or (self.limit is not None and self.limit.kills()):
            return True
        if number != signal.SIGKILL:
            return False
        own = own_cgroup()
        now = oom_kills(own[1], own[0]) if own else None
        if now is not None and self.outer_kills is not None and now > self.outer_kills:
            return True
        return False if self.limit is not None else None

    def _record(self, code: int | None, number: int | None, reason: str, at: float | None = None) -> None:
        oom = self._oom_killed(number) if self.pid else False
        if oom and not reason:
            limit = self.spec["memory_limit"]
            reason = f"killed for memory{f' under a limit of {limit >> 20} MiB' if limit else ''}"
        value: Json = {"exit_code": code, "exit_signal": number, "oom_killed": oom, "reason": reason}
        value.update(at=at or time.time(), memory_peak=self.over_limit or None, log_dropped=self.log.dropped)
        while True:
            try:
                self.attempt.write("exit", value)
            except OSError:  # a full disk: how it ended must not get lost
                time.sleep(1.0)
            else:
                return

    def _see_off(self, source: int) -> None:
        """Wait for what the command left behind, then end that too; it would hold GPUs and ports."""
        deadline = time.monotonic() + float(self.spec["leftover_seconds"])
        while self._tree():
            self._pump(source, 0.1)
            self._reap()
            late = time.monotonic() - deadline
            if late > 0:
                signal_all(self._tree(), signal.SIGKILL if late > 5 else signal.SIGTERM)
        while self._pump(source, 0):
            pass

    def _say(self, text: str) -> None:
        self.log.write(f"[trainguard] {time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n".encode())


def become_subreaper() -> None:
    """Become the parent of all orphans below us, so that none escapes. PR_SET_CHILD_SUBREAPER, prctl(2)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def split_status(status: int) -> tuple[int | None, int | None]:
    """Split a wait status into exit code and signal; one of them is None."""
    return (None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None)


# ---------------------------------------------------------------- the gate before attempt 1


def free_bytes(path: Path) -> int | None:
    """Tell how much can be written below a path, or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(str(path)).free
    except OSError:
        return None


def human(size: int) -> str:
    """Write bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def check_command(spec: Json, environment: Json) -> None:
    """Check that there is something to run, and where. Raises SupervisorError."""
    command, cwd = spec["command"], Path(spec["cwd"])
    if not cwd.is_dir():
        raise SupervisorError("cwd", f"{cwd} is no folder", "make it, or set cwd")
    if not command:
        raise SupervisorError("command", "nothing to run", "write it after --, or set command")
    word = command[0]
    program = str(cwd / word) if "/" in word and not word.startswith("/") else word
    if shutil.which(program, path=environment.get("PATH", os.defpath)) is None:
        there = Path(program).exists()
        problem = "is not executable" if there else "was not found"
        raise SupervisorError(
            "command", f"{word} {problem}", f"chmod +x {word}" if there else "check PATH and spelling"
        )
    if "python" in Path(word).name and len(command) > 1 and command[1].endswith(".py"):
        script = cwd / command[1]
        if not script.is_file():
            raise SupervisorError("command", f"{script} was not found", "check the script's path and cwd")


def check_room(config: Json, folder: Path, cwd: Path) -> None:
    """Check disk, memory and GPU memory, each where it is asked for. Raises SupervisorError."""
    gate = config["gate"]
    for path in [folder, *(cwd / word for word in gate["disk_paths"])]:
        free = free_bytes(path)
        if free is not None and free < gate["disk_free"]:
            problem = f"{human(free)} free at {path}, {human(gate['disk_free'])} asked for"
            raise SupervisorError("gate.disk_free", problem, "free some, or lower gate.disk_free")
    available = memory_available()
    wanted = max(gate["memory"], 0)
    if available is not None and available < wanted:
        problem = f"{human(available)} available, {human(wanted)} asked for"
        raise SupervisorError("gate.memory", problem, "end other processes, or lower gate.memory")
    if gate["gpu_memory"]:
        gpus = parse_gpus(output_of(GPU_QUERY, 15), os.environ.get("CUDA_VISIBLE_DEVICES"))
        free_gpu = [
            gpu["memory_total"] - gpu["memory_used"] for gpu in gpus if gpu["memory_total"] is not None
        ]
        if not free_gpu or min(free_gpu) < gate["gpu_memory"]:
            have = human(min(free_gpu)) + " free" if free_gpu else "no GPU could be read with nvidia-smi"
            problem = f"{have}, {human(gate['gpu_memory'])} asked for on each GPU"
            raise SupervisorError(
                "gate.gpu_memory", problem, "end what holds the GPU, or lower gate.gpu_memory"
            )


# ---------------------------------------------------------------- evidence, before anything is killed


def stacks_of(pid: int) -> str:
    """Describe where a process is: its Python stack where py-spy can read it, and what the kernel says."""
    parts = [f"== process {pid}"]
    for name in ("cmdline", "wchan", "syscall", "stack", "status"):
        try:
            text = (
                Path(f"/proc/{pid}/{name}")
                .read_bytes()[:4000]
                .replace(b"\0", b" ")
                .decode("utf-8", "replace")
            )
        except OSError as error:
            text = f"({error.strerror})"
        parts.append(f"-- {name}\n{text.strip()}")
    threads = []
    with contextlib.suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir())[:64]:
            with contextlib.suppress(OSError):
                state = (stat_of(int(task.name)) or ["?"])[0]
                threads.append(
                    f"{task.name} {state} {(task / 'wchan').read_text()} {(task / 'comm').read_text().strip()}"
                )
    parts.append("-- threads (id, state, wchan, name)\n" + "\n".join(threads))
    if shutil.which("py-spy"):
        parts.append(
            "-- py-spy dump\n" + (output_of(("py-spy", "dump", "--pid", str(pid)), 10) or "(failed)")
        )
    return "\n".join(parts)


def kernel_log(since: float) -> str:
    """Read what the kernel said since a time, each line with its time of day; empty where we may not.

    At most 4,000 lines: an out-of-memory report alone has hundreds.
    """
    lines = kernel_lines(output_of(("dmesg",)), since, time.time() - time.monotonic())
    if not lines:
        argv = (
            "journalctl",
            "-k",
            "--no-pager",
            "-q",
            "-o",
            "short-iso",
            "-n",
            "4000",
            f"--since=@{int(since)}",
        )
        text = output_of(argv)
        lines = [] if "No entries" in text or "No journal files" in text else text.splitlines()
    return "\n".join(lines[-4000:])


def kernel_lines(text: str, since: float, booted_at: float) -> list[str]:
    """Pick dmesg's lines since a time, and write the time of day where it has seconds since boot."""
    lines = []
    for line in text.splitlines():
        match = re.match(r"\[\s*(\d+\.\d+)\] (.*)", line)
        at = booted_at + float(match.group(1)) if match else 0.0
        if match and at >= since - 1.0:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
            lines.append(f"{stamp}+0000 kernel: {match.group(2)}")
    return lines


def save_evidence(attempt: Attempt, folder: Path) -> None:
    """Save stacks, last lines, GPU and kernel log of a running attempt. Best effort: never stops a command."""
    if (folder / "complete").exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pids = sorted(attempt.processes())[:16]
        (folder / "stacks.txt").write_text("\n\n".join(stacks_of(pid) for pid in pids))
        (folder / "last_lines.txt").write_bytes(last_bytes(attempt, 65536))
        (folder / "gpu.txt").write_text(output_of(("nvidia-smi",), 10))
        started = attempt.read("started") or {}
        (folder / "kernel.txt").write_text(kernel_log(float(started.get("at", 0))))
        (folder / "complete").touch()
    except OSError as error:
        complain(f"evidence in {folder} is incomplete: {error}")


def last_bytes(attempt: Attempt, size: int) -> bytes:
    """Read the end of an attempt's log."""
    try:
        found = pieces(attempt.state_folder / "logs", attempt.number)
    except OSError:
        return b""
    data = b""
    for _, path in reversed(found):
        data = tail_of(path, size - len(data)) + data
        if len(data) >= size:
            break
    return data


def complain(text: str) -> None:
    """Write a line into supervisor.log, or to the terminal in the foreground."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} supervisor {os.getpid()}: {text}\n")
        sys.stderr.flush()


def kill_attempt(attempt: Attempt, grace: float, stacks: bool = False) -> set[int]:
    """End every process of an attempt: SIGTERM, then SIGKILL. Gives those that would not die.

    With `stacks` it first sends SIGABRT, upon which Python's faulthandler writes all stacks into the log.
    """
    if stacks:
        for pid in attempt.processes():
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(
                    pid, resource.RLIMIT_CORE, (0, resource.prlimit(pid, resource.RLIMIT_CORE)[1])
                )
        signal_all(attempt.processes(), signal.SIGABRT)
        wait_until_gone(attempt, 2.0)
    signal_all(attempt.processes(), signal.SIGTERM)
    signal_all(attempt.processes(), signal.SIGCONT)
    if wait_until_gone(attempt, grace):
        deadline = time.monotonic() + 15
        while attempt.processes() and time.monotonic() < deadline:
            signal_all(attempt.processes(), signal.SIGKILL)
            wait_until_gone(attempt, 0.5)
    return attempt.processes()


def wait_until_gone(attempt: Attempt, seconds: float) -> set[int]:
    """Wait until no process of the attempt lives; gives the rest."""
    deadline = time.monotonic() + seconds
    while True:
        alive = attempt.processes()
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


# ---------------------------------------------------------------- what changes from attempt to attempt


def with_argument(argv: Sequence[str], name: str, value: str) -> list[str]:
    """Give the command with an option set, in place of the one it had. `--x=` means one word, `--x` two."""
    words, joined = list(argv), name.rstrip("=") + "="
    for index, word in enumerate(words):
        if word.startswith(joined):
            return [*words[:index], joined + value, *words[index + 1 :]]
        if word == name and index + 1 < len(words):
            return [*words[: index + 1], value, *words[index + 2 :]]
    return [*words, joined + value] if name.endswith("=") else [*words, name, value]


def link_path(resume: Json, cwd: Path) -> Path:
    """Find the link that tells where to resume; a relative one lies in the checkpoint directory."""
    return cwd / str(resume.get("directory") or "") / str(resume["name"])


def check_resume(resume: Json, cwd: Path) -> None:
    """Refuse a way of resuming that can't work. Raises Refusal."""
    by = resume.get("by")
    if by not in CHOICES["resume.by"]:
        raise Refusal(f"resume.by {by!r} is none of {', '.join(CHOICES['resume.by'])}")
    if by != "nothing" and not resume.get("name"):
        raise Refusal(f"resume.name is empty, and resume.by is {by}")
    if by == "symlink" and resume.get("path"):
        link = link_path(resume, cwd)
        if link.exists() and not link.is_symlink():
            raise Refusal(f"{link} is no link: it will not be replaced")
        if not link.parent.is_dir():
            raise Refusal(f"{link.parent} is no folder: no link can be made there")


def replace_link(link: Path, target: str) -> None:
    """Point a link at a checkpoint, at once."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.replace(link)


def compose(spec: Json, number: int, sticky: Json) -> Json:
    """Write down everything that attempt `number` needs: the declared command with the current changes."""
    config, argv, env = spec["config"], list(spec["command"]), {}
    declared, index = config["eval"], sticky.get("eval_index")
    if index is not None:
        value = str(declared["values"][index])
        if declared["by"] == "argument":
            argv = with_argument(argv, declared["name"], value)
        else:
            env[declared["name"]] = value
    resume = sticky.get("resume") or {}
    if resume.get("path") and resume["by"] == "argument":
        argv = with_argument(argv, resume["name"], resume["path"])
    if resume.get("path") and resume["by"] == "environment":
        env[resume["name"]] = resume["path"]
    env["TRAINGUARD_RESUME_FROM"] = resume.get("path") or ""
    token = f"{number}-{uuid.uuid4().hex[:16]}"
    env.update(TRAINGUARD_ATTEMPT=token, TRAINGUARD_ATTEMPT_NUMBER=str(number))
    return {
        "number": number,
        "token": token,
        "argv": argv,
        "env": env,
        "cwd": spec["cwd"],
        "created_at": time.time(),
        "log": config["log"],
        "leftover_seconds": config["leftover_seconds"],
        "memory_limit": sticky.get("memory_limit", config["memory"]["limit"]),
        "memory_method": config["memory"]["method"],
        "sticky": sticky,
    }


# ---------------------------------------------------------------- cheap fixes

MISSING_MODULE = re.compile(rb"No module named '([A-Za-z_][A-Za-z0-9_]*)")
MISSING_TOOL = re.compile(
    rb"command '([\w.+-]+)' failed: No such file|([\w.+-]+): (?:command )?not found|"
    rb"([\w.+-]+) is required to load C\+\+ extensions|No such file or directory: '([\w.+-]+)'"
)
DISK_FULL = re.compile(rb"No space left on device|Disk quota exceeded")
OUT_OF_MEMORY = re.compile(rb"CUDA out of memory|OutOfMemoryError|RESOURCE_EXHAUSTED|MemoryError")


def choose_fix(log: bytes, oom_killed: bool, config: Json, eval_index: int | None) -> Json | None:
    """Choose the cheap fix that the end of a failed attempt's log asks for, among those that are allowed."""
    allowed = config["retry"]["fixes"]
    wanted = missing_dependency(log, config["install"]) if "install_dependency" in allowed else None
    if wanted is not None:
        return {"fix": "install_dependency", "package": wanted}
    if "free_disk" in allowed and config["free_disk"]["paths"] and DISK_FULL.search(log):
        return {"fix": "free_disk"}
    left = (eval_index if eval_index is not None else -1) + 1 < len(config["eval"]["values"])
    if "reduce_eval_size" in allowed and left and (oom_killed or OUT_OF_MEMORY.search(log)):
        return {"fix": "reduce_eval_size"}
    return None


def missing_dependency(log: bytes, install: Json) -> str | None:
    """Find the last missing module or tool in a log that the owner has declared, by its exact name."""
    for match in reversed(list(MISSING_MODULE.finditer(log))):
        if match.group(1).decode() in install["packages"]:
            return match.group(1).decode()
    for match in reversed(list(MISSING_TOOL.finditer(log))):
        tool = next(group for group in match.groups() if group).decode()
        for known in install["commands"]:
            if str(known).lower() == tool.lower():
                return str(known)
    return None


def install_argv(config: Json, command: Sequence[str], name: str) -> list[str]:
    """Find how a dependency is installed: only as the owner wrote it down, by its exact name. Raises Refusal."""
    install = config["install"]
    if name in install["commands"]:
        return [str(word) for word in install["commands"][name]]
    known: dict[str, str] = install["packages"]
    wanted = known.get(name) or (name if name in known.values() else None)
    if wanted is None:
        raise Refusal(f"install.packages and install.commands do not name {name!r}")
    python = install["python"] or (command[0] if "python" in Path(command[0]).name else "python3")
    return [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--", wanted]


def run_install(argv: list[str], environment: Json, cwd: str) -> str:
    """Install; give the last line of what was said. Raises Refusal where it failed."""
    try:
        done = subprocess.run(
            argv,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Refusal(f"{argv[0]} could not be run: {error}") from error
    last = (done.stdout.decode("utf-8", "replace").strip().splitlines() or [""])[-1][:500]
    if done.returncode:
        raise Refusal(f"{' '.join(argv[:4])} ended with code {done.returncode}: {last}")
    return last


def deletable(config: Json, cwd: Path) -> Iterator[Path]:
    """Find the files that free_disk may delete: by declared pattern, below declared folders, old, no links."""
    rule = config["free_disk"]
    newest = time.time() - rule["older_than_seconds"]
    for word in rule["paths"]:
        root = cwd / word
        for folder, folders, names in os.walk(str(root), followlinks=False):
            folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink()]
            for name in names:
                path = Path(folder) / name
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in rule["patterns"]):
                    with contextlib.suppress(OSError):
                        stat = path.lstat()
                        if not path.is_symlink() and path.is_file() and stat.st_mtime < newest:
                            yield path


def run_free_disk(config: Json, cwd: Path) -> str:
    """Delete what may be deleted. Raises Refusal where nothing is declared or nothing was there."""
    if not config["free_disk"]["paths"] or not config["free_disk"]["patterns"]:
        raise Refusal("free_disk.paths and free_disk.patterns declare nothing that may be deleted")
    freed = count = 0
    for path in list(deletable(config, cwd)):
        with contextlib.suppress(OSError):
            size = path.lstat().st_blocks * 512
            path.unlink()
            freed, count = freed + size, count + 1
    if not count:
        raise Refusal("there was nothing that free_disk may delete")
    return f"{count} files deleted, {human(freed)} freed"


def check_set_aside(path: Path, roots: Sequence[Path]) -> None:
    """Let only an existing thing below a checkpoint directory be moved. Raises Refusal."""
    if not any(root in path.parents for root in roots):
        raise Refusal(f"{path} is not below a declared checkpoint directory")


def run_set_aside(path: Path, fence: str, note: str) -> str:
    """Move a bad checkpoint aside, within its folder, with a note. Never deletes. Idempotent by its fence.

    The new name is of the kind that checkpoints.py gives, so that neither it nor a training finds it again.
    """
    target = path.with_name(f".{path.name}.trainguard-set-aside-{fence}")
    if not os.path.lexists(target):
        if not os.path.lexists(path):
            raise Refusal(f"{path} does not exist")
        path.rename(target)
        sync_folder(target.parent)
    said = {"was": str(path), "reason": note, "at": time.time()}
    write_json(target.with_name(f"{target.name}.json"), said)
    return f"moved to {target}"


# ---------------------------------------------------------------- the supervisor

STEP = re.compile(
    rb"(?:\b(?:global_?)?(?:step|iter(?:ation)?)s?[\"']?\s*[:=]?\s*\[?\s*(\d{1,12})(?:\s*/\s*(\d{1,12}))?)"
    rb"|\|\s*(\d{1,12})/(\d{1,12})\s*\[",
    re.IGNORECASE,
)
COMMANDS = ("restart", "stop", "start", "free_disk", "install", "set_aside", "quit")


def find_step(data: bytes, pattern: str) -> tuple[int | None, int | None]:
    """Find the last step, and the maximum where one is printed with it."""
    expression = re.compile(pattern.encode(), re.MULTILINE) if pattern else STEP
    found = list(expression.finditer(data))
    if not found:
        return None, None
    last = found[-1]
    groups = last.groupdict() or dict(zip(("step", "total", "step2", "total2"), last.groups()))  # noqa: B905
    step, total = groups.get("step") or groups.get("step2"), groups.get("total") or groups.get("total2")
    return (int(step) if step and step.isdigit() else None), (
        int(total) if total and total.isdigit() else None
    )


class Supervisor:
    """Owns one state folder's attempts while it lives; everything it knows is in that folder."""

    def __init__(self, folder: Path, foreground: bool = False) -> None:
        self.folder, self.foreground = folder, foreground
        spec = read_json(folder / "spec.json")
        if spec is None:
            raise MissingError(f"{folder}: no spec.json; start the job first")
        self.spec, self.config = spec, spec["config"]
        self.environment: Json = (read_json(folder / "env.json") or {}).get("env", {})
        self.shims: list[subprocess.Popen[bytes]] = []
        self.gpu = GpuSampler(self.environment.get("CUDA_VISIBLE_DEVICES"))
        self.spawned_at, self.spawns = 0.0, 0
        self.sampled_at = self.cpu_seconds = 0.0
        self.retry_at: float | None = None
        self.over_since = time.monotonic()
        self.leaving = 0
        self.shown = ""
        self.state = self._first_state()
        numbers = attempt_numbers(folder)
        self.attempt = Attempt(folder, numbers[-1]) if numbers else None
        if self.attempt is not None:
            self._recall()

    def _first_state(self) -> Json:
        try:
            old = read_json(self.folder / "state.json") or {}
        except StateError as error:
            complain(f"{error}: made anew from the attempts' own files")
            old = {}
        me: Json = {"pid": os.getpid(), "pid_started": start_of(os.getpid()), "host": socket.gethostname()}
        generation = int((old.get("supervisor") or {}).get("generation", 0)) + 1
        me.update(
            generation=generation, boot_id=boot_id(), pid_namespace=pid_namespace(), started_at=time.time()
        )
        base: Json = {
            "version": VERSION,
            "status": "pending",
            "status_since": time.time(),
            "reason": "",
            "attempt": 0,
        }
        base.update({key: old[key] for key in ("status", "status_since", "reason", "fixes") if key in old})
        base.update(name=self.spec["name"], project=self.config["project"], supervisor=me)
        base.setdefault("fixes", [])
        base["retries_max"] = self.config["retry"]["max"]
        return base

    def _recall(self) -> None:
        """Take the newest attempt up where its files say it is."""
        assert self.attempt is not None
        spec, started = self.attempt.spec, self.attempt.read("started") or {}
        sticky = spec["sticky"]
        self.state.update(
            attempt=self.attempt.number,
            token=spec["token"],
            pid=started.get("pid"),
            pid_started=started.get("pid_started"),
            shim=started.get("shim"),
            shim_started=started.get("shim_started"),
            started_at=started.get("at"),
            resume_from=(sticky.get("resume") or {}).get("path", ""),
            memory_limit=spec["memory_limit"],
            memory_method=started.get("memory_method", ""),
            fix=sticky.get("fix", ""),
            retries_used=sticky.get("retry", 0),
            fence=sticky.get("fence", ""),
            exit_code=None,
            exit_signal=None,
            oom_killed=None,
            ended_at=None,
            next_attempt_at=None,
        )
        ended = self.attempt.read("exit")
        if ended is None:
            self._status("running", "")
        else:
            self._ended(ended)

    def _status(self, status: str, reason: str) -> None:
        if status != self.state["status"]:
            self.state["status_since"] = time.time()
            if status in OVER:
                self.over_since = time.monotonic()
        self.state.update(status=status, reason=reason)

    def save(self, durable: bool = True) -> None:
        """Write state.json; a full disk makes it old, nothing else."""
        self.state["updated_at"] = time.time()
        self.state["attempts"] = self._history()
        try:
            write_json(self.folder / "state.json", self.state, durable)
        except OSError as error:
            complain(f"state.json could not be written: {error}")

    def _history(self) -> list[Json]:
        rows = []
        for number in attempt_numbers(self.folder)[-20:]:
            attempt = Attempt(self.folder, number)
            spec, started, ended = attempt.spec, attempt.read("started") or {}, attempt.read("exit") or {}
            row: Json = {"attempt": number, "token": spec["token"], "fence": spec["sticky"].get("fence", "")}
            row.update(started_at=started.get("at"), ended_at=ended.get("at"))
            row.update({key: ended.get(key) for key in ("exit_code", "exit_signal", "oom_killed", "reason")})
            row["resume_from"] = (spec["sticky"].get("resume") or {}).get("path", "")
            rows.append(row)
        return rows

    # ---- the loop

    def run(self, ready: int | None = None) -> int:
        """Supervise until the job is over and nobody has told us anything for `linger_seconds`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.save()
        announced = ready is None
        while not self.leaving:
            self._tick()
            if (
                not announced
                and ready is not None
                and (self.state.get("pid") or self.state["status"] in OVER)
            ):
                os.write(ready, json.dumps(self.state).encode())
                os.close(ready)
                announced = True
            if self._may_go():
                break
            time.sleep(0.1)
        return self._goodbye()

    def _leave(self, number: int, _frame: object) -> None:
        self.leaving = number

    def _may_go(self) -> bool:
        if not self.folder.exists():
            return not is_alive(self.state.get("pid"), self.state.get("pid_started"))
        if self.state["status"] not in OVER:
            return False
        if any((self.folder / "inbox").glob("*.json")):
            return False
        stays = self.state["status"] == "failed" and not self.foreground
        linger = self.config["linger_seconds"] if stays else 0.0
        return linger >= 0 and time.monotonic() - self.over_since > linger

    def _goodbye(self) -> int:
        """In the foreground a signal means the owner; detached we leave the command to the next supervisor."""
        if self.leaving and self.foreground and self.state["status"] not in OVER:
            self._stop(f"signal {self.leaving} to the supervisor", "owner")
        self._show_log()
        self.state["supervisor"]["left_at"] = time.time()
        self.save()
        code = self.state.get("exit_code")
        if self.foreground and self.state["status"] != "done":
            return code or (128 + (self.state.get("exit_signal") or 0)) or 1
        return 0

    def _tick(self) -> None:
        try:
            self._obey()
            self._look()
            self._sample()
        except (OSError, StateError) as error:
            complain(f"{type(error).__name__}: {error}; trying again")
            time.sleep(0.5)
        for shim in self.shims[:]:
            if shim.poll() is not None:
                self.shims.remove(shim)

    def _look(self) -> None:
        """See what became of the current attempt, and do what is next."""
        if self.state["status"] == "retrying":
            if self.retry_at is None or time.monotonic() >= self.retry_at:
                self._retry()
            return
        if self.attempt is None or self.state["status"] != "running":
            return
        ended = self.attempt.read("exit")
        if ended is not None:
            self._ended(ended)
            self.save()
        elif not self.attempt.shim_alive() and not self.shims:
            self._send_shim()

    def _ended(self, ended: Json) -> None:
        """Decide what the end of the current attempt means."""
        assert self.attempt is not None
        for key in ("exit_code", "exit_signal", "oom_killed", "memory_peak", "log_dropped"):
            self.state[key] = ended.get(key)
        self.state["ended_at"] = ended["at"]
        stopped = self.attempt.read("stopped")
        if stopped is not None:
            self.state["stopped_by"] = stopped["by"]
            self._status("stopped", stopped["reason"])
        elif ended["exit_code"] == 0:
            self._status("done", "")
        elif self._retries_left(ended):
            delay = float(self.config["retry"]["delay_seconds"])
            self.retry_at = time.monotonic() + delay
            self.state["next_attempt_at"] = time.time() + delay
            self._status("retrying", ended["reason"] or describe_end(ended))
        else:
            self._status("failed", ended["reason"] or describe_end(ended))

    def _retries_left(self, ended: Json) -> bool:
        assert self.attempt is not None
        retry = self.config["retry"]
        codes = retry["exit_codes"]
        used = self.attempt.spec["sticky"].get("retry", 0)
        return used < retry["max"] and (not codes or ended["exit_code"] in codes)

    def _retry(self) -> None:
        """Make our own next attempt, after the cheap fix that the log asks for."""
        assert self.attempt is not None
        sticky = dict(self.attempt.spec["sticky"])
        sticky.update(retry=sticky.get("retry", 0) + 1, fence="", fix="")
        fix = choose_fix(
            last_bytes(self.attempt, 65536),
            bool(self.state["oom_killed"]),
            self.config,
            sticky.get("eval_index"),
        )
        if fix is not None:
            try:
                sticky["fix"] = self._apply(fix, sticky)
            except Refusal as error:
                sticky["fix"] = f"{fix['fix']} failed: {error}"
            self.state["fixes"] = [*self.state["fixes"], sticky["fix"]][-20:]
        left = kill_attempt(self.attempt, self.config["stop_seconds"])
        if left:
            self._status("failed", f"processes {sorted(left)} of the last attempt can't be killed")
        else:
            self._write_spec(self.attempt.number + 1, sticky)
            self._begin(self.attempt.number + 1)
        self.save()

    def _apply(self, fix: Json, sticky: Json) -> str:
        """Apply one cheap fix; say what was done. Raises Refusal."""
        cwd = Path(self.spec["cwd"])
        if fix["fix"] == "free_disk":
            return "free_disk: " + run_free_disk(self.config, cwd)
        if fix["fix"] == "reduce_eval_size":
            return self._reduce_eval(sticky)
        argv = install_argv(self.config, self.spec["command"], fix["package"])
        return f"install_dependency {fix['package']}: {run_install(argv, self.environment, str(cwd))}"

    def _reduce_eval(self, sticky: Json) -> str:
        declared = self.config["eval"]
        index = sticky.get("eval_index")
        following = 0 if index is None else index + 1
        if not declared["name"] or following >= len(declared["values"]):
            raise Refusal("eval.name and eval.values declare no smaller size")
        sticky["eval_index"] = following
        return f"reduce_eval_size: {declared['name']} {declared['values'][following]}"

    # ---- attempts

    def first_attempt(self) -> None:
        """Pass the gate and begin; a gate that says no is a state too."""
        try:
            check_command(self.spec, self.environment)
            check_room(self.config, self.folder, Path(self.spec["cwd"]))
        except SupervisorError as error:
            self._status("refused", str(error))
            self.state["refusal"] = {"field": error.field, "problem": error.problem, "remedy": error.remedy}
            self.save()
            return
        numbers = attempt_numbers(self.folder)
        number = numbers[-1] + 1 if numbers else 1
        self._write_spec(number, {})
        self._begin(number)
        self.save()

    def _write_spec(self, number: int, sticky: Json) -> None:
        """Decide what attempt `number` is. From here on it is the current one, whoever is killed."""
        attempt = Attempt(self.folder, number)
        resume = sticky.get("resume") or {}
        if resume.get("path") and resume["by"] == "symlink":
            replace_link(link_path(resume, Path(self.spec["cwd"])), resume["path"])
        attempt.folder.mkdir(parents=True, exist_ok=True)
        attempt.write("spec", compose(self.spec, number, sticky))

    def _begin(self, number: int) -> None:
        """Start an attempt that was written down, unless its shim did so already; wait until it is seen."""
        self.attempt = Attempt(self.folder, number)
        self.spawns = 0
        self.retry_at = None
        if self.attempt.read("started") is None and self.attempt.read("exit") is None:
            self._send_shim()
        failpoint("shim-spawned")
        deadline = time.monotonic() + 20
        while self.attempt.read("started") is None and self.attempt.read("exit") is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
            if all(shim.poll() is not None for shim in self.shims):
                self._send_shim()
        self.state.update(
            step=None,
            total=None,
            log_at=None,
            beat_at=None,
            heartbeat_at=None,
            cpu_percent=None,
            rss_bytes=None,
        )
        self._recall()

    def _send_shim(self) -> None:
        """Send a shim for the current attempt. Too many are harmless: only one gets the attempt's lock."""
        assert self.attempt is not None
        if self.spawns and time.monotonic() - self.spawned_at < 1.0:
            return
        if self.spawns >= 5 and self.attempt.read("started") is None:
            reason = "its shim could not be started; supervisor.log says why"
            self.attempt.write(
                "exit",
                {
                    "exit_code": None,
                    "exit_signal": None,
                    "oom_killed": False,
                    "reason": reason,
                    "at": time.time(),
                },
            )
            return
        self.spawns += 1
        self.spawned_at = time.monotonic()
        argv = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), "_shim", str(self.folder)]
        self.shims.append(
            subprocess.Popen(
                [*argv, str(self.attempt.number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        )

    def _stop(self, reason: str, by: str) -> set[int]:
        """End the current attempt for good: first the mark, then the kill, so that nobody revives it."""
        assert self.attempt is not None
        if self.attempt.read("stopped") is None:
            self.attempt.write("stopped", {"by": by, "reason": reason, "at": time.time()})
        self.retry_at = None
        left = kill_attempt(self.attempt, self.config["stop_seconds"])
        deadline = time.monotonic() + 5
        while self.attempt.read("exit") is None and self.attempt.shim_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._recall_end()
        return left

    def _recall_end(self) -> None:
        assert self.attempt is not None
        ended = self.attempt.read("exit")
        if ended is not None:
            self._ended(ended)
        self.save()

    # ---- commands

    def _obey(self) -> None:
        """Do what the inbox asks for, in the order in which it came."""
        inbox = self.folder / "inbox"
        names = [name for name in os.listdir(str(inbox)) if name.endswith(".json") and name[0] != "."]  # noqa: PTH208
        for path in sorted(
            (inbox / name for name in names), key=lambda path: (path.stat().st_mtime, path.name)
        ):
            self._obey_one(path)

    def _obey_one(self, path: Path) -> None:
        failpoint("command-seen")
        fence = path.name[: -len(".json")]
        answer_path = self.folder / "results" / path.name
        answer = read_json(answer_path)
        if answer is None or answer["status"] == "accepted":
            try:
                command = self._read_command(path, fence)
                if answer is None:
                    self._look()  # what happened before the command came, comes before it
                    answer = {"fence": fence, "status": "accepted", "do": command["do"], "at": time.time()}
                    answer.update(self._accept(command))
                    write_json(answer_path, answer)
                failpoint("command-accepted")
                answer.update(self._do(command, answer), status="done")
            except Refusal as error:
                answer = {
                    **(answer or {"fence": fence, "at": time.time()}),
                    "status": "refused",
                    "detail": str(error),
                }
            answer["ended_at"] = time.time()
            self.save()
            failpoint("state-written")
            write_json(answer_path, answer)
            failpoint("result-written")
        path.unlink()
        self.over_since = time.monotonic()

    def _read_command(self, path: Path, fence: str) -> Json:
        try:
            command = read_json(path)
        except StateError as error:
            raise Refusal(str(error)) from error
        if not command or command.get("fence") != fence or command.get("do") not in COMMANDS:
            raise Refusal(f"{path.name} holds none of the commands {', '.join(COMMANDS)}")
        return command

    def _accept(self, command: Json) -> Json:
        """Check everything that can be checked before anything is changed. Raises Refusal."""
        do, status = command["do"], self.state["status"]
        if do in ("start", "quit"):
            if status not in OVER and (do == "start" or command.get("if_over")):
                raise Refusal(f"the job is {status}")
            return {"number": (attempt_numbers(self.folder) or [0])[-1] + 1}
        if self.attempt is None:
            raise Refusal("no attempt was ever started")
        token = command.get("token")
        if token is not None and token != self.state["token"]:
            raise Refusal(
                f"attempt {self.attempt.number} is current: its token is {self.state['token']}, not {token}"
            )
        if do == "stop":
            return {}
        if status in ("done", "stopped", "refused", "retrying"):
            why = {"stopped": f"stopped by {self.state.get('stopped_by')}: {self.state['reason']}"}
            why["retrying"] = "the supervisor's own retry is under way"
            raise Refusal(why.get(status, f"the job is {status}"))
        return (
            {"number": self.attempt.number + 1, "sticky": self._changes(command)} if do == "restart" else {}
        )

    def _changes(self, command: Json) -> Json:
        """Work out what the next attempt does differently. Raises Refusal."""
        assert self.attempt is not None
        sticky = dict(self.attempt.spec["sticky"])
        sticky.update(fence=command["fence"], retry=0, fix="")
        resume = command.get("resume")
        if resume is not None:
            directory = self.config["checkpoints"]["directory"]
            resume = {**self.config["resume"], "directory": directory, **resume}
            check_resume(resume, Path(self.spec["cwd"]))
            sticky["resume"] = resume
        limit = command.get("memory_limit")
        if limit is not None:
            most = self.config["memory"]["max"]
            if not self.attempt.spec["memory_limit"]:
                raise Refusal("the job has no memory limit that could be raised")
            if not isinstance(limit, int) or limit <= 0 or (most and limit > most):
                raise Refusal(f"memory.max allows {human(most)}, not {limit}")
            sticky["memory_limit"] = limit
        if command.get("reduce_eval"):
            sticky["fix"] = self._reduce_eval(sticky)
        return sticky

    def _do(self, command: Json, answer: Json) -> Json:
        """Act on an accepted command; every step can be repeated. Raises Refusal."""
        do = command["do"]
        if do == "restart":
            return self._do_restart(answer)
        if do == "start":
            return self._do_start(answer)
        if do == "stop":
            if self.state["status"] == "done":
                return {"detail": "it was done already"}
            left = self._stop(
                str(command.get("reason") or "asked to stop"), str(command.get("by") or "owner")
            )
            if left:
                raise Refusal(f"processes {sorted(left)} can't be killed")
            self._status("stopped", self.state["reason"])
            return {"detail": "stopped"}
        if do == "quit":
            self.leaving = signal.SIGTERM
            return {"detail": "the supervisor leaves; the command runs on"}
        if do == "set_aside":
            return self._do_set_aside(command)
        detail = self._apply({"fix": "install_dependency" if do == "install" else do, **command}, {})
        self.state["fixes"] = [*self.state["fixes"], detail][-20:]
        self.state["fix"] = detail
        return {"detail": detail}

    def _do_set_aside(self, command: Json) -> Json:
        cwd = Path(self.spec["cwd"])
        words = [word for word in (self.config["checkpoints"]["directory"], command.get("root")) if word]
        roots = [Path(os.path.normpath(cwd / word)) for word in words]
        path = Path(os.path.normpath(cwd / str(command.get("path") or "")))
        check_set_aside(path, roots)
        return {"detail": run_set_aside(path, command["fence"], str(command.get("note") or ""))}

    def _do_start(self, answer: Json) -> Json:
        if Attempt(self.folder, answer["number"]).read("spec") is None:
            self.first_attempt()
        else:
            self._begin(answer["number"])
        if self.state["status"] == "refused":
            raise Refusal(self.state["reason"])
        return self._new_attempt()

    def _do_restart(self, answer: Json) -> Json:
        """Evidence, kill, make sure, write down, start: each step is skipped if it was done before a crash."""
        number = answer["number"]
        if Attempt(self.folder, number).read("spec") is None:
            old = Attempt(self.folder, number - 1)
            self._end_for_restart(old, answer)
            failpoint("old-killed")
            self._write_spec(number, answer["sticky"])
        failpoint("spec-written")
        self._begin(number)
        failpoint("attempt-started")
        return self._new_attempt()

    def _end_for_restart(self, old: Attempt, answer: Json) -> None:
        """End what still runs of the old attempt, unless it has just finished by itself. Raises Refusal."""
        if not answer.get("killing"):
            if old.processes():
                save_evidence(old, self.folder / "evidence" / answer["fence"])
            failpoint("evidence-saved")
            if (old.read("exit") or {}).get("exit_code") == 0:
                raise Refusal("the command has just finished by itself")
            answer["killing"] = True
            write_json(self.folder / "results" / f"{answer['fence']}.json", answer)
        if old.processes():
            old.write("replaced", {"fence": answer["fence"], "at": time.time()})
            silent = self._is_silent()
            left = kill_attempt(old, self.config["stop_seconds"], silent and self.config["faulthandler"])
            if left:
                raise Refusal(f"processes {sorted(left)} of attempt {old.number} can't be killed")
        deadline = time.monotonic() + 5
        while old.read("exit") is None and old.shim_alive() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _is_silent(self) -> bool:
        """A command that says nothing does not end when asked; its stacks are worth more. A hang may spin."""
        return time.time() - (self.state.get("heartbeat_at") or time.time()) > 5

    def _new_attempt(self) -> Json:
        return {
            "attempt": self.state["attempt"],
            "token": self.state["token"],
            "pid": self.state["pid"],
            "started_at": self.state["started_at"],
            "detail": f"attempt {self.state['attempt']} started",
        }

    # ---- looking

    def _sample(self) -> None:
        """Refresh heartbeat, step and use, every `sample_seconds`."""
        self.gpu.poll(max(10.0, self.config["sample_seconds"]))
        now = time.monotonic()
        if now - self.sampled_at < self.config["sample_seconds"]:
            return
        elapsed, self.sampled_at = now - self.sampled_at, now
        self._show_log()
        if self.attempt is None or self.state["status"] != "running":
            return
        pids = self.attempt.processes(thorough=False)
        seconds, rss = tree_usage(pids)
        used = (seconds - self.cpu_seconds) / elapsed * 100 if self.cpu_seconds else None
        self.cpu_seconds = seconds
        self.state["cpu_percent"] = None if used is None else max(0.0, round(used, 1))
        self.state.update(rss_bytes=rss, pids=sorted(pids)[:200], gpus=self.gpu.gpus)
        self.state.update(heartbeats(self.folder, self.attempt.number, self.config, Path(self.spec["cwd"])))
        self.save(durable=False)

    def _show_log(self) -> None:
        """In the foreground, pass the command's log on to our own output."""
        if not self.foreground or self.attempt is None:
            return
        with contextlib.suppress(StateError, OSError):
            more = True
            while more:
                batch = read_logs(self.folder, self.shown or f"{self.attempt.number}:0:0", MIB)
                self.shown, more = batch["cursor"], batch["more"]
                for chunk in batch["chunks"]:
                    sys.stdout.buffer.write(chunk["data"])
            sys.stdout.flush()


def describe_end(ended: Json) -> str:
    """Say in words how an attempt ended."""
    number = ended.get("exit_signal")
    if number is not None:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = str(number)
        return f"ended by {name}"
    return f"exit code {ended['exit_code']}" if ended.get("exit_code") is not None else "its end was not seen"


def heartbeats(folder: Path, number: int, config: Json, cwd: Path) -> Json:
    """Read when the command was last heard of, and how far it is."""
    found: Json = {"log_at": None, "beat_at": None, "heartbeat_at": None}
    attempt = Attempt(folder, number)
    times = [(attempt.read("started") or {}).get("at")]
    with contextlib.suppress(OSError):
        for _, path in pieces(folder / "logs", number)[-1:]:
            found["log_at"] = path.stat().st_mtime
            times.append(found["log_at"])
    pattern = config["heartbeat"]["step_pattern"]
    step, total = find_step(last_bytes(attempt, 16384), pattern)
    source = "pattern" if pattern else "guess"
    beat = cwd / (config["heartbeat"]["file"] or folder / "heartbeat.json")
    with contextlib.suppress(OSError, StateError):
        at = beat.stat().st_mtime
        if at >= (times[0] or 0) - 1:
            times.append(at)
            found["beat_at"] = at
            said = read_json(beat) or {}
            if isinstance(said.get("step"), int):
                step, source = said["step"], "heartbeat"
                total = said["total"] if isinstance(said.get("total"), int) else None
    found["heartbeat_at"] = max((t for t in times if t is not None), default=None)
    if step is not None:
        found.update(step=step, total=total, step_source=source)
    return found


# ---------------------------------------------------------------- asking and telling, from outside


def supervisor_alive(state: Json) -> bool:
    """Tell whether the supervisor that wrote this state still runs."""
    me = state.get("supervisor") or {}
    return "left_at" not in me and is_alive(me.get("pid"), me.get("pid_started"))


def view(folder: Path) -> Json:
    """Give the state as it is now: state.json, set right by what the attempt's own files and /proc say.

    Adds `supervisor_alive`, `command_alive`, `now` and, where something is odd, `warning`. Raises MissingError
    where there is no such job and StateError where nothing can be known.
    """
    if not folder.is_absolute():
        raise MissingError(f"{folder}: not an absolute path")
    try:
        present = "state.json" in os.listdir(str(folder))  # noqa: PTH208
    except FileNotFoundError as error:
        raise MissingError(f"{folder}: no such folder") from error
    except (OSError, ValueError) as error:
        raise StateError(f"{folder}: {error}") from error
    if not present:
        raise MissingError(f"{folder}: no supervisor ever worked here")
    state = read_json(folder / "state.json")
    if state is None or not isinstance(state.get("status"), str) or state.get("version") != VERSION:
        raise StateError(f"{folder}/state.json: not a state of version {VERSION}")
    try:
        return corrected(folder, state)
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{folder}/state.json: {type(error).__name__}: {error}") from error


def corrected(folder: Path, state: Json) -> Json:
    """Set a state right that its supervisor could not write any more, or not yet."""
    numbers = attempt_numbers(folder)
    attempt = Attempt(folder, numbers[-1]) if numbers else None
    comparable = state["supervisor"].get("pid_namespace") == pid_namespace()
    state.update(now=time.time(), warning="", supervisor_alive=True, command_alive=None)
    if comparable:
        state["supervisor_alive"] = supervisor_alive(state)
        state["command_alive"] = attempt.command_alive() if attempt else False
    elif time.time() - state["updated_at"] > 60:
        raise StateError(
            f"{folder}: written from another pid namespace {time.time() - state['updated_at']:.0f} s ago"
        )
    if (
        attempt is None
        or attempt.number != state["attempt"]
        or state["status"] not in ("running", "retrying")
    ):
        return state
    config = (read_json(folder / "spec.json") or {})["config"]
    if state["status"] == "running":
        fresh = heartbeats(folder, attempt.number, config, Path(attempt.spec["cwd"]))
        state.update({key: value for key, value in fresh.items() if value is not None})
        _settle(state, attempt)
    elif not state["supervisor_alive"]:
        state.update(status="failed", warning="the supervisor died before its own retry")
    return state


def _settle(state: Json, attempt: Attempt) -> None:
    """Tell what became of an attempt that state.json calls running."""
    ended, stopped = attempt.read("exit"), attempt.read("stopped")
    if ended is None:
        ended = _unseen_end(state, attempt)
    elif state["supervisor_alive"] and attempt.read("replaced") is not None:
        state.update(status="retrying", reason="being replaced by a restart that was asked for")
        return
    elif state["supervisor_alive"] and state["retries_max"]:
        return  # the supervisor decides in a moment whether it tries again
    if ended is None:
        return
    state.update({key: ended.get(key) for key in ("exit_code", "exit_signal", "oom_killed")})
    state["ended_at"] = ended["at"]
    if stopped is not None:
        state.update(status="stopped", reason=stopped["reason"], stopped_by=stopped["by"])
    elif ended["exit_code"] == 0:
        state.update(status="done", reason="")
    else:
        state.update(status="failed", reason=ended["reason"] or describe_end(ended))


def _unseen_end(state: Json, attempt: Attempt) -> Json | None:
    """Tell whether an attempt without a recorded end is over all the same."""
    if state["supervisor_alive"]:
        return None
    if state["command_alive"]:
        state["warning"] = "the supervisor is dead, the command runs on; a restart or `start` brings it back"
        return None
    if attempt.shim_alive():
        return None
    same = state["supervisor"].get("boot_id") == boot_id()
    reason = "its end was not seen" if same else "the machine was restarted"
    return {"exit_code": None, "exit_signal": None, "at": state["updated_at"], "reason": reason}


def send(folder: Path, command: Json) -> None:
    """Put a command into the inbox, once: a fence that is there or was answered is not sent again.

    Raises Refusal for a fence that is no file name, StateError where the inbox can't be written.
    """
    fence = command["fence"]
    if not FENCE.match(fence):
        raise Refusal(f"{fence!r} is no fence: letters, digits, . _ - and at most 80")
    target = folder / "inbox" / f"{fence}.json"
    temporary = folder / "inbox" / f".{fence}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        if (folder / "results" / f"{fence}.json").exists():
            return
        write_json(temporary, command)
        try:
            os.link(str(temporary), str(target))
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise StateError(f"{folder}: the command could not be written: {error.strerror or error}") from error
    with contextlib.suppress(OSError):  # it is sent, and perhaps seen already
        sync_folder(target.parent)


def result_of(folder: Path, fence: str) -> Json | None:
    """Say what became of a command: None if it never came, else status `waiting`, `accepted`, `done` or `refused`."""
    if not FENCE.match(fence):
        return None
    # The inbox first: a command leaves it only after its result is written.
    try:
        waiting = f"{fence}.json" in os.listdir(str(folder / "inbox"))  # noqa: PTH208
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror or error}") from error
    answer = read_json(folder / "results" / f"{fence}.json")
    if answer is None and waiting:
        return {"fence": fence, "status": "waiting", "detail": "in the inbox"}
    return answer


def revive(folder: Path) -> None:
    """Make sure that a supervisor works here; it takes up what it finds. Raises StateError."""
    argv = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), "adopt", str(folder)]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StateError(f"{folder}: no supervisor could be started: {error}") from error
    if done.returncode:
        raise StateError(
            f"{folder}: no supervisor could be started: {done.stdout.decode('utf-8', 'replace').strip()}"
        )


# ---------------------------------------------------------------- the command line


def prepare(folder: Path, config: Json, command: list[str], cwd: Path) -> Json:
    """Make the state folder and write down what is to be run, and with which environment."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("attempts", "logs", "inbox", "results", "evidence"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("TRAINGUARD_FAILPOINT")
    }
    environment.update(config["env"])
    environment.update(TRAINGUARD_STATE=str(folder), TRAINGUARD_HEARTBEAT=str(folder / "heartbeat.json"))
    if config["heartbeat"]["file"]:
        environment["TRAINGUARD_HEARTBEAT"] = str(cwd / config["heartbeat"]["file"])
    if config["faulthandler"]:
        environment.setdefault("PYTHONFAULTHANDLER", "1")
    spec = {"config": config, "command": command, "cwd": str(cwd), "name": config["name"] or folder.name}
    return {"spec": spec, "env": environment}


def detach(folder: Path) -> int | None:
    """Fork twice. In the starter: wait for the first news, print it, never return. In the supervisor: give the
    descriptor on which the starter waits."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read, "rb") as news:
            data = news.read(MIB)
        os.waitpid(child, 0)
        code = announce(folder, data)
        sys.stdout.flush()
        os._exit(code)
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    log = os.open(str(folder / "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    close_inherited({0, 1, 2, write}, log, nothing)
    return write


def close_inherited(keep: set[int], *also: int) -> None:
    """Let go of what the starter left open (terminals, pipes), but of no lock."""
    for descriptor in also:
        if descriptor not in keep:
            os.close(descriptor)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        descriptor = int(name)
        with contextlib.suppress(OSError):
            if descriptor not in keep and not os.readlink(f"/proc/self/fd/{name}").endswith("/lock"):  # noqa: PTH115
                os.close(descriptor)


def tell_error(error: SupervisorError) -> None:
    """Tell people on standard error and, where nobody watches it, programs on standard output."""
    sys.stderr.write(f"{error}\n")
    if not sys.stdout.isatty():
        print(json.dumps({"error": {"field": error.field, "problem": error.problem, "remedy": error.remedy}}))
    sys.stdout.flush()


def announce(folder: Path, data: bytes) -> int:
    """Print the supervisor's first news as one JSON object, or as a refusal for people. Gives the exit code."""
    try:
        state = json.loads(data.decode())
    except ValueError:
        sys.stderr.write(f"the supervisor did not start; see {folder}/supervisor.log\n")
        return 1
    if state["status"] == "refused":
        tell_error(SupervisorError(**state["refusal"]))
        return 2
    print(
        json.dumps({"state": str(folder), **{k: state.get(k) for k in ("status", "attempt", "token", "pid")}})
    )
    return 0


def claim(folder: Path) -> None:
    """Become the folder's only supervisor. Raises SupervisorError that names the other."""
    descriptor = take_lock(folder / "lock", wait=0.3)
    if descriptor is None:
        holder = (folder / "lock").read_text().strip() or "unknown"
        raise SupervisorError(
            "state",
            f"{folder} is supervised already, by {holder}",
            f"`supervisor.py status {folder}` shows it; `tell {folder} stop` ends the job, `tell {folder} start` begins anew",
        )
    os.ftruncate(descriptor, 0)
    os.set_inheritable(descriptor, False)


def send_away(folder: Path) -> None:
    """Ask a supervisor that only waits after the end of its job to leave, so that the owner can start anew."""
    with contextlib.suppress(StateError):
        state = view(folder)
        if state["status"] in OVER and state["supervisor_alive"]:
            fence = f"leave-{uuid.uuid4().hex[:12]}"
            send(folder, {"fence": fence, "do": "quit", "by": "owner", "if_over": True})
            deadline = time.monotonic() + 10
            while supervisor_alive(state) and time.monotonic() < deadline:
                time.sleep(0.05)


def sign_lock(folder: Path) -> None:
    """Write down who holds the lock."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    (folder / "lock").write_text(f"pid {os.getpid()} on {socket.gethostname()} since {at}\n")


def check_same(folder: Path, number: int, command: list[str]) -> None:
    """Refuse to take up a living command where another one was asked for. Raises SupervisorError."""
    running = (read_json(folder / "spec.json") or {}).get("command")
    if command and command != running:
        problem = f"attempt {number} still runs {running}"
        raise SupervisorError("command", problem, f"`tell {folder} stop` ends it; or give another --state")


def command_start(arguments: argparse.Namespace) -> int:
    """Start a job, or a new attempt of one that is over, or take up one that runs."""
    config = load_config(Path(arguments.config) if arguments.config else None)
    in_file = arguments.config not in ("", "-") and config["cwd"]
    base = Path(arguments.config).resolve().parent if in_file else Path.cwd()
    command = list(arguments.command) or config["command"]
    if command[:1] == ["--"]:
        command = command[1:]
    word = arguments.state or config["state"]
    if not word:
        raise SupervisorError("state", "no state folder", "give --state FOLDER, or set state")
    folder, cwd = Path(word).resolve(), (base / config["cwd"]).resolve()
    new = prepare(folder, config, command, cwd)
    send_away(folder)
    claim(folder)
    numbers = attempt_numbers(folder)
    live = bool(numbers) and (
        Attempt(folder, numbers[-1]).processes() or Attempt(folder, numbers[-1]).shim_alive()
    )
    if live:
        check_same(folder, numbers[-1], command)
    else:
        write_json(folder / "env.json", {"env": new["env"]})
        write_json(folder / "spec.json", new["spec"])
    ready = None if arguments.foreground else detach(folder)
    sign_lock(folder)
    supervisor = Supervisor(folder, arguments.foreground)
    if not live:
        supervisor.first_attempt()
    code = supervisor.run(ready)
    if arguments.foreground and supervisor.state["status"] == "refused":
        sys.stderr.write(supervisor.state["reason"] + "\n")
        return 2
    return code


def command_adopt(arguments: argparse.Namespace) -> int:
    """Take up a folder's job as it is and obey its inbox; begin nothing."""
    folder = Path(arguments.state).resolve()
    try:
        claim(folder)
    except SupervisorError:
        return 0
    if (folder / "spec.json").exists() and attempt_numbers(folder):
        ready = detach(folder)
        sign_lock(folder)
        supervisor = Supervisor(folder)
        supervisor.save()
        if ready is not None:
            os.write(ready, json.dumps(supervisor.state).encode())
            os.close(ready)
        return supervisor.run()
    raise SupervisorError("state", f"{folder} holds no started job", "start it first")


def command_tell(arguments: argparse.Namespace) -> int:
    """Send one command and wait for its result. Exit code 0 done, 2 refused, 3 not known yet."""
    folder = Path(arguments.state).resolve()
    state = view(folder)
    command = json.loads(arguments.json) if arguments.json else {}
    command.update(do=arguments.do, fence=arguments.fence or f"cli-{uuid.uuid4().hex[:12]}", by=arguments.by)
    if arguments.token:
        command["token"] = arguments.token
    send(folder, command)
    if not supervisor_alive(state):
        revive(folder)
    deadline = time.monotonic() + arguments.wait
    while True:
        answer = result_of(folder, command["fence"]) or {"status": "waiting"}
        if answer["status"] in ("done", "refused") or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    print(json.dumps(answer))
    return {"done": 0, "refused": 2}.get(answer["status"], 3)


def command_logs(arguments: argparse.Namespace) -> int:
    """Print a batch of log as one JSON object, its bytes in base64."""
    batch = read_logs(Path(arguments.state).resolve(), arguments.cursor, arguments.limit)
    for chunk in batch["chunks"]:
        chunk["data"] = base64.b64encode(chunk["data"]).decode()
    print(json.dumps(batch))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="supervisor.py", description="Runs a training command so that it outlives you."
    )
    commands = parser.add_subparsers(dest="verb", required=True)
    start = commands.add_parser("start", help="start a job, detached")
    start.add_argument("--config", default="", help="supervisor.toml or supervisor.json")
    start.add_argument("--state", default="", help="state folder")
    start.add_argument("--foreground", action="store_true", help="do not detach; show the command's output")
    start.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND ...")
    start.set_defaults(run=command_start)
    adopt = commands.add_parser("adopt", help="bring back a supervisor that died")
    adopt.set_defaults(run=command_adopt)
    status = commands.add_parser("status", help="print the state as JSON")
    status.set_defaults(run=lambda a: print(json.dumps(view(Path(a.state).resolve()))) or 0)
    tell = commands.add_parser("tell", help="send a command: " + ", ".join(COMMANDS))
    logs = commands.add_parser("logs", help="print what is new in the log as JSON")
    logs.set_defaults(run=command_logs)
    shim = commands.add_parser("_shim")
    shim.set_defaults(run=lambda a: Shim(Path(a.state), a.number).run())
    for sub in (adopt, status, tell, logs, shim):
        sub.add_argument("state")
    tell.add_argument("do", choices=COMMANDS)
    for name, default in (("--fence", ""), ("--token", ""), ("--json", ""), ("--by", "owner")):
        tell.add_argument(name, default=default)
    tell.add_argument("--wait", type=float, default=60.0, help="seconds to wait for the result")
    tell.set_defaults(run=command_tell)
    logs.add_argument("--cursor", default="")
    logs.add_argument("--limit", type=int, default=MIB)
    shim.add_argument("number", type=int)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line. Exit code 2 where the user must act."""
    arguments = make_parser().parse_args(words)
    try:
        return int(arguments.run(arguments))
    except SupervisorError as error:
        tell_error(error)
        return 2
    except (StateError, Refusal) as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, StateError) and not isinstance(error, MissingError) else 2


if __name__ == "__main__":
    sys.exit(main())
