"""The settings of a worker: those of its pool, as the UI shows them; the environment wins for one worker."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """Environment: TRAINGUARD_WORKER_<NAME>. Each has a default that suits SQLite on two cores."""

    model_config = SettingsConfigDict(env_prefix="TRAINGUARD_WORKER_", extra="ignore")

    starts_a_second: float = Field(
        default=3.0,
        gt=0,
        le=100,
        title="Starts a second",
        description="At most so many guards begin in a second. SQLite answers 503 when many begin at once.",
    )
    watch_seconds: float = Field(
        default=5.0,
        gt=0,
        title="Seconds to a cancellation",
        description="How often the worker asks which of its runs were cancelled or suspended.",
    )
    adopt_seconds: float = Field(
        default=30.0,
        gt=0,
        title="Seconds between looks for orphans",
        description="How often the worker looks for runs of this pool whose worker died.",
    )
    silent_seconds: float = Field(
        default=120.0,
        gt=0,
        title="Seconds until a run without a guard is an orphan",
        description="A run that is under way, though no guard holds its job, was left behind after this time.",
    )
    drain_seconds: float = Field(
        default=60.0,
        ge=0,
        title="Seconds to hand over",
        description="How long guards may take to lay down their duty when the worker is asked to stop.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what the pool says."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def pool_template() -> dict[str, Any]:
    """Give the base job template: the settings above, and nothing that a coroutine has no use for."""
    schema = WorkerSettings.model_json_schema()
    schema.pop("title", None)
    schema.pop("description", None)
    schema.pop("additionalProperties", None)
    return {
        "job_configuration": {name: "{{ " + name + " }}" for name in WorkerSettings.model_fields},
        "variables": schema,
    }


def settings_of(template: dict[str, Any]) -> WorkerSettings:
    """Read a pool's settings from its base job template; a pool made for another type has the defaults."""
    known = template.get("variables", {}).get("properties", {})
    given = {
        name: known[name]["default"]
        for name in WorkerSettings.model_fields
        if known.get(name, {}).get("default") is not None
    }
    return WorkerSettings(**given)
