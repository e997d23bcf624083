"""What the refusals of a Kubernetes API server become. Pure.

Status words: https://kubernetes.io/docs/reference/using-api/api-concepts/ and the Status objects that
kube-apiserver 1.20 and 1.36 answered with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainguard.core.errors import (
    AccessRefusedError,
    NotFoundError,
    RefusedError,
    SchedulerError,
    UnreachableError,
)


class ConflictError(RefusedError):
    """409: the object is another one, or another version, than the request named. Nothing was changed."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class BudgetError(RefusedError):
    """429 of an eviction: a disruption budget does not allow it now."""


class ExpiredError(SchedulerError):
    """410: the resourceVersion is too old; list again."""


class LostAnswerError(UnreachableError):
    """A change was sent and its answer lost: it may have happened."""


def error_of(status: int, body: str, headers: Mapping[str, str], method: str, path: str) -> SchedulerError:
    """Give our error for a status other than 2xx. Pure."""
    said = _status(body)
    message = f"{method} {path.partition('?')[0]}: {status} {said.get('message') or body[:200]}".strip()
    reason = str(said.get("reason") or "")
    if status == 401:
        return AccessRefusedError(
            message, "the credentials were refused: renew the kubeconfig's token or certificate"
        )
    if status == 403:
        return AccessRefusedError(
            message, "grant what the message names; docs/kubernetes.md has the RBAC rules"
        )
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message, reason)
    if status == 410:
        return ExpiredError(message)
    if status == 429:
        return _too_many(message, said, headers, path)
    if status >= 500 or status < 400:
        # a timeout of the server says nothing about whether a change was stored
        unsure = LostAnswerError if method != "GET" else UnreachableError
        return unsure(message)
    return RefusedError(message)


def _too_many(message: str, said: dict[str, Any], headers: Mapping[str, str], path: str) -> SchedulerError:
    causes = (said.get("details") or {}).get("causes") or []
    if path.endswith("/eviction") and (
        any(cause.get("reason") == "DisruptionBudget" for cause in causes) or "budget" in message
    ):
        return BudgetError(message)
    try:
        after = float(headers.get("Retry-After") or (said.get("details") or {}).get("retryAfterSeconds") or 1)
    except ValueError:
        after = 1.0
    return UnreachableError(message, retry_after=after)


def _status(body: str) -> dict[str, Any]:
    """Read a Status object; an unknown API group is answered with plain text."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
