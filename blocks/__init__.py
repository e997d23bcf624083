"""Prefect Blocks: where things are and how to get in."""
