"""Incidents of many ranks, from a seed: one rank meets a fault, the others show what real ones show.

The lines are those that the named programs print (PyTorch, NCCL, torchrun, Slurm, Linux); only
numbers, hosts and steps are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from trainguard.core.diagnosis import Stream
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.core.verdict import FaultClass

GPUS = 8
EPOCH = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp()


@dataclass
class Incident:
    """Logs and the truth about them."""

    kind: str
    streams: tuple[Stream, ...]
    faults: frozenset[FaultClass]
    rank: int | None
    """None where the fault is no single rank's."""
    node: str
    ranks: int


@dataclass
class World:
    """The job while it is being told."""

    rng: random.Random
    ranks: int
    victim: int
    when: float
    step: int
    skew: dict[str, float] = field(default_factory=dict)
    lines: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    kernel: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    launcher: list[tuple[float, str]] = field(default_factory=list)
    style: str = "iso"

    def node(self, rank: int) -> str:
        return f"gpu-node-{rank // GPUS:03}"

    @property
    def victim_node(self) -> str:
        return self.node(self.victim)

    def say(self, rank: int, at: float, *texts: str) -> None:
        self.lines.setdefault(rank, []).extend((at, text) for text in texts)

    def kmsg(self, at: float, text: str) -> None:
        self.kernel.setdefault(self.victim_node, []).append((at, text))


def _stamp(world: World, rank: int, at: float, level: str = "INFO") -> str:
    moment = datetime.fromtimestamp(at + world.skew[world.node(rank)], UTC)
    if world.style == "glog":
        return f"{level[0]}{moment:%m%d %H:%M:%S.%f} {4000 + rank} train.py:88] "
    return f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03} - {level} - trainer - "


def _torch(world: World, rank: int, at: float, place: str, level: str = "E") -> str:
    moment = datetime.fromtimestamp(at + world.skew[world.node(rank)], UTC)
    return f"[rank{rank}]:[{level}{moment:%-m%d %H:%M:%S.%f}000 {place}] "


def _train(world: World) -> None:
    rng = world.rng
    steps = rng.randint(12, 30)
    seconds = rng.uniform(1.0, 20.0)
    for back in range(steps, 0, -1):
        at, step = world.when - back * seconds, world.step - back
        loss = 2.0 + rng.random() / 5
        for rank in range(world.ranks):
            jitter = rng.uniform(0, 0.3)
            text = f"step {step}/50000 | loss: {loss:.4f} | grad_norm: {rng.random():.3f} | lr: 3.0e-04"
            world.say(rank, at + jitter, _stamp(world, rank, at + jitter) + text)
            if rng.random() < 0.01:
                noise = rng.choice(_NOISE)
                world.say(rank, at + jitter, _stamp(world, rank, at + jitter, "WARNING") + noise)


_NOISE = (
    "wandb: Network error (ConnectionError), entering retry loop.",
    "UserWarning: Error handling is not enabled for this dataloader; exceptions will propagate",
    "grad overflow on rank, skipping step, reducing loss scale to 32768",
    "Retrying (Retry(total=4, connect=None)) after connection broken by 'ReadTimeoutError'",
    "no errors found in 128 shards, 0 corrupt, 0 failed",
)


def _traceback(world: World, at: float, path: str, last: str) -> None:
    victim = world.victim
    tag = f"[rank{victim}]: " if world.rng.random() < 0.5 else ""
    world.say(
        victim,
        at,
        f"{tag}Traceback (most recent call last):",
        f'{tag}  File "/home/user/train/main.py", line 212, in <module>',
        f"{tag}    main()",
        f'{tag}  File "/home/user/train/{path}", line {world.rng.randint(10, 400)}, in step',
        f"{tag}    out = self.model(batch)",
        f'{tag}  File "/opt/conda/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1553, in _call_impl',
        f"{tag}    return forward_call(*args, **kwargs)",
        f"{tag}{last}",
    )


# --- faults ----------------------------------------------------------------------------------


def _xid79(world: World) -> None:
    pci = f"0000:{world.rng.randint(16, 200):02x}:00"
    world.kmsg(
        world.when, f"NVRM: Xid (PCI:{pci}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    )
    world.kmsg(world.when + 0.1, f"NVRM: GPU {pci}.0: GPU has fallen off the bus.")
    _traceback(world, world.when + 1, "loop.py", "RuntimeError: CUDA error: unknown error")


def _ecc(world: World) -> None:
    pci = f"0000:{world.rng.randint(16, 200):02x}:00"
    world.kmsg(
        world.when,
        f"NVRM: Xid (PCI:{pci}): 48, pid=2811, name=python3, DBE (double bit error) ECC error on subpartition 1",
    )
    _traceback(
        world,
        world.when + 0.5,
        "loop.py",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    )


def _gpu_oom(world: World) -> None:
    size = f"{world.rng.uniform(1, 20):.2f}"
    _traceback(
        world,
        world.when,
        "model.py",
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {size} GiB. GPU {world.victim % GPUS} has a "
        "total capacity of 79.11 GiB of which 1.06 GiB is free. Including non-PyTorch memory, this process has 78.03 GiB memory in use.",
    )


def _host_oom(world: World) -> None:
    pid = 30000 + world.victim
    world.kmsg(
        world.when,
        "python3 invoked oom-killer: gfp_mask=0x1100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0",
    )
    world.kmsg(
        world.when + 0.2,
        f"Memory cgroup out of memory: Killed process {pid} (python3) total-vm:98213412kB, anon-rss:64012312kB, file-rss:0kB, shmem-rss:1024kB, UID:1000 pgtables:13kB oom_score_adj:0",
    )
    world.launcher.append(
        (
            world.when + 2,
            f"ERROR:torch.distributed.elastic.multiprocessing.api:failed (exitcode: -9) local_rank: {world.victim % GPUS} (pid: {pid}) of binary: /opt/conda/bin/python",
        )
    )


def _infiniband(world: World) -> None:
    victim, node = world.victim, world.victim_node
    peer = world.node((victim + GPUS) % world.ranks)
    world.kmsg(world.when - 0.5, "mlx5_core 0000:0c:00.0 ib0: Link down")
    world.say(
        victim,
        world.when,
        f"{node}:{9000 + victim}:{9500 + victim} [{victim % GPUS}] transport/net_ib.cc:1295 NCCL WARN NET/IB : Got completion from peer "
        f"{peer}<53120> with status=12 opcode=0 len=0 vendor err 129 (Recv) localGid fe80::1 remoteGids fe80::2 hca mlx5_0",
    )
    world.say(
        victim,
        world.when + 0.1,
        _torch(world, victim, world.when + 0.1, "ProcessGroupNCCL.cpp:1834")
        + f"[PG ID 0 PG GUID 0(default_pg) Rank {victim}] Exception (either an error or timeout) detected by watchdog at work: 812, last enqueued NCCL work: 812, last completed NCCL work: 811.",
    )


def _node_failure(world: World) -> None:
    world.launcher.append((world.when + 40, f"srun: error: Node failure on {world.victim_node}"))
    world.launcher.append(
        (
            world.when + 41,
            f"slurmstepd: error: *** JOB 48213 ON {world.node(0)} CANCELLED AT 2025-03-04T05:07:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
        )
    )


def _io_error(world: World) -> None:
    _traceback(
        world,
        world.when,
        "dataset.py",
        "OSError: [Errno 5] Input/output error: '/lustre/datasets/web/shard-000412.tar'",
    )
    world.kmsg(
        world.when - 1,
        "LustreError: 11-0: scratch-OST0011-osc-ffff9d2c: operation ost_read to node 10.4.0.11@o2ib failed: rc = -5",
    )


def _disk_full(world: World) -> None:
    _traceback(world, world.when, "checkpoint.py", "OSError: [Errno 28] No space left on device")


def _index_error(world: World) -> None:
    _traceback(world, world.when, "batching.py", "IndexError: list index out of range")


def _attribute_error(world: World) -> None:
    _traceback(world, world.when, "hooks.py", "AttributeError: 'NoneType' object has no attribute 'grad'")


def _illegal_access(world: World) -> None:
    _traceback(
        world,
        world.when,
        "kernels.py",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
    )


def _bad_image(world: World) -> None:
    _traceback(
        world,
        world.when,
        "images.py",
        "PIL.UnidentifiedImageError: cannot identify image file <_io.BytesIO object at 0x7f1f2b3c4d50>",
    )


def _bad_checkpoint(world: World) -> None:
    _traceback(
        world,
        world.when,
        "resume.py",
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
    )


def _dns(world: World) -> None:
    _traceback(
        world,
        world.when,
        "fetch.py",
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url: /api/models (Caused by NameResolutionError(\"<urllib3.connection.HTTPSConnection object at 0x7f93ef725670>: Failed to resolve 'huggingface.co' ([Errno -3] Temporary failure in name resolution)\"))",
    )


def _silent_hang(world: World) -> None:
    """The victim stops; only the others' watchdogs speak."""


def _time_limit(world: World) -> None:
    world.launcher.append(
        (
            world.when,
            f"slurmstepd: error: *** STEP 48213.0 ON {world.node(0)} CANCELLED AT 2025-03-04T05:06:07 DUE TO TIME LIMIT ***",
        )
    )


def _preempted(world: World) -> None:
    world.launcher.append(
        (
            world.when,
            f"slurmstepd: error: *** JOB 48213 ON {world.node(0)} CANCELLED AT 2025-03-04T05:06:07 DUE TO PREEMPTION ***",
        )
    )


# --- what the others show ----------------------------------------------------------------------


def _watchdog(world: World, rank: int, at: float) -> None:
    sequence = world.step * 7
    if rank == world.victim:
        sequence -= 1
    operation = f"WorkNCCL(SeqNum={sequence}, OpType=ALLREDUCE, NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000)"
    world.say(
        rank,
        at,
        _torch(world, rank, at, "ProcessGroupNCCL.cpp:616")
        + f"[Rank {rank}] Watchdog caught collective operation timeout: {operation} ran for {600000 + rank} milliseconds before timing out.",
        _torch(world, rank, at, "ProcessGroupNCCL.cpp:630")
        + "Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels, subsequent GPU operations might run on corrupted/incomplete data.",
        _torch(world, rank, at, "ProcessGroupNCCL.cpp:1484")
        + f"[PG ID 0 PG GUID 0(default_pg) Rank {rank}] Process group watchdog thread terminated with exception: [Rank {rank}] Watchdog caught collective operation timeout: {operation} ran for {600000 + rank} milliseconds before timing out.",
        "terminate called after throwing an instance of 'c10::DistBackendError'",
    )


def _reset(world: World, rank: int, at: float) -> None:
    node = world.node(rank)
    world.say(
        rank,
        at,
        f"{node}:{9000 + rank}:{9500 + rank} [{rank % GPUS}] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer {world.victim_node}<57557>",
        "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error, NCCL version 2.20.5",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    )


def _gloo(world: World, rank: int, at: float) -> None:
    world.say(
        rank,
        at,
        f"RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.4.0.{world.victim // GPUS + 1}]:34521",
    )


def _terminated(world: World, rank: int, at: float) -> None:
    world.say(rank, at, _stamp(world, rank, at, "WARNING") + "Received signal 15 (SIGTERM), shutting down")


_SHOWS: tuple[Callable[[World, int, float], None], ...] = (_watchdog, _reset, _gloo, _terminated)


def _cascade(world: World, kind: str) -> None:
    rng = world.rng
    shown = _watchdog if kind == "silent_hang" else rng.choice(_SHOWS)
    dead = set()
    if kind == "node_failure":
        dead = {r for r in range(world.ranks) if world.node(r) == world.victim_node}
    base = world.when + (600 if shown is _watchdog else 3)
    for rank in range(world.ranks):
        if rank in dead or (rank == world.victim and kind != "silent_hang"):
            continue
        if rng.random() < 0.9 or kind == "silent_hang":
            shown(world, rank, base + rng.uniform(0, 4))
    end = base + 6
    for rank in range(0, world.ranks, max(1, world.ranks // 16)):
        world.launcher.append(
            (
                end,
                f"WARNING:torch.distributed.elastic.multiprocessing.api:Sending process {30000 + rank} closing signal SIGTERM",
            )
        )
    if kind not in _WHOLE_JOB and kind != "silent_hang":
        _child_failed(world, end + 1)
    world.launcher.append((end + 2, f"srun: error: {world.node(0)}: tasks 0-{GPUS - 1}: Terminated"))


def _child_failed(world: World, at: float) -> None:
    """What the agent on the victim's node reports, between the reports of two other nodes."""
    others = [r for r in range(0, world.ranks, GPUS) if world.node(r) != world.victim_node]
    chosen = [(r, -6, 4.0) for r in world.rng.sample(others, min(2, len(others)))]
    chosen.append((world.victim, -9 if world.rng.random() < 0.5 else 1, 1.0))
    world.rng.shuffle(chosen)
    for rank, code, delay in chosen:
        moment = datetime.fromtimestamp(world.when + delay + world.skew[world.node(rank)] % 5, UTC)
        block = (
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
            "============================================================",
            "/home/user/train/main.py FAILED",
            "------------------------------------------------------------",
            "Failures:",
            "  <NO_OTHER_FAILURES>",
            "Root Cause (first observed failure):",
            "[0]:",
            f"  time      : {moment:%Y-%m-%d_%H:%M:%S}",
            f"  host      : {world.node(rank)}",
            f"  rank      : {rank} (local_rank: {rank % GPUS})",
            f"  exitcode  : {code} (pid: {30000 + rank})",
            "  error_file: <N/A>",
            "  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html",
        )
        world.launcher.extend((at + number / 1000, line) for number, line in enumerate(block))
        at += 0.1


FAULTS: dict[str, tuple[Callable[[World], None], frozenset[FaultClass]]] = {
    "xid79": (_xid79, frozenset({FaultClass.GPU_HARDWARE})),
    "ecc": (_ecc, frozenset({FaultClass.GPU_HARDWARE})),
    "gpu_oom": (_gpu_oom, frozenset({FaultClass.GPU_OOM})),
    "host_oom": (_host_oom, frozenset({FaultClass.HOST_OOM})),
    "infiniband": (_infiniband, frozenset({FaultClass.NCCL_COMM})),
    "node_failure": (_node_failure, frozenset({FaultClass.NODE_FAILURE})),
    "io_error": (_io_error, frozenset({FaultClass.STORAGE_IO})),
    "disk_full": (_disk_full, frozenset({FaultClass.STORAGE_IO})),
    "index_error": (_index_error, frozenset({FaultClass.CODE_BUG})),
    "attribute_error": (_attribute_error, frozenset({FaultClass.CODE_BUG})),
    "illegal_access": (_illegal_access, frozenset({FaultClass.CODE_BUG})),
    "bad_image": (_bad_image, frozenset({FaultClass.DATA})),
    "bad_checkpoint": (_bad_checkpoint, frozenset({FaultClass.CHECKPOINT_CORRUPTION})),
    "dns": (_dns, frozenset({FaultClass.NETWORK_EXTERNAL})),
    "silent_hang": (_silent_hang, frozenset({FaultClass.NCCL_COMM, FaultClass.HANG_STALL})),
    "time_limit": (_time_limit, frozenset({FaultClass.TIME_LIMIT})),
    "preempted": (_preempted, frozenset({FaultClass.PREEMPTION})),
}
_WHOLE_JOB = {"node_failure", "time_limit", "preempted"}
"""Faults that are no single rank's."""


def generate(seed: int, kind: str | None = None, ranks: int | None = None) -> Incident:
    """One incident. The same seed gives the same one."""
    rng = random.Random(seed)
    kind = kind or rng.choice(sorted(FAULTS))
    ranks = ranks or rng.choice((8, 16, 32, 64, 128, 256, 512))
    world = World(rng, ranks, rng.randrange(ranks), EPOCH + rng.uniform(0, 1e6), rng.randint(100, 40000))
    world.style = rng.choice(("iso", "glog"))
    wild = rng.random() < 0.3
    for rank in range(ranks):
        world.skew.setdefault(world.node(rank), rng.uniform(-3600, 3600) if wild else rng.uniform(-5, 5))
    _train(world)
    fault, classes = FAULTS[kind]
    fault(world)
    _cascade(world, kind)
    layout = rng.choice(("separate", "tagged", "srun"))
    streams = _separate(world) if layout == "separate" else _interleaved(world, layout)
    return Incident(
        f"{kind}/{layout}",
        streams,
        classes,
        None if kind in _WHOLE_JOB else world.victim,
        world.victim_node,
        ranks,
    )


def _separate(world: World) -> tuple[Stream, ...]:
    streams = []
    order = list(world.lines)
    world.rng.shuffle(order)
    for rank in order:
        text = "".join(f"{line}\n" for _, line in sorted(world.lines[rank], key=lambda pair: pair[0]))
        if rank != world.victim and world.rng.random() < 0.2:
            text = text[: -world.rng.randint(1, 300)]
        source = LogSource(name=f"rank-{rank}.log", rank=rank, node=world.node(rank))
        streams.append(Stream(source, EvidenceKind.LOG, (text,)))
    return (*streams, *_others(world))


def _interleaved(world: World, layout: str) -> tuple[Stream, ...]:
    rng = world.rng
    told: list[tuple[float, int, str]] = []
    for rank, lines in world.lines.items():
        late = rng.uniform(0, 1.0)  # buffers: a rank's lines come late, in their own order
        for at, line in sorted(lines, key=lambda pair: pair[0]):
            told.append((at + late, rank, line))
    told.sort(key=lambda item: item[0])
    tag = "[rank{}]: " if layout == "tagged" else "{}: "
    text = "".join(
        f"{'' if line.startswith('[rank') else tag.format(rank)}{line}\n" for _, rank, line in told
    )
    return (Stream(LogSource(name="job.log"), EvidenceKind.LOG, (text,)), *_others(world))


def _others(world: World) -> tuple[Stream, ...]:
    streams = []
    for node, lines in world.kernel.items():
        stamped = []
        for at, text in sorted(lines):
            moment = datetime.fromtimestamp(at + world.skew[node], UTC)
            stamped.append(f"[{moment:%a %b %e %H:%M:%S %Y}] {text}\n")
        source = LogSource(name=f"{node}/dmesg", kind="kernel", node=node)
        streams.append(Stream(source, EvidenceKind.KERNEL, ("".join(stamped),)))
    text = "".join(f"{line}\n" for _, line in sorted(world.launcher))
    streams.append(Stream(LogSource(name="launcher.err"), EvidenceKind.LOG, (text,)))
    return tuple(streams)
