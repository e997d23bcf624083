"""Host keys, jump host and ssh_config against a real sshd."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.labs.slurm.lab_cluster import Cluster
from trainguard.core.errors import AccessRefusedError, UnreachableError
from trainguard.transports.posix_shell import Command
from trainguard.transports.ssh import SshConnection, SshTarget

pytestmark = pytest.mark.lab("slurm")


async def login(target: SshTarget) -> str:
    """Log in and say who we are there."""
    connection = SshConnection(target)
    try:
        (answer,) = await connection.run([Command(("id", "-un"))])
        return answer.text.strip()
    finally:
        await connection.close()


async def test_an_unknown_host_key_is_refused_with_the_line_to_add(acct: Cluster, tmp_path: Path) -> None:
    """The line works as it is."""
    known = tmp_path / "known_hosts"
    target = replace(acct.target(), known_hosts=str(known))
    with pytest.raises(AccessRefusedError, match="SHA256:") as refused:
        await login(target)
    known.write_text(refused.value.remedy.partition("add this line: ")[2] + "\n")
    assert await login(target) == acct.facts["USER_NAME"]


async def test_a_new_host_key_is_remembered_only_where_asked_and_a_changed_one_never(
    acct: Cluster, tmp_path: Path
) -> None:
    known = tmp_path / "sub" / "known_hosts"
    target = replace(acct.target(), known_hosts=str(known), accept_new=True)
    assert await login(target) == acct.facts["USER_NAME"]
    assert await login(replace(target, accept_new=False)) == acct.facts["USER_NAME"]
    kind, _ = known.read_text().split()[1:]
    other = (acct.folder.parent / "keys" / f"{acct.facts['OPS_NAME']}.pub").read_text().split()[1]
    known.write_text(f"[127.0.0.1]:{acct.facts['PORT']} {kind} {other}\n")
    with pytest.raises(AccessRefusedError, match="has changed"):
        await login(target)


async def test_a_jump_host_and_a_pasted_key(acct: Cluster, bare: Cluster) -> None:
    """Through one cluster's login node to the other's."""
    key = Path(acct.facts["USER_KEY"]).read_text()
    jump = replace(acct.target(), key_file="", key_text=key)
    goal = replace(bare.target(), key_file="", key_text=key, jump=jump)
    assert await login(goal) == acct.facts["USER_NAME"]
    with pytest.raises(UnreachableError, match="jump host"):
        await login(replace(goal, port=1))


async def test_ssh_config_fills_in_what_is_not_set(acct: Cluster, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host hpc\n  HostName 127.0.0.1\n  Port {acct.facts['PORT']}\n  User {acct.facts['USER_NAME']}\n"
        f"  IdentityFile {acct.facts['USER_KEY']}\n"
    )
    target = SshTarget("hpc", ssh_config=str(config), known_hosts=acct.facts["KNOWN_HOSTS"])
    assert await login(target) == acct.facts["USER_NAME"]


async def test_a_login_script_that_talks_does_not_get_into_answers(acct: Cluster) -> None:
    rc = acct.home / ".bashrc"
    rc.write_text("echo welcome to the cluster\necho and mind the rules >&2\n")
    acct.give(rc)
    try:
        assert await login(acct.target()) == acct.facts["USER_NAME"]
        rc.write_text("echo no shell for you; exit 1\n")
        with pytest.raises(UnreachableError, match="no shell for you"):
            await login(acct.target())
    finally:
        rc.unlink()


async def test_many_commands_at_once_stay_within_the_servers_sessions(acct: Cluster) -> None:
    """sshd opens ten at most; forty are asked for."""
    connection = SshConnection(acct.target())
    try:
        answers = await asyncio.gather(*(connection.run([Command(("sleep", "0.2"))]) for _ in range(40)))
    finally:
        await connection.close()
    assert all(answer[0].code == 0 for answer in answers)
