"""The steps of a guard as Prefect tasks."""
