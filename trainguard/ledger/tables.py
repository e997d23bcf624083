"""The tables: columns for what is asked for, JSON text for the rest.

JSON is text in both databases: Postgres' own JSON types refuse NaN and NUL, which logs contain.
The prefix lets a ledger share a Postgres database with Prefect.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from trainguard.core.fact import Fact

F = TypeVar("F", bound=Fact)

VERSION_TABLE = "tg_version"


class Words(TypeDecorator[str]):
    """Text that both databases take: NUL and lone surrogates become U+FFFD and `?`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Clean what is written."""
        del dialect
        if value is None:
            return None
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def dump(fact: Fact, *, brief: bool = False) -> str:
    """Write a fact as ASCII JSON; `brief` leaves defaults out. NaN and surrogates survive."""
    return json.dumps(fact.model_dump(mode="json", exclude_defaults=brief), separators=(",", ":"))


def load(model: type[F], text: str) -> F:
    """Read back what `dump` wrote."""
    return model.model_validate(json.loads(text))


def step_column(step: int | None) -> int | None:
    """Fit a step into 64 bits: a log may print any number."""
    return None if step is None else max(-(2**63), min(step, 2**63 - 1))


metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[Any]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


def _incident() -> Column[Any]:
    return Column("incident", Words, ForeignKey("tg_incidents.id"), nullable=False)


jobs = Table(
    "tg_jobs",
    metadata,
    Column("key", Words, primary_key=True),
    Column("scheduler", Words, nullable=False),
    Column("cluster", Words, nullable=False),
    Column("name", Words, nullable=False),
    Column("project", Words, nullable=False),
    Column("registered_at", Double, nullable=False),
    Column("status", Words, nullable=False),
    Column("outcome", Words, nullable=False),
    Column("status_at", Double, nullable=False),
    Column("policy", Words, nullable=False),
    Column("body", Text, nullable=False),
)

job_state = Table(
    "tg_job_state",
    metadata,
    Column("job_key", Words, primary_key=True),
    Column("cursor", Words, nullable=False),
    Column("health", Words, nullable=False),
)

leases = Table(
    "tg_leases",
    metadata,
    Column("job_key", Words, primary_key=True),
    Column("holder", Words, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
)

observations = Table(
    "tg_observations",
    metadata,
    _id(),
    Column("job_key", Words, nullable=False),
    Column("at", Double, nullable=False),
    Column("kind", Words, nullable=False),
    Column("slot", BigInteger, nullable=False),
    Column("changed", Boolean, nullable=False),
    Column("step", BigInteger),
    Column("status_line", Words, nullable=False),
    Column("body", Text, nullable=False),
    Index("tg_observations_by_job", "job_key", "id"),
    Index("tg_observations_by_time", "job_key", "at", "step"),
)

incidents = Table(
    "tg_incidents",
    metadata,
    Column("id", Words, primary_key=True),
    Column("job_key", Words, nullable=False),
    Column("state", Words, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("detected_at", Double, nullable=False),
    Column("fingerprint", Words, nullable=False),
    Column("body", Text, nullable=False),
    Index("tg_incidents_by_job", "job_key", "detected_at"),
    Index("tg_incidents_by_time", "closed", "detected_at"),
)

evidence = Table(
    "tg_evidence",
    metadata,
    _id(),
    _incident(),
    Column("sha256", Words, nullable=False),
    Column("source", Words, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("incident", "sha256", "source", name="tg_evidence_once"),
)

evidence_texts = Table(
    "tg_evidence_texts",
    metadata,
    Column("sha256", Words, primary_key=True),
    Column("text", LargeBinary, nullable=False),
)

diagnoses = Table(
    "tg_diagnoses",
    metadata,
    _id(),
    _incident(),
    Column("at", Double, nullable=False),
    Column("fault", Words, nullable=False),
    Column("fingerprint", Words, nullable=False),
    Column("body", Text, nullable=False),
    Index("tg_diagnoses_by_incident", "incident", "id"),
)

plans = Table(
    "tg_plans",
    metadata,
    _id(),
    _incident(),
    Column("verdict", Words, nullable=False),
    Column("body", Text, nullable=False),
    Index("tg_plans_by_incident", "incident", "id"),
)

intents = Table(
    "tg_intents",
    metadata,
    _id(),
    Column("token", Words, nullable=False),
    _incident(),
    Column("job_key", Words, nullable=False),
    Column("kind", Words, nullable=False),
    Column("restarts", Boolean, nullable=False),
    Column("at", Double, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("token", name="tg_intents_once"),
    Index("tg_intents_by_job", "job_key", "id"),
    Index("tg_intents_by_incident", "incident", "id"),
)

outcomes = Table(
    "tg_outcomes",
    metadata,
    Column("token", Words, ForeignKey("tg_intents.token"), primary_key=True),
    Column("status", Words, nullable=False),
    Column("at", Double, nullable=False),
    Column("body", Text, nullable=False),
)

requests = Table(
    "tg_requests",
    metadata,
    Column("id", Words, primary_key=True),
    _incident(),
    Column("job_key", Words, nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("body", Text, nullable=False),
    Index("tg_requests_by_job", "job_key", "asked_at"),
)

answers = Table(
    "tg_answers",
    metadata,
    Column("request", Words, ForeignKey("tg_requests.id"), primary_key=True),
    Column("answer", Words, nullable=False),
    Column("at", Double, nullable=False),
    Column("body", Text, nullable=False),
)

notifications = Table(
    "tg_notifications",
    metadata,
    Column("job_key", Words, nullable=False),
    Column("incident", Words, nullable=False),
    Column("kind", Words, nullable=False),
    Column("noted_at", Double, nullable=False),
    Column("sent_at", Double),
    Column("posted_at", Double),
    Column("body", Text),
    PrimaryKeyConstraint("job_key", "incident", "kind"),
)

node_events = Table(
    "tg_node_events",
    metadata,
    _id(),
    Column("node", Words, nullable=False),
    Column("job_key", Words, nullable=False),
    Column("incident", Words, nullable=False),
    Column("fault", Words, nullable=False),
    Column("at", Double, nullable=False),
    UniqueConstraint("node", "incident", "fault", name="tg_node_events_once"),
    Index("tg_node_events_by_node", "node", "at"),
)

advice = Table(
    "tg_advice",
    metadata,
    Column("key", Words, primary_key=True),
    Column("answer", Words, nullable=False),
    Column("at", Double, nullable=False),
)
