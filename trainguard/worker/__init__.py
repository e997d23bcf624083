"""The Prefect worker that runs guards in its own process."""
