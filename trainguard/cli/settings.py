"""Settings from flags, environment and `trainguard.toml`, in that order of strength."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from trainguard.core.cadence import Cadence
from trainguard.core.errors import ConfigError
from trainguard.core.policy import Policy, read_policy

FILE = "trainguard.toml"


class Settings(BaseSettings):
    """What `trainguard.toml` may hold. Environment: TRAINGUARD_<NAME>, nested with two underscores."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINGUARD_", env_nested_delimiter="__", extra="ignore", use_attribute_docstrings=True
    )
    file: ClassVar[Path | None] = None

    ledger_url: str = ""
    """Where the ledger is; by default a SQLite file of the user's."""
    job: dict[str, Any] = Field(default_factory=dict)
    """The local job: name, command, checkpoints, watching, supervisor …"""
    policy: dict[str, Any] = Field(default_factory=dict)
    """See docs/policy.md."""
    cadence: Cadence = Cadence()
    notifiers: list[str] = Field(default_factory=list)
    """Slugs of notifier blocks, such as `trainguard-slack-webhook/team`."""
    model: str = ""
    """Slug of a language model block, such as `trainguard-language-model/advisor`; empty for none."""
    rules: list[Path] = Field(default_factory=list)
    """Files of own rules and exit-code handlers, from the folder of this file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then the file."""
        del dotenv_settings, file_secret_settings
        file = TomlConfigSettingsSource(settings_cls, toml_file=cls.file)
        return init_settings, env_settings, file


def load_settings(path: Path | None) -> Settings:
    """Read the settings. Raises ConfigError that names the field, the file and the remedy."""
    where = path or Path(FILE)
    if path is not None and not path.is_file():
        raise ConfigError("--config", f"there is no file {path}", "give the path of a trainguard.toml")
    Settings.file = where if where.is_file() else None
    try:
        return Settings()
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            field, f"{first['msg']} (found {first['input']!r})", f"mend it in {where}"
        ) from None
    except (OSError, ValueError) as problem:
        raise ConfigError(str(where), str(problem), "it must be a readable TOML file") from None


def rules_of(settings: Settings, flags: Sequence[Path] | None) -> tuple[Path, ...]:
    """Join the rule files of the settings with those of the flags, and read them once. Raises ConfigError."""
    from trainguard.tasks.catalogue import read_rules  # Prefect takes a second to import

    folder = Settings.file.parent if Settings.file else Path()
    files = [folder / path.expanduser() for path in settings.rules] + list(flags or ())
    found = tuple(dict.fromkeys(path.resolve() for path in files))
    if found:
        read_rules(found)
    return found


def policy_of(settings: Settings, file: Path | None, preset: str | None, allow: list[str] | None) -> Policy:
    """Join the policy of the file with that of the flags. Raises ConfigError."""
    table = dict(settings.policy)
    if file is not None:
        table = _table_of(file)
    if preset is not None:
        table["preset"] = preset
    if allow:
        table["allow"] = [*table.get("allow", ()), *allow]
    return read_policy(table)


def _table_of(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as problem:
        raise ConfigError("--policy", f"{file} can't be read: {problem.strerror}") from problem
    except ValueError as problem:
        raise ConfigError(
            "--policy", f"{file} is not TOML: {problem}", "check the line it names"
        ) from problem
    found: dict[str, Any] = table.get("policy", table)
    return found
