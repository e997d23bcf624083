"""Which rank, node and device the evidence points at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.diagnosis.exits import Exit
from trainguard.core.diagnosis.root import Ranking
from trainguard.core.diagnosis.scan import Hit, Scanned
from trainguard.core.diagnosis.timeline import Timeline
from trainguard.core.verdict import FaultClass

_PCI = re.compile(r"\b(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?\b")
_XID = re.compile(r"Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]{5,16})\)")
_GPU = re.compile(r"\b(?:GPU|gpu|device ordinal|CUDA device)[ :#]?(?P<gpu>\d{1,2})\b")
_RANK = re.compile(
    r"\brank\s*:\s*(?P<a>\d{1,6}) \(local_rank|\b[Rr]ank[ :=]?(?P<b>\d{1,6})\b|\btask:? ?(?P<c>\d{1,6})\b|/task:(?P<d>\d{1,6})\b"
)
_LOCAL = re.compile(r"\blocal_rank:? ?(?P<local>\d{1,4})\b")
_SEQUENCE = re.compile(r"SeqNum=(?P<a>\d+)|last enqueued (?:NCCL )?work: (?P<b>\d+)")
_GROUP = re.compile(r"PG (?:ID )?(?P<group>\d+)")
LIMIT = 8
"""Suspects that are named."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line points."""

    rank: int | None = None
    node: str = ""
    device: str = ""


class Suspicion:
    """Names the suspects of a ranking."""

    def __init__(self, ranking: Ranking, scanned: Sequence[Scanned], timeline: Timeline) -> None:
        self._ranking = ranking
        self._scanned = scanned
        self._timeline = timeline
        self._exits = sorted(self._deaths(), key=lambda pair: pair[0])

    def places(self, root: Candidate) -> list[tuple[Place, Hit | None]]:
        """Where the root happened, the likeliest first."""
        found: dict[Place, Hit | None] = {}
        if root.tier > 0 or root.rule.fault is FaultClass.HANG_STALL:
            lagging = self._behind()
            if lagging is not None:
                found[Place(lagging, self._node_of(lagging))] = root.first
        for hit in root.hits:
            where = self._whole(self._of(hit))
            if where != Place():
                found.setdefault(where, hit)
        if not found and root.rule.scope != "job":
            guess = self._first_dead("", None)
            if guess is not None:
                found[Place(guess, self._node_of(guess))] = root.first
        return list(found.items())[:LIMIT]

    def _of(self, hit: Hit) -> Place:
        """What a line says of itself, else what its stream is known for."""
        source = self._scanned[hit.stream].stream.source
        groups = hit.groups
        rank = int(groups["rank"]) if groups.get("rank", "").isdigit() else hit.rank
        if rank is None:
            rank = source.rank if source.rank is not None else _rank_in(hit.text)
        node = groups.get("node", "") or groups.get("host", "") or source.node or hit.node
        if rank is None:
            local = _LOCAL.search(hit.text)
            if local is not None:
                rank = self._first_dead(node, int(local["local"]))
                rank = int(local["local"]) if rank is None else rank
        return Place(rank, node, groups.get("device", "") or _device(hit.text))

    def _whole(self, where: Place) -> Place:
        """Fill in the rank from the node, or the node from the rank."""
        if where.rank is None and where.node:
            return Place(self._rank_at(where.node), where.node, where.device)
        if where.rank is not None and not where.node:
            return Place(where.rank, self._node_of(where.rank), where.device)
        return where

    def _rank_at(self, node: str) -> int | None:
        """The rank on a node that died, or complained, first."""
        dead = self._first_dead(node, None)
        if dead is not None:
            return dead
        here = self._ranks_at(node)
        for tier in (0, 1):
            spoke = [
                h for c in self._standing() if c.tier == tier for h in c.hits if self._rank(h) is not None
            ]
            first = self._earliest(h for h in spoke if not here or self._rank(h) in here)
            if first is not None:
                return self._rank(first)
        silent = here - {self._rank(h) for c in self._standing() for h in c.hits}
        return min(r for r in silent if r is not None) if len(silent) == 1 else None

    def _standing(self) -> Iterator[Candidate]:
        if self._ranking.root is not None:
            yield self._ranking.root
        yield from self._ranking.consequences
        yield from (c for c, _ in self._ranking.others if not (c.survived or c.echo))

    def _earliest(self, hits: Iterable[Hit]) -> Hit | None:
        return min(hits, key=self._when, default=None)

    def _when(self, hit: Hit) -> tuple[bool, float, int, int]:
        at = self._timeline.when(hit)
        return (at is None, at or 0.0, hit.stream, hit.line)

    def _rank(self, hit: Hit) -> int | None:
        source = self._scanned[hit.stream].stream.source
        return hit.rank if hit.rank is not None else source.rank

    def _deaths(self) -> Iterator[tuple[tuple[bool, float, int, int], Exit]]:
        for one in self._scanned:
            for said in one.exits:
                if not said.told_to:
                    at = self._timeline.wall(said.stamp)
                    yield (at is None, at or 0.0, one.index, said.line), said

    def _first_dead(self, node: str, local: int | None) -> int | None:
        """The rank that, by its launcher's words, ended first and not on order."""
        for _, said in self._exits:
            if said.rank is None or (node and said.node and not _same_host(said.node, node)):
                continue
            if local is None or said.local_rank == local:
                return said.rank
        return None

    def _behind(self) -> int | None:
        """The rank that the others wait for: the lowest sequence number, or the only one that is silent."""
        groups: dict[str, dict[int, int]] = {}
        waiting: set[int] = set()
        for hit in (h for c in self._standing() for h in c.hits):
            rank = self._rank(hit)
            if rank is None:
                continue
            waiting.add(rank)
            number = _SEQUENCE.search(hit.text)
            if number is not None:
                group = _GROUP.search(hit.text)
                own = groups.setdefault(group["group"] if group else "", {})
                value = int(number["a"] or number["b"])
                own[rank] = min(value, own.get(rank, value))
        for own in sorted(groups.values(), key=len, reverse=True):
            if min(own.values()) < max(own.values()):
                return min(own, key=lambda rank: (own[rank], rank))
        silent = self._all_ranks() - waiting
        return min(silent) if waiting and len(silent) == 1 else None

    def _all_ranks(self) -> set[int]:
        ranks: set[int] = set()
        for one in self._scanned:
            if one.stream.source.rank is not None:
                ranks.add(one.stream.source.rank)
            ranks |= {hit.rank for hit in one.hits() if hit.rank is not None}
            ranks |= {point.rank for point in one.progress if point.rank is not None}
        return ranks

    def _ranks_at(self, node: str) -> set[int]:
        found = {
            one.stream.source.rank
            for one in self._scanned
            if one.stream.source.rank is not None and one.stream.source.node == node
        }
        for one in self._scanned:
            found |= {hit.rank for hit in one.hits() if hit.rank is not None and hit.node == node}
        return {rank for rank in found if rank is not None}

    def _node_of(self, number: int) -> str:
        for one in self._scanned:
            source = one.stream.source
            if source.rank == number and source.node:
                return source.node
        for one in self._scanned:
            for hit in one.hits():
                if hit.rank == number and hit.node:
                    return hit.node
            for said in one.exits:
                if said.rank == number and said.node:
                    return said.node
        return ""


def _same_host(one: str, other: str) -> bool:
    return one.split(".")[0] == other.split(".")[0]


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
