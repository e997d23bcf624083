"""A Kubernetes cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import yaml
from prefect_kubernetes.credentials import KubernetesCredentials
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.errors import ConfigError
from trainguard.core.job import Job
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.kubernetes import KubernetesScheduler
from trainguard.schedulers.kubernetes.kinds import JobName, parse_job_name
from trainguard.schedulers.kubernetes.manifest import read_manifest
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.transports.kube_access import KubeAccess, in_cluster, parse_kubeconfig


class KubernetesCluster(SchedulerBlock):
    """How to reach a Kubernetes cluster: a kubeconfig as a file or as text, or the pod's own service account.

    Without any of them the service account is used inside a cluster, and kubectl's default file outside.

    Example:
        Load a saved cluster:
        ```python
        from trainguard.blocks.kubernetes_cluster import KubernetesCluster

        cluster = KubernetesCluster.load("BLOCK_NAME")
        ```
    """

    model_config = ConfigDict(
        hide_input_in_errors=True
    )  # a kubeconfig that is refused stays out of the message

    scheduler_name: ClassVar[str] = KubernetesScheduler.name

    _block_type_name = "trainguard Kubernetes Cluster"
    _block_type_slug = "kubernetes-cluster"
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/13629408?s=200")
    _description = "A Kubernetes cluster whose training jobs are guarded."

    cluster: str = Field(
        default="kubernetes",
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="Name of the cluster in reports and the ledger. The same for every block that reaches it.",
    )
    kubeconfig_path: Path | None = Field(
        default=None, description="Kubeconfig file on the machine where the guards run."
    )
    kubeconfig: SecretStr | None = Field(default=None, description="Kubeconfig as text. Kept secret.")
    context: str = Field(default="", description="Context of the kubeconfig; empty for its current one.")
    in_cluster: bool = Field(default=False, description="Use the service account of the guard's own pod.")
    allow_exec: bool = Field(
        default=False,
        description="Let a kubeconfig given as text run its `exec:` command where the guards run.",
    )
    credentials: KubernetesCredentials | None = Field(
        default=None,
        description="Credentials block of prefect-kubernetes. Its kubeconfig is stored readable, not as a secret.",
    )
    namespace: str = Field(default="default", description="Namespace of jobs that name none.")
    volumes: dict[str, str] = Field(
        default_factory=dict,
        description="Folders in the jobs' pods, and where the guards see the same volume: "
        '{"/ckpt": "/mnt/training"}. For finding the newest good checkpoint.',
    )
    failed_pod_is_failure: bool = Field(
        default=False,
        description="Take a Job for failed as soon as one of its pods has failed (status.failed >= 1), though "
        "Kubernetes has retries left. By default that is a warning.",
    )
    manifest_folder: Path | None = Field(
        default=None,
        description="Folder, kept over restarts, where a job's manifest is put before the job is made again. "
        "By default trainguard/manifests under the user's state folder.",
    )

    @field_validator("kubeconfig")
    @classmethod
    def _is_kubeconfig(cls, text: SecretStr | None) -> SecretStr | None:
        if text is not None:
            try:
                parse_kubeconfig(text.get_secret_value(), allow_exec=True)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return text

    @model_validator(mode="after")
    def _one_way_in(self) -> KubernetesCluster:
        ways = [self.kubeconfig_path, self.kubeconfig, self.credentials, self.in_cluster or None]
        if sum(way is not None for way in ways) > 1:
            raise ValueError("give one of kubeconfig_path, kubeconfig, credentials, in_cluster")
        return self

    def cluster_name(self) -> str:
        """Name the cluster."""
        return self.cluster

    def place(self, job: Job) -> Job:
        """Complete a job, named `namespace/Kind/name`, `kind/name` or by its manifest, as text or as a path.

        Raises ConfigError where that names no job.
        """
        if job.ref.scheduler in ("", self.scheduler_name):
            found = self._named(job.ref.id).id
            if found != job.ref.id:
                own = "" if job.name == Job(ref=job.ref).name else job.name
                ref = job.ref.model_copy(update={"id": found})
                job = Job.model_validate({**dict(job), "ref": ref, "name": own})
        return super().place(job)

    def _named(self, given: str) -> JobName:
        if not _is_manifest(given):
            return parse_job_name(given, self.namespace)
        kind, manifest = read_manifest(_text(given, "job"), self.namespace, "job")
        return JobName(manifest["metadata"]["namespace"], kind, manifest["metadata"]["name"])

    def access(self) -> KubeAccess:
        """Say how to get in. Raises ConfigError for a text that names a command, unless that is allowed."""
        if self.kubeconfig is not None:
            text = self.kubeconfig.get_secret_value()
            parse_kubeconfig(text, self.allow_exec)
            return KubeAccess(text=text, context=self.context, allow_exec=self.allow_exec)
        if self.credentials is not None and self.credentials.cluster_config is not None:
            # its own get_client would set the process-wide default and never renew a token: only its data is used
            found = self.credentials.cluster_config
            text = yaml.safe_dump(found.config)
            parse_kubeconfig(text, self.allow_exec)
            return KubeAccess(
                text=text, context=self.context or found.context_name, allow_exec=self.allow_exec
            )
        if self.kubeconfig_path is not None:
            return KubeAccess(path=str(self.kubeconfig_path.expanduser()), context=self.context)
        if self.in_cluster or in_cluster():
            return KubeAccess(in_cluster=True)
        return KubeAccess(context=self.context)

    def make_scheduler(self) -> Scheduler:
        """Make the adapter."""
        folder = self.manifest_folder or _state_folder() / "manifests" / self.cluster
        return KubernetesScheduler(
            self.cluster,
            self.access(),
            folder.expanduser(),
            Limits(failed_pod_is_failure=self.failed_pod_is_failure),
            volumes_here=self.volumes,
        )


def _state_folder() -> Path:
    """Where a user's programs keep what must survive a restart (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "trainguard"


def _is_text(given: str) -> bool:
    return "\n" in given or given.lstrip().startswith("{")


def _is_manifest(given: str) -> bool:
    """Tell a manifest, or the path of one, from a job's name, which may end like a path."""
    if _is_text(given):
        return True
    if not given.endswith((".yaml", ".yml", ".json")):
        return False
    try:
        parse_job_name(given, "any")
    except ConfigError:
        return True
    return Path(given).expanduser().is_file()


def _text(given: str, field: str) -> str:
    """Read a manifest that is given as a path; what has line breaks or braces is the manifest itself."""
    if _is_text(given):
        return given
    try:
        return Path(given).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(field, f"{given!r} can't be read: {error}") from error
