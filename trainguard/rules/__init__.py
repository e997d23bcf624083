"""The fault catalogue: one YAML file a family, and the loader that reads them.

A file says `family: GPU` and lists `rules:`. Users add files of the same form with `--rules`; these may
also, or only, hold `failure_handlers:`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainguard.core.diagnosis import pattern
from trainguard.core.diagnosis.rule import Catalogue, Rule
from trainguard.core.errors import ConfigError
from trainguard.core.handlers import SECTION
from trainguard.rules.store import OwnFolder

_FOLDER = Path(__file__).parent
_FORM = f"needs `family: NAME` and a list `rules:`, or `{SECTION}:`"


def own_files() -> tuple[Path, ...]:
    """The files that ship with the package, in the order of their names."""
    return tuple(sorted(_FOLDER.glob("*.yaml")))


def load_catalogue(extra: Sequence[Path] = (), store: OwnFolder | None = None) -> Catalogue:
    """Read the catalogue and the user's own files. Raises ConfigError naming file, rule and field.

    `store` keeps what a start works out: most of its time. It may be missing, old or unwritable.
    """
    key = _key()
    kept = _recall(store, key) if store else None
    if kept is not None:
        pattern.remember(kept["patterns"])
    known = pattern.count()
    documents = {path.name: _document(path) for path in own_files()} if kept is None else kept["families"]
    catalogue = _load(documents, extra, store)
    if store and (kept is None or pattern.count() > known):
        kept = {"key": key, "families": documents, "patterns": pattern.remembered()}
        store.put(_KEPT, json.dumps(kept).encode())
    return catalogue


_KEPT = "catalogue.json"


def _key() -> str:
    """What the kept catalogue was worked out from."""
    made = hashlib.blake2b(f"{pattern.ALGORITHM}".encode())
    for path in own_files():
        made.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return made.hexdigest()


def _recall(store: OwnFolder, key: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(store.get(_KEPT) or b"null")
    except ValueError:
        return None
    return kept if isinstance(kept, dict) and kept.get("key") == key else None


def _load(documents: Mapping[str, Any], extra: Sequence[Path], store: OwnFolder | None) -> Catalogue:
    rules: list[Rule] = []
    origin: dict[str, Path] = {}
    for path in (*own_files(), *extra):
        own = documents.get(path.name) if path.parent == _FOLDER else None
        for rule in _rules(path, own) if own is not None else load_file(path):
            if rule.id in origin:
                raise ConfigError(f"{path}: {rule.id}", f"this id is already used in {origin[rule.id]}")
            origin[rule.id] = path
            rules.append(rule)
    return Catalogue(rules, store)


def load_file(path: Path) -> tuple[Rule, ...]:
    """Read one family. Raises ConfigError."""
    return _rules(path, _document(path))


def _rules(path: Path, document: Mapping[str, Any]) -> tuple[Rule, ...]:
    if SECTION in document and "rules" not in document:
        return ()  # only exit-code handlers
    family, rows = document.get("family"), document.get("rules")
    if not isinstance(family, str) or not isinstance(rows, list):
        raise ConfigError(str(path), _FORM)
    return tuple(_rule(path, family, row) for row in rows)


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"can't be read: {error}") from error
    import yaml  # a warm start does not need it

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(text, Loader=loader)  # noqa: S506 - CSafeLoader or SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(str(path), _FORM)
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
