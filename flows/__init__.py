"""Orchestration: guard, diagnose, recover, patrol."""
