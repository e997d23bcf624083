"""When things happened, on one clock: stamps of many forms and nodes whose clocks differ."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

from trainguard.core.diagnosis.scan import Hit, Scanned
from trainguard.core.diagnosis.steps import Point
from trainguard.core.diagnosis.text import Clock, Stamp

_YEAR_2000 = datetime(2000, 1, 1, tzinfo=UTC).timestamp()


class Timeline:
    """Turns the stamps of hits into comparable seconds.

    Ranks of one job reach a step together; what their stamps of the same steps differ by is
    the difference of their clocks.
    """

    def __init__(self, scanned: Sequence[Scanned], now: float | None = None) -> None:
        self._year = _year(scanned, now)
        self.skew = _skew(scanned, self)
        self._node_skew: dict[str, float] = {}
        by_node: dict[str, list[float]] = {}
        for (index, _), offset in self.skew.items():
            node = scanned[index].stream.source.node
            if node:
                by_node.setdefault(node, []).append(offset)
        self._node_skew = {node: median(offsets) for node, offsets in by_node.items()}
        self._nodes = [one.stream.source.node for one in scanned]

    def wall(self, stamp: Stamp | None) -> float | None:
        """Seconds since the epoch by the line's own clock; None where the stamp can't tell."""
        if stamp is None or stamp.clock is Clock.UPTIME:
            return None
        if stamp.clock is Clock.WALL:
            return stamp.seconds
        moment = datetime.fromtimestamp(_YEAR_2000 + stamp.seconds, UTC)
        try:
            return moment.replace(year=self._year).timestamp()
        except ValueError:  # 29 February in a year without
            return None

    def when(self, hit: Hit) -> float | None:
        """Seconds on the common clock."""
        at = self.wall(hit.stamp)
        return None if at is None else at - self.offset(hit.stream, hit.rank, hit.node)

    def offset(self, stream: int, rank: int | None, node: str) -> float:
        """By how much the clock behind a line is ahead of the others."""
        for key in ((stream, rank), (stream, None)):
            if key in self.skew:
                return self.skew[key]
        return self._node_skew.get(node or self._nodes[stream], 0.0)


def _year(scanned: Sequence[Scanned], now: float | None) -> int:
    walls = [p.stamp.seconds for s in scanned for p in s.progress if p.stamp and p.stamp.clock is Clock.WALL]
    walls += [h.stamp.seconds for s in scanned for h in s.hits() if h.stamp and h.stamp.clock is Clock.WALL]
    seconds = median(walls) if walls else now
    return 2000 if seconds is None else datetime.fromtimestamp(seconds, UTC).year


def _skew(scanned: Sequence[Scanned], timeline: Timeline) -> dict[tuple[int, int | None], float]:
    times: dict[tuple[int, int | None], dict[tuple[str, float], float]] = {}
    for one in scanned:
        for point in one.progress:
            at = timeline.wall(point.stamp)
            if at is not None:
                own = times.setdefault((one.index, point.rank), {})
                own.setdefault(_label(point), at)
    together: dict[tuple[str, float], list[float]] = {}
    for own in times.values():
        for step, at in own.items():
            together.setdefault(step, []).append(at)
    middles = {step: median(ats) for step, ats in together.items() if len(ats) > 1}
    skew = {}
    for key, own in times.items():
        apart = [at - middles[step] for step, at in own.items() if step in middles]
        if apart:
            skew[key] = median(apart)
    return skew


def _label(point: Point) -> tuple[str, float]:
    return point.key, point.step
