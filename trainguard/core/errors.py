"""Every error the project raises on purpose.

TrainguardError
├── UserError                 the user must act: the CLI prints it without a traceback and exits 2
│   └── ConfigError           names the field and the remedy
├── SchedulerError            a scheduler or the way to it
│   ├── UnreachableError      no answer: says nothing about the job
│   ├── AccessRefusedError    an answer, and it is "not you": credentials or rights
│   ├── NotFoundError         an answer, and it knows no such job
│   └── RefusedError          an action was refused and nothing was changed
└── LedgerError               the durable record
    ├── LedgerVersionError    written by a newer version: refused, untouched
    ├── LedgerDamagedError    not a ledger, or its file is damaged: refused, untouched
    ├── LedgerUnavailableError  locked, full or gone for now
    ├── LeaseHeldError        another guard owns the job
    ├── LeaseLostError        this guard no longer owns the job: it must stop acting at once
    ├── IntentExistsError     the fence was used before: find out what came of it
    └── IntentPendingError    an earlier restart's outcome is not known yet: find it first

Foreign exceptions become ours with `from` at the border that knows them.
"""

from __future__ import annotations


class TrainguardError(Exception):
    """Root of the tree."""


class UserError(TrainguardError):
    """Something only the user can mend. `remedy` is the next thing to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class ConfigError(UserError):
    """A setting is wrong. `field` is its dotted name as the user wrote it."""

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{field}: {problem}", remedy)
        self.field = field


class SchedulerError(TrainguardError):
    """A scheduler, or the way to it, did not do what was asked."""


class UnreachableError(SchedulerError):
    """No usable answer (connection, timeout, garbage). The job's state is unknown."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AccessRefusedError(SchedulerError):
    """Credentials or rights are missing. `remedy` says what to fix."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class NotFoundError(SchedulerError):
    """The scheduler answered and knows no such job."""


class RefusedError(SchedulerError):
    """The scheduler refused an action and changed nothing."""


class LedgerError(TrainguardError):
    """The durable record could not be used."""


class LedgerVersionError(LedgerError):
    """The ledger was written by a newer version; it was not touched."""


class LedgerDamagedError(LedgerError):
    """The file is no ledger or is damaged; it was not touched."""


class LedgerUnavailableError(LedgerError):
    """The ledger is locked, full or gone; what was asked did not happen."""

    remedy = "TRAINGUARD_LEDGER_URL says where it is: does its machine answer, has its disk room?"


class LeaseHeldError(LedgerError):
    """Another guard owns the job. `holder` names it."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


class LeaseLostError(LedgerError):
    """The lease went to another guard: stop acting on the job."""


class IntentExistsError(LedgerError):
    """An intent with this fence was written before: `find` tells what came of it."""


class IntentPendingError(LedgerError):
    """An earlier restarting intent of the job has no known outcome. `token` is its fence's."""

    def __init__(self, message: str, token: str) -> None:
        super().__init__(message)
        self.token = token
