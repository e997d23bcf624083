"""Logging in: what is told about keys and addresses before any server has answered."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import threading
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from trainguard.core.errors import AccessRefusedError, ConfigError, UnreachableError
from trainguard.transports.posix_shell import Command
from trainguard.transports.ssh import SshConnection, SshTarget, _configured


def key_text(passphrase: str | None = None) -> str:
    """Make a small RSA key; in use it would be too small."""
    out = io.StringIO()
    paramiko.RSAKey.generate(1024).write_private_key(out, passphrase)
    return out.getvalue()


async def attempt(target: SshTarget) -> None:
    connection = SshConnection(target)
    try:
        await connection.run([Command(("true",))], now=True)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("text", "passphrase", "told", "remedy"),
    [
        ("locked", "", "is encrypted", "passphrase"),
        ("locked", "wrong", "with this passphrase", "passphrase"),
        ("nonsense", "", "can't be opened", "whole OpenSSH or PEM"),
    ],
)
async def test_a_key_that_can_not_be_used_is_told_with_what_to_fix(
    text: str, passphrase: str, told: str, remedy: str
) -> None:
    pasted = key_text("right") if text == "locked" else text
    with pytest.raises(AccessRefusedError, match=told) as refused:
        await attempt(SshTarget("127.0.0.1", 1, key_text=pasted, passphrase=passphrase))
    assert remedy in refused.value.remedy
    assert pasted not in str(refused.value)


async def test_a_key_file_that_is_not_there_is_told() -> None:
    with pytest.raises(AccessRefusedError, match="nowhere") as refused:
        await attempt(SshTarget("127.0.0.1", 1, key_file="/nowhere/key"))
    assert "key_file" in refused.value.remedy


async def test_a_door_that_is_shut_and_a_host_that_is_none_are_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = key_text()
    with pytest.raises(UnreachableError, match=f"port {port}.*refused"):
        await attempt(SshTarget("127.0.0.1", port, key_text=key))
    with pytest.raises(UnreachableError, match="no known host name"):
        await attempt(SshTarget("no.such.host.invalid", key_text=key))


async def test_a_server_that_does_not_speak_ssh_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = SshTarget("127.0.0.1", silent.getsockname()[1], key_text=key_text(), connect_timeout=1)
        with pytest.raises(UnreachableError, match="SSH login"):
            await attempt(target)


async def test_after_a_failure_the_next_attempts_wait() -> None:
    """The first pause is short and waited for; then calls fail at once and say when to ask again."""
    connection = SshConnection(SshTarget("127.0.0.1", 1, key_text=key_text()))
    try:
        for _ in range(3):
            with pytest.raises(UnreachableError, match="refused"):
                await connection.run([Command(("true",))])
        with pytest.raises(UnreachableError) as paused:
            await connection.run([Command(("true",))])
        assert paused.value.retry_after is not None
        assert 2 < paused.value.retry_after <= 4
        with pytest.raises(UnreachableError, match="refused"):
            await connection.run([Command(("true",))], now=True)
    finally:
        await connection.close()


async def test_a_proxy_command_is_refused_and_a_missing_config_named(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host hpc\n  ProxyCommand nc %h %p\n")
    for path, told in ((config, "ProxyCommand"), (tmp_path / "none", "none")):
        with pytest.raises(ConfigError, match=told):
            await attempt(SshTarget("hpc", ssh_config=str(path)))


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("jump", [("", "jump", 22)]),
        ("alice@jump:2222", [("alice", "jump", 2222)]),
        (
            "bob@first,alice@second.example.org:22022",
            [("alice", "second.example.org", 22022), ("bob", "first", 22)],
        ),
        ("ssh://alice@jump:2222", [("alice", "jump", 2222)]),
        ("[fe80::1]:2222", [("", "fe80::1", 2222)]),
        ("None", []),
    ],
)
def test_the_way_through_jump_hosts_is_read(
    tmp_path: Path, text: str, hops: list[tuple[str, str, int]]
) -> None:
    """The last one named is the one next to the goal."""
    config = tmp_path / "config"
    config.write_text(f"Host hpc\n  HostName 10.0.0.9\n  ProxyJump {text}\n")
    target = _configured(SshTarget("hpc", ssh_config=str(config), key_text="k", accept_new=True))
    found, jump = [], target.jump
    while jump is not None:
        assert (jump.key_text, jump.accept_new, jump.ssh_config) == ("k", True, str(config))
        found.append((jump.user, jump.host, jump.port))
        jump = jump.jump
    assert found == hops


@pytest.mark.parametrize("text", ["jump:port", "a,,b", "jump:99999", "@jump", "a@b@c", "fe80::1"])
def test_a_jump_host_that_can_not_be_read_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host hpc\n  ProxyJump {text}\n")
    with pytest.raises(ConfigError, match="ProxyJump"):
        _configured(SshTarget("hpc", ssh_config=str(config)))


class _Doorkeeper(paramiko.ServerInterface):
    """Lets everybody in, and starts a shell only every second time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.asked += 1
        if self.asked % 2 == 1:
            return False
        threading.Thread(target=self._answer, args=(channel,), daemon=True).start()
        return True

    @staticmethod
    def _answer(channel: paramiko.Channel) -> None:
        script = b""
        while data := channel.recv(1 << 16):
            script += data
        done = subprocess.run(["sh", "-s"], input=script, capture_output=True, check=False)
        channel.sendall(done.stdout)
        channel.sendall_stderr(done.stderr)
        channel.send_exit_status(0)
        channel.close()


async def test_a_session_that_the_server_does_not_start_ends_none_of_those_that_run(tmp_path: Path) -> None:
    """Under load sshd refuses one: it is asked for again, on the same connection."""
    keeper = _Doorkeeper()
    host_key = paramiko.RSAKey.generate(2048)
    with socket.create_server(("127.0.0.1", 0)) as door:
        made = []

        def serve() -> None:
            sock, _ = door.accept()
            made.append(transport := paramiko.Transport(sock))
            transport.add_server_key(host_key)
            transport.start_server(server=keeper)

        threading.Thread(target=serve, daemon=True).start()
        port = door.getsockname()[1]
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n")
        connection = SshConnection(
            SshTarget("127.0.0.1", port, "a", key_text=key_text(), known_hosts=str(known))
        )
        try:
            slow = connection.run([Command(("sh", "-c", "sleep 1; echo slow"))])
            first, second = await asyncio.gather(slow, connection.run([Command(("echo", "quick"))]))
        finally:
            await connection.close()
            for transport in made:
                transport.close()
    assert (first[0].text, second[0].text, len(made)) == ("slow\n", "quick\n", 1)
    assert keeper.asked == 4


def test_secrets_are_not_shown() -> None:
    shown = repr(SshTarget("h", key_text="SECRET-KEY", passphrase="SECRET-WORD"))
    assert "SECRET" not in shown


async def test_a_closed_connection_is_not_used_again() -> None:
    connection = SshConnection(SshTarget("127.0.0.1", 1))
    await connection.close()
    await connection.close()
    with pytest.raises(RuntimeError):
        await connection.run([Command(("true",))])
