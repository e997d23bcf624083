"""A Slurm cluster behind a login node."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field, HttpUrl, SecretStr

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.schedulers.slurm import Settings, SlurmScheduler
from trainguard.transports.ssh import SshTarget


class SlurmCluster(SchedulerBlock):
    """How to log in to a Slurm cluster: the owner of the jobs, with a private key, on a login node.

    Example:
        Load a saved cluster:
        ```python
        from trainguard.blocks.slurm_cluster import SlurmCluster

        cluster = SlurmCluster.load("BLOCK_NAME")
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    scheduler_name: ClassVar[str] = SlurmScheduler.name

    _block_type_name: ClassVar[str] = "trainguard Slurm Cluster"
    _block_type_slug: ClassVar[str] = "slurm-cluster"
    _description: ClassVar[str] = "A Slurm cluster whose training jobs are guarded over SSH."
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://avatars.githubusercontent.com/u/39270919?s=200")

    host: str = Field(description="Login node: a name, an address, or a Host of the ssh_config file.")
    port: int = Field(default=22, ge=1, le=65535, description="Port of its SSH server.")
    user: str = Field(
        default="", description="Account to log in as: the owner of the jobs, or a Slurm operator."
    )
    private_key: SecretStr | None = Field(
        default=None, description="Private key, pasted whole. Wins over the file. Kept secret."
    )
    key_file: str = Field(
        default="",
        description="Private key file on the machine where the guards run. Empty: agent and usual files.",
    )
    passphrase: SecretStr | None = Field(default=None, description="Passphrase of the key. Kept secret.")
    known_hosts: str = Field(
        default="~/.ssh/known_hosts", description="File with the host keys that are trusted."
    )
    accept_new: bool = Field(
        default=False,
        description="Trust and remember the key of a host never seen before. A changed key is refused all the same.",
    )
    ssh_config: str = Field(
        default="", description="ssh_config file whose entry for the host fills in what is not set."
    )
    jump_host: str = Field(default="", description="Host to go through, with the same key. Empty for none.")
    jump_port: int = Field(default=22, ge=1, le=65535, description="Port of the jump host's SSH server.")
    jump_user: str = Field(default="", description="Account on the jump host; empty for the same.")
    cluster: str = Field(
        default="", description="Name of the cluster in reports and the ledger; empty for the host's name."
    )
    slurm_path: list[str] = Field(
        default_factory=list,
        description='Folders with squeue and sbatch on the login node, if not on its PATH, as JSON: ["/opt/slurm/bin"].',
    )
    completing_deadline: float = Field(
        default=300.0, gt=0, description="Seconds in COMPLETING after which a job is reported as stuck."
    )

    requeue_delay: float = Field(
        default=10.0,
        ge=0,
        description="Seconds between the end of a run and the start of the next after a requeue. Slurm's own is 121.",
    )

    def cluster_name(self) -> str:
        """Name the cluster."""
        return self.cluster or self.host

    def make_scheduler(self) -> SlurmScheduler:
        """Make the adapter. It logs in when first used."""
        return SlurmScheduler(
            self.cluster_name(),
            self._target(),
            path=tuple(self.slurm_path),
            settings=Settings(completing_deadline=self.completing_deadline, requeue_delay=self.requeue_delay),
        )

    def _target(self) -> SshTarget:
        jump = None
        if self.jump_host:
            jump = self._login(self.jump_host, self.jump_port, self.jump_user or self.user, None)
        return self._login(self.host, self.port, self.user, jump)

    def _login(self, host: str, port: int, user: str, jump: SshTarget | None) -> SshTarget:
        return SshTarget(
            host=host,
            port=port,
            user=user,
            key_file=self.key_file,
            key_text=self.private_key.get_secret_value() if self.private_key is not None else "",
            passphrase=self.passphrase.get_secret_value() if self.passphrase is not None else "",
            known_hosts=self.known_hosts,
            accept_new=self.accept_new,
            ssh_config=self.ssh_config,
            jump=jump,
        )
