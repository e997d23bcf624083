"""Logging in: what is told about keys and addresses before any server has answered."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import paramiko
import pytest

from trainguard.core.errors import AccessRefusedError, ConfigError, UnreachableError
from trainguard.transports.posix_shell import Command
from trainguard.transports.ssh import SshConnection, SshTarget


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


def test_secrets_are_not_shown() -> None:
    shown = repr(SshTarget("h", key_text="SECRET-KEY", passphrase="SECRET-WORD"))
    assert "SECRET" not in shown


async def test_a_closed_connection_is_not_used_again() -> None:
    connection = SshConnection(SshTarget("127.0.0.1", 1))
    await connection.close()
    await connection.close()
    with pytest.raises(RuntimeError):
        await connection.run([Command(("true",))])
