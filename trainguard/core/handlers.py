"""The owner's exit-code handlers: which recovery script belongs to which exit code, and how often it may run.

The file's form is that of torc's failure handlers, so that existing ones can be used as they are:
https://nrel.github.io/torc/ (failure handlers).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainguard.core.errors import ConfigError
from trainguard.core.fact import Fact

SECTION = "failure_handlers"
DEFAULT_RETRIES = 3
DEFAULT_TIMEOUT = 600.0


class HandlerRule(Fact):
    """One script for some exit codes."""

    exit_codes: tuple[int, ...]
    """1 to 255; above 128 a signal's number plus 128."""
    recovery_script: str
    """As written, or absolute once `located`."""
    max_retries: int = DEFAULT_RETRIES
    """How often it may run for one job without progress in between."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds it may take."""


class FailureHandler(Fact):
    """A named list of rules; the first that fits and has tries left is taken."""

    name: str
    rules: tuple[HandlerRule, ...]


class HandlerMatch(Fact):
    """A script that fits an exit code."""

    key: str
    """`handler#rule`: uses are counted by it."""
    handler: str
    rule: HandlerRule
    tries_left: int
    """This one included."""


def match_handler(
    handlers: Iterable[FailureHandler], exit_code: int | None, used: Mapping[str, int]
) -> HandlerMatch | None:
    """Find the first script for an exit code that has tries left. `used` counts runs by `HandlerMatch.key`.

    An unknown exit code matches nothing: a handler acts on facts only.
    """
    for key, rule in _rules_by_key(handlers):
        left = rule.max_retries - used.get(key, 0)
        if exit_code in rule.exit_codes and left > 0:
            return HandlerMatch(key=key, handler=key.rpartition("#")[0], rule=rule, tries_left=left)
    return None


def used_up(handlers: Iterable[FailureHandler], exit_code: int | None, used: Mapping[str, int]) -> str:
    """Name the scripts that fit an exit code and have no tries left; empty where there is none."""
    return ", ".join(
        f"{rule.recovery_script} ({used[key]} of {rule.max_retries})"
        for key, rule in _rules_by_key(handlers)
        if exit_code in rule.exit_codes and used.get(key, 0) >= rule.max_retries
    )


def rule_of(handlers: Iterable[FailureHandler], key: str) -> HandlerRule | None:
    """Find a rule again by `HandlerMatch.key`."""
    return next((rule for known, rule in _rules_by_key(handlers) if known == key), None)


def exit_status(exit_code: int | None, signal: int | None) -> int | None:
    """Give the exit code as a shell would: 128 and the signal's number where a signal ended it."""
    return 128 + signal if signal and not exit_code else exit_code


def _rules_by_key(handlers: Iterable[FailureHandler]) -> Iterator[tuple[str, HandlerRule]]:
    for handler in handlers:
        for number, rule in enumerate(handler.rules, 1):
            yield f"{handler.name}#{number}", rule


def handlers_from(data: object) -> tuple[FailureHandler, ...]:
    """Read the handlers out of a parsed rules file. Raises ConfigError that names the field and the remedy."""
    if not isinstance(data, Mapping):
        raise ConfigError(SECTION, "the file must be a mapping", f"begin it with `{SECTION}:`")
    entries = _list(data.get(SECTION, []), SECTION)
    handlers = tuple(_handler(entry, f"{SECTION}[{index}]") for index, entry in enumerate(entries))
    names = [handler.name for handler in handlers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(SECTION, f"two handlers are named {name!r}", "give each its own name")
    return handlers


def _handler(entry: object, field: str) -> FailureHandler:
    fields = _fields(entry, field, required=("name", "rules"))
    name = fields["name"]
    if not isinstance(name, str) or not name.strip() or "#" in name:
        raise ConfigError(f"{field}.name", "must be a text without `#`", "for example `known_errors`")
    rules = _list(fields["rules"], f"{field}.rules")
    if not rules:
        raise ConfigError(f"{field}.rules", "is empty", "give at least one rule, or leave the handler out")
    return FailureHandler(
        name=name, rules=tuple(_rule(rule, f"{field}.rules[{index}]") for index, rule in enumerate(rules))
    )


def _rule(entry: object, field: str) -> HandlerRule:
    fields = _fields(
        entry, field, required=("exit_codes", "recovery_script"), optional=("max_retries", "timeout_seconds")
    )
    script = fields["recovery_script"]
    if not isinstance(script, str) or not script.strip() or "\x00" in script:
        raise ConfigError(
            f"{field}.recovery_script", "must be the path of a script", "for example ./recover.sh"
        )
    return HandlerRule(
        exit_codes=_exit_codes(fields["exit_codes"], f"{field}.exit_codes"),
        recovery_script=script,
        max_retries=int(
            _number(fields.get("max_retries", DEFAULT_RETRIES), f"{field}.max_retries", 1, 100, whole=True)
        ),
        timeout=_number(
            fields.get("timeout_seconds", DEFAULT_TIMEOUT), f"{field}.timeout_seconds", 1, 86_400
        ),
    )


def _exit_codes(value: object, field: str) -> tuple[int, ...]:
    codes = _list(value, field)
    if not codes:
        raise ConfigError(field, "is empty", "list the exit codes that the script handles, such as [10, 11]")
    if any(code == 0 and not isinstance(code, bool) for code in codes):
        raise ConfigError(field, "0 is success and needs no recovery", "take it out")
    return tuple(int(_number(code, field, 1, 255, whole=True)) for code in codes)


def _fields(
    entry: object, field: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(field, "must be a mapping", f"give {', '.join(required)}")
    known = required + optional
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ConfigError(
                f"{field}.{name}",
                "is no known setting",
                f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
            )
    for name in required:
        if name not in entry:
            raise ConfigError(f"{field}.{name}", "is missing", f"add `{name}:`")
    return entry


def _list(value: object, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(field, "must be a list", "write it as `- …` lines or as […]")
    return value


def _number(value: object, field: str, low: float, high: float, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(field, f"{value!r} is not {kind} from {low:g} to {high:g}", "")
    return value
