"""Which rank, node and device the evidence points at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.diagnosis.scan import Hit, Scanned
from trainguard.core.diagnosis.timeline import Timeline

_PCI = re.compile(r"\b(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?\b")
_XID = re.compile(r"Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]{5,16})\)")
_GPU = re.compile(r"\b(?:GPU|gpu|device ordinal|CUDA device|local_rank:?)[ :#]?(?P<gpu>\d{1,2})\b")
_RANK = re.compile(
    r"(?:\brank\s*:\s*(?P<a>\d{1,6}) \(local_rank|\b[Rr]ank[ :=]?(?P<b>\d{1,6})\b|\btask:? ?(?P<c>\d{1,6})\b|"
    r"\blocal_rank:? ?(?P<d>\d{1,6})\b|/task:(?P<e>\d{1,6})\b)"
)
_SEQUENCE = re.compile(r"SeqNum=(?P<a>\d+)|last enqueued work: (?P<b>\d+)")
LIMIT = 8
"""Suspects that are named."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line points."""

    rank: int | None
    node: str
    device: str


def place(hit: Hit, scanned: Sequence[Scanned]) -> Place:
    """What a line says of itself, else what its stream is known for."""
    source = scanned[hit.stream].stream.source
    groups = hit.groups
    rank = int(groups["rank"]) if groups.get("rank", "").isdigit() else hit.rank
    if rank is None:
        rank = source.rank
    if rank is None:
        rank = _rank_in(hit.text)
    node = groups.get("node", "") or groups.get("host", "") or source.node or hit.node
    return Place(rank, node, groups.get("device", "") or _device(hit.text))


def _rank_in(text: str) -> int | None:
    found = _RANK.search(text)
    return None if found is None else int(next(group for group in found.groups() if group))


def _device(text: str) -> str:
    xid = _XID.search(text)
    if xid is not None:
        return xid["pci"]
    gpu = _GPU.search(text)
    if gpu is not None:
        return gpu["gpu"]
    pci = _PCI.search(text) if "pci" in text.lower() else None
    return pci.group() if pci else ""


def behind(hits: Iterable[Hit], scanned: Sequence[Scanned]) -> int | None:
    """The rank that the others wait for: the lowest sequence number, or the only one that says nothing."""
    sequences: dict[int, int] = {}
    waiting: set[int] = set()
    for hit in hits:
        rank = place(hit, scanned).rank
        if rank is None:
            continue
        waiting.add(rank)
        found = _SEQUENCE.search(hit.text)
        if found is not None:
            number = int(found["a"] or found["b"])
            sequences[rank] = min(number, sequences.get(rank, number))
    if sequences and min(sequences.values()) < max(sequences.values()):
        return min(sequences, key=lambda rank: (sequences[rank], rank))
    silent = _all_ranks(scanned) - waiting
    return min(silent) if waiting and len(silent) == 1 else None


def _all_ranks(scanned: Sequence[Scanned]) -> set[int]:
    ranks: set[int] = set()
    for one in scanned:
        if one.stream.source.rank is not None:
            ranks.add(one.stream.source.rank)
        ranks |= {hit.rank for hit in one.hits() if hit.rank is not None}
        ranks |= {point.rank for point in one.progress if point.rank is not None}
    return ranks


def rank_of_node(
    node: str, candidates: Sequence[Candidate], scanned: Sequence[Scanned], timeline: Timeline
) -> int | None:
    """The rank on a node that showed the failure first."""
    seen: list[tuple[bool, float, int]] = []
    for candidate in candidates:
        for hit in candidate.hits:
            where = place(hit, scanned)
            if where.node == node and where.rank is not None and not candidate.survived:
                when = timeline.when(hit)
                seen.append((when is None, when or 0.0, where.rank))
    return min(seen)[2] if seen else None
