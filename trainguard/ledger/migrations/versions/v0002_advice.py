"""Answers of the language model, kept between processes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade(op: Operations) -> None:
    """Make the table."""
    op.create_table(
        "tg_advice",
        sa.Column("key", sa.Text(), primary_key=True, nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
