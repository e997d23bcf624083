"""Logs of jobs that are well, however they look."""
