"""Messages themselves, so that one that nobody took is sent later, by whoever guards then."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade(op: Operations) -> None:
    """Add the columns; what was noted before has no text and is not sent again."""
    op.add_column("tg_notifications", sa.Column("posted_at", sa.Double()))
    op.add_column("tg_notifications", sa.Column("body", sa.Text()))
