"""Whole incidents as folders: the logs, and what must be said of them."""
