"""One kept SSH connection to a login node. The only module that knows paramiko.

paramiko blocks, so its calls run in a small thread pool of the connection. Measured on a local login:
a new connection costs 170 ms, a command over a kept one 50 ms, and 5 ms with TCP_NODELAY. sshd's default
MaxSessions is 10; at most 8 channels are open at a time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import paramiko
from paramiko.config import SSHConfig

from trainguard.core.errors import AccessRefusedError, ConfigError, UnreachableError
from trainguard.transports.posix_shell import (
    ENTRY,
    KILL_AFTER,
    AnswerLostError,
    Command,
    Result,
    compose,
    new_mark,
    split,
)

T = TypeVar("T")
_BROKEN = (paramiko.SSHException, OSError, EOFError)
MAX_CHANNELS = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_CLOSING = 2.0
_HOP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@\s]+)@)?(?:\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<plain>[^@:\s\[\]/]+))(?::(?P<port>\d{1,5}))?/?"
)
_NO_SESSION = (0.1, 0.3, 1.0)
"""Pauses before asking again for a session that the server did not open."""
_SHORT_PAUSE = 2.0
"""A pause this short is waited for; during a longer one calls fail at once."""


@dataclass(frozen=True)
class SshTarget:
    """Where to log in, as whom and with what. Secrets are not shown by repr."""

    host: str
    port: int = 22
    user: str = ""
    """Empty: as ssh_config says, else the local user's name."""
    key_file: str = ""
    key_text: str = field(default="", repr=False)
    """A private key pasted whole; wins over `key_file`. With neither, the agent and the usual files are tried."""
    passphrase: str = field(default="", repr=False)
    known_hosts: str = "~/.ssh/known_hosts"
    accept_new: bool = False
    """Remember the key of a host never seen before. A changed key is refused all the same."""
    ssh_config: str = ""
    """A file whose Host entry for `host` gives what is not set here."""
    jump: SshTarget | None = None
    connect_timeout: float = 15.0
    keepalive: int = 15


class SshConnection:
    """A connection that is made when first used, kept, and made anew with growing pauses once it broke.

    Every method raises AccessRefusedError (host key, key, user), UnreachableError (nothing was sent) or
    AnswerLostError (sent, answer lost).
    """

    def __init__(self, target: SshTarget, path: Sequence[str] = ()) -> None:
        self.target = target
        self._path = tuple(path)
        self._pool = ThreadPoolExecutor(MAX_CHANNELS, thread_name_prefix="ssh")
        self._slots = asyncio.Semaphore(MAX_CHANNELS)
        self._lock = threading.Lock()
        self._clients: list[paramiko.SSHClient] = []
        self._pause = 0.0
        self._not_before = 0.0
        self._refusal: AccessRefusedError | None = None
        self._closed = False

    async def run(
        self,
        commands: Sequence[Command],
        *,
        limit: int = 64_000_000,
        now: bool = False,
        within: float | None = None,
    ) -> list[Result]:
        """Run commands one after another in one shell, and give the answer of each.

        `limit` bounds the bytes read, `within` the seconds that all commands together may take over there.
        `now` connects even while a pause after a failure is running.
        """
        mark = new_mark()
        script = compose(commands, mark, self._path, within)
        each = sum(command.timeout + KILL_AFTER + 1 for command in commands)
        deadline = (each if within is None else min(each, within + KILL_AFTER + 1)) + 10
        out, err = await self._in_thread(lambda: self._converse(script, deadline, limit, now))
        return split(out, err, mark, len(commands))

    async def close(self) -> None:
        """Close the connection. Using it afterwards is an error; closing twice is none."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._pool, self._drop)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise RuntimeError("this SSH connection was closed")
        async with self._slots:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _converse(self, script: bytes, timeout: float, limit: int, now: bool) -> tuple[bytes, bytes]:
        channel = self._channel(now)
        try:
            channel.sendall(script)
            channel.shutdown_write()
            return _read(channel, timeout, limit)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise AnswerLostError(f"{self.target.host}: the answer was lost: {_said(error)}") from error
        finally:
            channel.close()

    def _channel(self, now: bool) -> paramiko.Channel:
        """Start a shell; where the kept connection turns out dead, make a new one once."""
        client, fresh = self._client(now)
        try:
            return self._session(client)
        except _BROKEN as error:
            self._drop(client)
            if fresh:
                raise UnreachableError(f"{self.target.host}: {_said(error)}") from error
        client, _ = self._client(now)
        try:
            return self._session(client)
        except _BROKEN as error:
            self._drop(client)
            raise UnreachableError(f"{self.target.host}: {_said(error)}") from error

    def _session(self, client: paramiko.SSHClient) -> paramiko.Channel:
        transport = client.get_transport()
        if transport is None:
            raise EOFError("the connection is closed")
        for pause in (*_NO_SESSION, None):
            try:
                return self._shell(transport)
            except paramiko.ChannelException as error:
                if pause is None:
                    raise UnreachableError(
                        f"{self.target.host}: the server opens no further session: {_said(error)}"
                    ) from error
                time.sleep(pause)
        raise EOFError("the connection is closed")

    def _shell(self, transport: paramiko.Transport) -> paramiko.Channel:
        """Raises ChannelException where the server refuses this session; those beside it go on."""
        channel = transport.open_session(timeout=self.target.connect_timeout)
        try:
            channel.exec_command(ENTRY)
        except _BROKEN as error:
            channel.close()
            if not transport.is_active():
                raise
            raise paramiko.ChannelException(0, f"no command could be started: {_said(error)}") from error
        return channel

    def _client(self, now: bool) -> tuple[paramiko.SSHClient, bool]:
        with self._lock:
            if self._clients:
                transport = self._clients[-1].get_transport()
                if transport is not None and transport.is_active():
                    return self._clients[-1], False
                self._close_clients()
            if not now:
                self._keep_pause()
            try:
                self._clients = _connect(self.target)
            except (UnreachableError, AccessRefusedError, ConfigError) as error:
                self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                self._not_before = time.monotonic() + self._pause
                self._refusal = error if isinstance(error, AccessRefusedError) else None
                raise
            self._pause, self._not_before, self._refusal = 0.0, 0.0, None
            return self._clients[-1], True

    def _keep_pause(self) -> None:
        """After failures, do not knock at once: sites lock out who does."""
        wait = self._not_before - time.monotonic()
        if wait <= 0:
            return
        if wait <= _SHORT_PAUSE:
            time.sleep(wait)
            return
        if self._refusal is not None:
            raise AccessRefusedError(str(self._refusal), self._refusal.remedy)
        raise UnreachableError(f"{self.target.host}: connecting again in {wait:.0f} s", retry_after=wait)

    def _drop(self, client: paramiko.SSHClient | None = None) -> None:
        with self._lock:
            if client is None or (self._clients and self._clients[-1] is client):
                self._close_clients()

    def _close_clients(self) -> None:
        for client in reversed(self._clients):
            client.close()
        self._clients = []


def _read(channel: paramiko.Channel, timeout: float, limit: int) -> tuple[bytes, bytes]:
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + timeout
    while True:
        if channel.recv_ready():
            out += channel.recv(1 << 18)
        elif channel.recv_stderr_ready():
            err += channel.recv_stderr(1 << 16)
        elif channel.eof_received or channel.closed:
            if not (channel.recv_ready() or channel.recv_stderr_ready()):
                _await_close(channel)
                return bytes(out), bytes(err)
        else:
            select.select([channel], [], [], 1.0)
        if len(out) + len(err) > limit:
            raise AnswerLostError(f"more than {limit} bytes of output")
        if time.monotonic() > deadline:
            raise AnswerLostError(f"no answer within {timeout:.0f} s")


def _await_close(channel: paramiko.Channel) -> None:
    """The server counts a session until it has closed it: leaving earlier runs into MaxSessions."""
    end = time.monotonic() + _CLOSING
    while not channel.closed and time.monotonic() < end:
        time.sleep(0.002)


def _connect(target: SshTarget) -> list[paramiko.SSHClient]:
    """Log in, through the jump host where there is one. Gives all clients, the last one being the goal's."""
    target = _configured(target)
    clients = _connect(target.jump) if target.jump is not None else []
    client = paramiko.SSHClient()
    try:
        key = _key(target)
        _trust(client, target)
        sock = _through(clients[-1], target) if clients else _socket(target)
        _login(client, target, key, sock)
    except BaseException:
        for opened in (client, *reversed(clients)):
            opened.close()
        raise
    transport = client.get_transport()
    if transport is not None:
        transport.set_keepalive(target.keepalive)
    return [*clients, client]


def _socket(target: SshTarget) -> socket.socket:
    place = f"{target.host} port {target.port}"
    try:
        sock = socket.create_connection((target.host, target.port), timeout=target.connect_timeout)
    except socket.gaierror as error:
        raise UnreachableError(f"{target.host!r} is no known host name; check `host`") from error
    except ConnectionRefusedError as error:
        raise UnreachableError(f"{place}: connection refused; check `host` and `port`") from error
    except OSError as error:
        raise UnreachableError(f"{place}: {_said(error)}; check `host`, `port` and the network") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _through(jump: paramiko.SSHClient, target: SshTarget) -> paramiko.Channel:
    transport = jump.get_transport()
    try:
        if transport is None:
            raise EOFError("the connection to the jump host is closed")
        return transport.open_channel(
            "direct-tcpip", (target.host, target.port), ("127.0.0.1", 0), timeout=target.connect_timeout
        )
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise UnreachableError(
            f"the jump host can't reach {target.host} port {target.port}: {_said(error)}"
        ) from error


def _login(
    client: paramiko.SSHClient,
    target: SshTarget,
    key: paramiko.PKey | None,
    sock: socket.socket | paramiko.Channel,
) -> None:
    who = f"{target.user or 'the local user name'}@{target.host}"
    usual = key is None
    try:
        client.connect(
            target.host,
            target.port,
            target.user or None,
            pkey=key,
            sock=sock,
            allow_agent=usual,
            look_for_keys=usual,
            timeout=target.connect_timeout,
            banner_timeout=target.connect_timeout,
            auth_timeout=target.connect_timeout,
            channel_timeout=target.connect_timeout,
        )
    except paramiko.BadHostKeyException as error:
        raise AccessRefusedError(
            f"the host key of {target.host} has changed: it is now {fingerprint(error.key)}",
            f"If the change is known to be right, replace the host's line in {target.known_hosts}.",
        ) from error
    except paramiko.AuthenticationException as error:
        raise AccessRefusedError(
            f"{who}: the server does not accept this {'key' if key else 'login'}",
            "Check `user` and the private key, and that its public half is in the account's authorized_keys.",
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise UnreachableError(
            f"{target.host} port {target.port} does not complete an SSH login: {_said(error)}"
        ) from error


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    """Say what to add to known_hosts, or add it where that was asked for."""

    def __init__(self, target: SshTarget) -> None:
        self._target = target

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Called by paramiko for a host of which known_hosts holds no key of this type."""
        known = client.get_host_keys().lookup(hostname)
        line = f"{hostname} {key.get_name()} {key.get_base64()}"
        path = Path(self._target.known_hosts).expanduser()
        if self._target.accept_new and not known:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            return
        raise AccessRefusedError(
            f"{hostname} is not in {self._target.known_hosts}; its key is {key.get_name()} {fingerprint(key)}",
            f"Compare the fingerprint with your administrator's and add this line: {line}",
        )


def fingerprint(key: paramiko.PKey) -> str:
    """Give a public key's SHA-256 fingerprint as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _trust(client: paramiko.SSHClient, target: SshTarget) -> None:
    path = Path(target.known_hosts).expanduser()
    with contextlib.suppress(FileNotFoundError):
        client.load_host_keys(str(path))
    client.set_missing_host_key_policy(_RefuseUnknown(target))


def _key(target: SshTarget) -> paramiko.PKey | None:
    if not target.key_text and not target.key_file:
        return None
    text, where = target.key_text, "the pasted private key"
    if not text:
        where = f"the private key {target.key_file}"
        try:
            text = Path(target.key_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AccessRefusedError(f"{where} can't be read: {_said(error)}", "Check `key_file`.") from error
    return _parse_key(text, where, target.passphrase)


def _parse_key(text: str, where: str, passphrase: str) -> paramiko.PKey:
    problem: Exception | None = None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text.strip() + "\n"), passphrase or None)
        except paramiko.PasswordRequiredException as error:
            raise AccessRefusedError(
                f"{where} is encrypted", "Give its passphrase in `passphrase`."
            ) from error
        except (paramiko.SSHException, ValueError, IndexError) as error:
            problem = error
    encrypted = passphrase and ("OPENSSH" in text or "ENCRYPTED" in text)
    raise AccessRefusedError(
        f"{where} can't be opened{' with this passphrase' if encrypted else ''}",
        "Check `passphrase`." if encrypted else "Paste or name a whole OpenSSH or PEM private key.",
    ) from problem


def _configured(target: SshTarget) -> SshTarget:
    """Fill what is not set from the ssh_config entry of the host."""
    if not target.ssh_config:
        return target
    try:
        entry = SSHConfig.from_path(str(Path(target.ssh_config).expanduser())).lookup(target.host)
    except (OSError, paramiko.SSHException) as error:
        raise ConfigError("ssh_config", f"{target.ssh_config} can't be used: {_said(error)}") from error
    if "proxycommand" in entry:
        raise ConfigError(
            "ssh_config", "ProxyCommand is not supported", "Use ProxyJump, or name the jump host."
        )
    return _merged(target, entry)


def _merged(target: SshTarget, entry: paramiko.SSHConfigDict) -> SshTarget:
    jump = target.jump
    if jump is None and str(entry.get("proxyjump", "none")).lower() != "none":
        for hop in str(entry["proxyjump"]).split(","):
            jump = _hop(hop.strip(), jump, target)
    own_key = target.key_text or target.key_file
    files = entry.get("identityfile") or [""]
    return SshTarget(
        host=str(entry.get("hostname", target.host)),
        port=int(entry.get("port", target.port)) if target.port == 22 else target.port,
        user=target.user or str(entry.get("user", "")),
        key_file=target.key_file if own_key else str(files[0]),
        key_text=target.key_text,
        passphrase=target.passphrase,
        known_hosts=target.known_hosts,
        accept_new=target.accept_new,
        jump=jump,
        connect_timeout=target.connect_timeout,
        keepalive=target.keepalive,
    )


def _hop(text: str, before: SshTarget | None, goal: SshTarget) -> SshTarget:
    """Read one host of ProxyJump, `[user@]host[:port]` or `ssh://` and the same, reached through the one before."""
    match = _HOP.fullmatch(text)
    port = int(match["port"] or 22) if match else 0
    if match is None or not 0 < port < 65536:
        raise ConfigError(
            "ssh_config",
            f"ProxyJump {text[:80]!r} can't be read",
            "Write [user@]host[:port], joined by commas.",
        )
    return replace(
        goal, host=match["plain"] or match["bracketed"], port=port, user=match["user"] or "", jump=before
    )


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
