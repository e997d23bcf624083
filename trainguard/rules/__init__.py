"""The fault catalogue: one YAML file a family, and the loader that reads them.

A file says `family: GPU` and lists `rules:`. Users add files of the same form with `--rules`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trainguard.core.diagnosis import pattern
from trainguard.core.diagnosis.rule import Catalogue, Rule
from trainguard.core.errors import ConfigError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def own_files() -> tuple[Path, ...]:
    """The files that ship with the package, in the order of their names."""
    return tuple(sorted(Path(__file__).parent.glob("*.yaml")))


def load_catalogue(extra: Sequence[Path] = (), memory: Path | None = None) -> Catalogue:
    """Read the catalogue and the user's own files. Raises ConfigError naming file, rule and field.

    `memory` is a file that keeps what was found out about the patterns: half of the time of a start.
    It may be missing, old or unwritable.
    """
    known = _recall(memory) if memory else {}
    catalogue = _load(extra)
    if memory and known.keys() != pattern.remembered().keys():
        _keep(memory)
    return catalogue


def _recall(memory: Path) -> pattern.Memory:
    try:
        kept = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict) or kept.get("algorithm") != pattern.ALGORITHM:
        return {}
    known = kept.get("patterns")
    if not isinstance(known, dict) or not all(isinstance(sets, list) for sets in known.values()):
        return {}
    pattern.remember(known)
    return known


def _keep(memory: Path) -> None:
    text = json.dumps({"algorithm": pattern.ALGORITHM, "patterns": pattern.remembered()})
    half = memory.with_suffix(f".{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(text, encoding="utf-8")
        half.replace(memory)
    except OSError:
        return  # the next start is as slow as this one


def _load(extra: Sequence[Path]) -> Catalogue:
    rules: list[Rule] = []
    origin: dict[str, Path] = {}
    for path in (*own_files(), *extra):
        for rule in load_file(path):
            if rule.id in origin:
                raise ConfigError(f"{path}: {rule.id}", f"this id is already used in {origin[rule.id]}")
            origin[rule.id] = path
            rules.append(rule)
    return Catalogue(rules)


def load_file(path: Path) -> tuple[Rule, ...]:
    """Read one family. Raises ConfigError."""
    document = _document(path)
    family, rows = document.get("family"), document.get("rules")
    if not isinstance(family, str) or not isinstance(rows, list):
        raise ConfigError(str(path), "needs `family: NAME` and a list `rules:`")
    return tuple(_rule(path, family, row) for row in rows)


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"can't be read: {error}") from error
    try:
        document = yaml.load(text, Loader=_LOADER)  # noqa: S506 - CSafeLoader or SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(str(path), "needs `family: NAME` and a list `rules:`")
    return document


def _rule(path: Path, family: str, row: object) -> Rule:
    name = row.get("id", "a rule without id") if isinstance(row, dict) else "a row that is no mapping"
    try:
        rule = Rule.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {name}" + (f": {field}" if field else ""), first["msg"]) from error
    if rule.family != family:
        raise ConfigError(f"{path}: {name}: id", f"must begin with the file's family, {family}-")
    return rule
