"""One adapter per scheduler, without Prefect."""
