"""Kubernetes: watched, read as raw objects, acted on once per fence."""

from trainguard.schedulers.kubernetes.adapter import KubernetesScheduler

__all__ = ["KubernetesScheduler"]
