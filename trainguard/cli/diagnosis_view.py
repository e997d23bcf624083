"""A diagnosis for a terminal: the verdict, its lines, the ranks side by side, and what was ruled out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainguard.core.diagnosis import Examination
from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.evidence import Citation
from trainguard.core.verdict import Diagnosis, FaultClass, Finding, Suspect

_RANKS_SHOWN = 16
_WIDTH = 48
"""Columns of the time line."""
_COLOURS = {FaultClass.HEALTHY: "green", FaultClass.UNKNOWN: "yellow"}


def show(examination: Examination, console: Console | None = None) -> None:
    """Print an examination. Log text is printed as text: nothing in it is markup."""
    (console or Console(highlight=False)).print(Group(*_parts(examination)))


def _parts(examination: Examination) -> Iterable[RenderableType]:
    diagnosis = examination.diagnosis
    yield _verdict(diagnosis)
    yield from _lines("Shown by", diagnosis.citations)
    if diagnosis.suspects:
        yield Text("Suspects: " + "; ".join(map(_suspect, diagnosis.suspects)))
    timeline = _timeline(examination)
    if timeline is not None:
        yield timeline
    yield from _findings("Set aside as following from it", diagnosis.consequences)
    yield from _findings("Not the root", diagnosis.runners_up)
    if diagnosis.actions:
        yield Text("What fits: " + ", then ".join(action.value for action in diagnosis.actions))
    for advice in diagnosis.look_next:
        yield Text("Look next: " + advice)


def _verdict(diagnosis: Diagnosis) -> Text:
    text = Text(diagnosis.fault.value, style=f"bold {_COLOURS.get(diagnosis.fault, 'red')}")
    text.append(f"  {diagnosis.cause}", style="not bold default")
    said = [f"rule {diagnosis.rule}"] if diagnosis.rule else []
    if diagnosis.confidence:
        said.append(f"confidence {diagnosis.confidence:.2f}")
    if diagnosis.transient is not None:
        said.append("may pass by itself" if diagnosis.transient else "will not pass by itself")
    if diagnosis.code_location:
        said.append(f"at {diagnosis.code_location}")
    text.append(f"\n  {', '.join(said)}" if said else "", style="dim")
    return text


def _where(citation: Citation) -> str:
    name = citation.source.name
    return name if citation.line is None else f"{name}:{citation.line}"


def _lines(title: str, citations: Sequence[Citation]) -> Iterable[RenderableType]:
    if citations:
        yield Text(title, style="bold")
    for citation in citations:
        line = Text(f"  {_where(citation)}  ", style="cyan")
        line.append(citation.text[:300], style="default")
        yield line


def _findings(title: str, findings: Sequence[Finding]) -> Iterable[RenderableType]:
    if not findings:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in ("rule", "condition", "lines", "first", "why not"):
        table.add_column(head, overflow="fold")
    for finding in findings:
        cells = (finding.rule, finding.name, str(finding.count), _where(finding.citation), finding.why_not)
        table.add_row(*map(Text, cells))
    yield table


def _suspect(suspect: Suspect) -> str:
    parts = [f"rank {suspect.rank}"] if suspect.rank is not None else []
    parts += [f"node {suspect.node}"] if suspect.node else []
    parts += [f"device {suspect.device}"] if suspect.device else []
    return " ".join(parts)


def _timeline(examination: Examination) -> Table | None:
    """One row a rank: `!` the root, `x` what follows, `.` progress, on one clock."""
    root = examination.ranking.root
    if root is None:
        return None
    marks = _marks(examination, root)
    times = [at for row in marks.values() for at, _ in row]
    if len(marks) < 2 or not times:
        return None
    start, end = min(times), max(times)
    span = max(end - start, 1e-9)
    moment = datetime.fromtimestamp(start, UTC)
    table = Table(
        title=f"Ranks from {moment:%H:%M:%S} over {span:.0f} s  (! root, x consequence, . step)",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=False,
    )
    ordered = sorted(
        marks.items(),
        key=lambda item: (min(at for at, m in item[1] if m != ".") if _failed(item[1]) else end + 1, item[0]),
    )
    for name, row in ordered[:_RANKS_SHOWN]:
        cells = [" "] * (_WIDTH + 1)
        for at, mark in sorted(row, key=lambda pair: ".x!".index(pair[1])):
            cells[int((at - start) / span * _WIDTH)] = mark
        table.add_row(Text(name), Text("".join(cells)))
    if len(marks) > _RANKS_SHOWN:
        table.add_row(Text("..."), Text(f"and {len(marks) - _RANKS_SHOWN} more"))
    return table


def _failed(row: Sequence[tuple[float, str]]) -> bool:
    return any(mark != "." for _, mark in row)


def _marks(examination: Examination, root: Candidate) -> dict[str, list[tuple[float, str]]]:
    marks: dict[str, list[tuple[float, str]]] = {}
    timeline, scanned = examination.timeline, examination.scanned

    def note(index: int, rank: int | None, node: str, at: float | None, mark: str) -> None:
        source = scanned[index].stream.source
        number = source.rank if rank is None else rank
        name = f"rank {number}" if number is not None else (node or source.node or source.name)
        if at is not None:
            marks.setdefault(name, []).append((at, mark))

    for one in scanned:
        for point in one.progress:
            at = timeline.wall(point.stamp)
            offset = timeline.offset(one.index, point.rank, "")
            note(one.index, point.rank, "", None if at is None else at - offset, ".")
    for candidate, mark in [(root, "!")] + [(c, "x") for c in examination.ranking.consequences]:
        for hit in candidate.hits:
            note(hit.stream, hit.rank, hit.node, timeline.when(hit), mark)
    return marks
