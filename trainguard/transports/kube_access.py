"""How to get into a Kubernetes cluster: kubeconfig as a file or as text, or the pod's service account."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes_asyncio import client, config
from kubernetes_asyncio.config.config_exception import ConfigException

from trainguard.core.errors import ConfigError


@dataclass(frozen=True)
class KubeAccess:
    """How to get in. Exactly one of the three ways; `context` picks among a kubeconfig's contexts."""

    path: str = ""
    """Kubeconfig file (no `~`); empty with no text and not in_cluster means kubectl's own default."""
    text: str = field(default="", repr=False)
    in_cluster: bool = False
    context: str = ""
    allow_exec: bool = False
    """Let a kubeconfig given as text name a command that is run on this machine."""


async def new_client(access: KubeAccess) -> Any:
    """Make a client with credentials of its own. Raises ConfigError where the kubeconfig can't be used."""
    settings = client.Configuration()
    try:
        await _load(access, settings)
    except (ConfigException, OSError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "kubeconfig", f"can't be used: {error}", "check its file, text and context"
        ) from error
    return client.ApiClient(configuration=settings)


async def _load(access: KubeAccess, settings: Any) -> None:
    if access.in_cluster:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    elif access.text:
        await config.load_kube_config_from_dict(
            parse_kubeconfig(access.text, access.allow_exec),
            context=access.context or None,
            client_configuration=settings,
        )
    else:
        await config.load_kube_config(
            config_file=access.path or None,
            context=access.context or None,
            client_configuration=settings,
            persist_config=False,
        )


def parse_kubeconfig(text: str, allow_exec: bool = False) -> dict[str, Any]:
    """Read a kubeconfig given as text. Raises ConfigError where it is none or names a command to run."""
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("kubeconfig", f"is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("clusters"), list):
        raise ConfigError(
            "kubeconfig", "is no kubeconfig: it names no clusters", "paste `kubectl config view --raw`"
        )
    for user in parsed.get("users") or []:
        way = (user or {}).get("user") or {}
        if not allow_exec and (
            "exec" in way or "cmd-path" in ((way.get("auth-provider") or {}).get("config") or {})
        ):
            raise ConfigError(
                "kubeconfig",
                f"user {user.get('name')!r} gets in by a command (`exec`), which would run on this machine",
                "use a token or certificate, give the kubeconfig as a file, or set allow_exec",
            )
    return parsed


def in_cluster() -> bool:
    """Tell whether this process runs in a pod with a service account."""
    return (
        bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        and Path("/var/run/secrets/kubernetes.io/serviceaccount/token").is_file()
    )
