"""Which deployments are guards: told by what they would run, without running or importing any of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from trainguard.core.errors import ConfigError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.responses import DeploymentResponse

_OWN = {
    ("guard", "guard"): "a guard",
    ("patrol", "patrol"): "a patrol",
}


def own_flow(deployment: DeploymentResponse) -> Flow[..., Any]:
    """Give the installed package's flow that a deployment means.

    The code that its pull steps would fetch is not fetched: it would be imported into the process that
    guards everybody's jobs. Raises ConfigError for a flow that is not a guard or patrol, and for one that
    takes parameters the installed version does not know.
    """
    entrypoint = deployment.entrypoint or ""
    name = _own_name(entrypoint)
    if name is None:
        raise ConfigError(
            "entrypoint",
            f"{entrypoint or 'nothing'} is neither trainguard's guard nor its patrol",
            "a pool of type trainguard runs nothing else: deploy this flow to a pool of type `process`, "
            "`docker` or `kubernetes`",
        )
    flow = _flow(name)
    unknown = _parameters(deployment.parameter_openapi_schema or {}) - _parameters(
        flow.parameters.model_dump()
    )
    if unknown:
        raise ConfigError(
            "entrypoint",
            f"{entrypoint} takes {', '.join(sorted(unknown))}, which the installed trainguard's {name} does not",
            "install the same version for the worker as for the deployment, or deploy to a pool of type `process`",
        )
    return flow


def _own_name(entrypoint: str) -> str | None:
    """`flows/guard.py:guard`, `trainguard.flows.guard:guard` and `trainguard.flows.guard.guard` are ours."""
    where, _, function = entrypoint.rpartition(":" if ":" in entrypoint else ".")
    for module, name in _OWN:
        file = PurePosixPath(where.replace("\\", "/")).parts[-2:] == ("flows", f"{module}.py")
        if function == name and (file or where == f"trainguard.flows.{module}"):
            return name
    return None


def _flow(name: str) -> Flow[..., Any]:
    # Imported when first needed: every `prefect` command imports this package to find the worker's type.
    from trainguard.flows.guard import guard
    from trainguard.flows.patrol import patrol

    flows: dict[str, Flow[..., Any]] = {"guard": guard, "patrol": patrol}
    return flows[name]


def _parameters(schema: Mapping[str, Any]) -> set[str]:
    return set(schema.get("properties", {}))
