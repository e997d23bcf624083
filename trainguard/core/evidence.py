"""Excerpts that a diagnosis may cite."""

from __future__ import annotations

import hashlib
from enum import StrEnum

from trainguard.core.fact import Fact
from trainguard.core.observation import LogSource


class EvidenceKind(StrEnum):
    """What kind of text it is: rules name the kinds they trust."""

    LOG = "log"
    KERNEL = "kernel"
    EVENTS = "events"
    STATUS = "status"
    ACCOUNTING = "accounting"
    STACKS = "stacks"
    UTILISATION = "utilisation"


class Evidence(Fact):
    """One excerpt with where and when it was read. Masked before it is stored."""

    source: LogSource
    kind: EvidenceKind
    text: str
    first_line: int | None = None
    at: float
    truncated: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the text: the evidence's name in the ledger."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


class Citation(Fact):
    """One line that shows a claim."""

    source: LogSource
    line: int | None
    """Line number in the source, from 1; None where the source's beginning is unknown."""
    text: str
    """The line as printed, without terminal escapes, at most 2,000 characters."""
    at: float | None = None
    """The line's own time where it has one."""
