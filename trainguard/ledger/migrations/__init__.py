"""The schema's history; `trainguard.ledger.schema` runs it, no alembic command line is needed."""
