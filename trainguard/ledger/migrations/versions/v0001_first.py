"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade(op: Operations) -> None:
    """Make all tables."""
    _jobs(op)
    _observations(op)
    _incidents(op)
    _findings(op)
    _actions(op)
    _people(op)
    _nodes(op)


def _words(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names]


def _times(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Double(), nullable=False) for name in names]


def _key(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), primary_key=True, nullable=False)


def _id() -> sa.Column[Any]:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", number, primary_key=True, autoincrement=True, nullable=False)


def _incident() -> sa.Column[Any]:
    return sa.Column("incident", sa.Text(), sa.ForeignKey("tg_incidents.id"), nullable=False)


def _jobs(op: Operations) -> None:
    op.create_table(
        "tg_jobs",
        _key("key"),
        *_words("scheduler", "cluster", "name", "project", "status", "outcome", "policy", "body"),
        *_times("registered_at", "status_at"),
    )
    op.create_table("tg_job_state", _key("job_key"), *_words("cursor", "health"))
    op.create_table(
        "tg_leases",
        _key("job_key"),
        *_words("holder"),
        sa.Column("number", sa.BigInteger(), nullable=False),
        *_times("expires_at"),
    )


def _observations(op: Operations) -> None:
    op.create_table(
        "tg_observations",
        _id(),
        *_words("job_key", "kind", "status_line", "body"),
        *_times("at"),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.Boolean(), nullable=False),
        sa.Column("step", sa.BigInteger()),
    )
    op.create_index("tg_observations_by_job", "tg_observations", ["job_key", "id"])
    op.create_index("tg_observations_by_time", "tg_observations", ["job_key", "at", "step"])


def _incidents(op: Operations) -> None:
    op.create_table(
        "tg_incidents",
        _key("id"),
        *_words("job_key", "state", "fingerprint", "body"),
        sa.Column("closed", sa.Boolean(), nullable=False),
        *_times("detected_at"),
    )
    op.create_index("tg_incidents_by_job", "tg_incidents", ["job_key", "detected_at"])
    op.create_index("tg_incidents_by_time", "tg_incidents", ["closed", "detected_at"])


def _findings(op: Operations) -> None:
    op.create_table(
        "tg_evidence",
        _id(),
        _incident(),
        *_words("sha256", "source", "body"),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("incident", "sha256", "source", name="tg_evidence_once"),
    )
    op.create_table("tg_evidence_texts", _key("sha256"), sa.Column("text", sa.LargeBinary(), nullable=False))
    op.create_table(
        "tg_diagnoses", _id(), _incident(), *_words("fault", "fingerprint", "body"), *_times("at")
    )
    op.create_index("tg_diagnoses_by_incident", "tg_diagnoses", ["incident", "id"])
    op.create_table("tg_plans", _id(), _incident(), *_words("verdict", "body"))
    op.create_index("tg_plans_by_incident", "tg_plans", ["incident", "id"])


def _actions(op: Operations) -> None:
    op.create_table(
        "tg_intents",
        _id(),
        _incident(),
        *_words("token", "job_key", "kind", "body"),
        sa.Column("restarts", sa.Boolean(), nullable=False),
        *_times("at"),
        sa.UniqueConstraint("token", name="tg_intents_once"),
    )
    op.create_index("tg_intents_by_job", "tg_intents", ["job_key", "id"])
    op.create_index("tg_intents_by_incident", "tg_intents", ["incident", "id"])
    op.create_table(
        "tg_outcomes",
        sa.Column("token", sa.Text(), sa.ForeignKey("tg_intents.token"), primary_key=True),
        *_words("status", "body"),
        *_times("at"),
    )


def _people(op: Operations) -> None:
    op.create_table(
        "tg_requests",
        _key("id"),
        _incident(),
        *_words("job_key", "body"),
        *_times("asked_at", "deadline"),
    )
    op.create_index("tg_requests_by_job", "tg_requests", ["job_key", "asked_at"])
    op.create_table(
        "tg_answers",
        sa.Column("request", sa.Text(), sa.ForeignKey("tg_requests.id"), primary_key=True),
        *_words("answer", "body"),
        *_times("at"),
    )
    op.create_table(
        "tg_notifications",
        *[_key(name) for name in ("job_key", "incident", "kind")],
        *_times("noted_at"),
        sa.Column("sent_at", sa.Double()),
    )


def _nodes(op: Operations) -> None:
    op.create_table(
        "tg_node_events",
        _id(),
        *_words("node", "job_key", "incident", "fault"),
        *_times("at"),
        sa.UniqueConstraint("node", "incident", "fault", name="tg_node_events_once"),
    )
    op.create_index("tg_node_events_by_node", "tg_node_events", ["node", "at"])
