"""Reading a job's files on the login node: only what is new, whole lines, bounded, and started anew where a file was."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.errors import AccessRefusedError, UnreachableError
from trainguard.core.observation import LogBatch, LogChunk, LogSource
from trainguard.schedulers.slurm.client import SlurmClient
from trainguard.schedulers.slurm.patterns import MAX_FILES, OutputFile
from trainguard.transports.posix_shell import Command, Result

_MISSING = 3
_OVERLAP = 32
"""Bytes before the cursor that are read again: a requeue truncates the file, and it may have grown past it."""
_READ = (
    '[ -e "$1" ] || case $(LC_ALL=C stat -L -- "$1" 2>&1) in *"No such file"*|*"Not a directory"*) exit 3;; '
    '*"Permission denied"*) exit 4;; *) exit 6;; esac; [ -r "$1" ] && [ -f "$1" ] || exit 4; '
    'size=$(stat -L -c %s -- "$1") || exit 4; start=$2; '
    '[ "$start" -ge 0 ] || start=$((size - $3)); [ "$start" -ge 0 ] || start=0; '
    '[ "$start" -le "$size" ] || start=0; '
    'echo "$size $start"; tail -c "+$((start + 1))" -- "$1" | head -c "$3"'
)
_LIST = 'IFS=; for f in $1; do [ -f "$f" ] && printf "%s\\n" "$f"; done | head -n "$2"'


@dataclass(frozen=True)
class Place:
    """How far one file was read."""

    offset: int
    tail: bytes = b""
    line: int | None = 1
    """Number of the next line; None where the file's beginning was skipped."""


@dataclass(frozen=True)
class _Piece:
    start: int
    size: int
    data: bytes


def read_cursor(text: str) -> dict[str, Place]:
    """Read a cursor; one that can't be understood counts as empty."""
    try:
        files = json.loads(text)["files"]
        return {
            str(path): Place(
                max(int(at[0]), 0), base64.b64decode(at[1]), None if at[2] is None else int(at[2])
            )
            for path, at in files.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return {}


def write_cursor(places: dict[str, Place]) -> str:
    """Write a cursor."""
    files = {p: [at.offset, base64.b64encode(at.tail).decode(), at.line] for p, at in places.items()}
    return json.dumps({"v": 1, "files": files}, separators=(",", ":"))


class LogReader:
    """Reads the files of one cluster's jobs."""

    def __init__(self, client: SlurmClient) -> None:
        self._client = client

    async def sources(self, files: Sequence[OutputFile]) -> list[LogSource]:
        """Name the files there are: patterns are looked up, at most MAX_FILES."""
        globs = [one for one in files if one.ranked is not None]
        found = [LogSource(name=one.path) for one in files if one.ranked is None]
        if globs:
            listed = await self._client.run(
                [Command(("sh", "-c", _LIST, "sh", one.path, str(MAX_FILES))) for one in globs]
            )
            if hung := next((answer for answer in listed if answer.code != 0), None):
                raise UnreachableError(f"the ranks' files can't be listed: {hung.problem}")
            for one, answer in zip(globs, listed, strict=True):
                found += [_ranked(path, one) for path in answer.text.splitlines()]
        return list({source.name: source for source in found}.values())[:MAX_FILES]

    async def read(self, sources: Sequence[LogSource], cursor: str, limit: int) -> LogBatch:
        """Read what is new.

        Where no file can be read, raises AccessRefusedError for lack of rights, UnreachableError where the
        disk does not answer: that is not the same as nothing new.
        """
        places = read_cursor(cursor)
        share = max(limit // max(len(sources), 1), 64)
        pieces = await self._pieces(sources, places, share)
        rewritten = [
            source for source, piece in pieces.items() if isinstance(piece, _Piece) and _rewritten(places.get(source.name), piece)
        ]  # fmt: skip
        for source in rewritten:
            places[source.name] = Place(0)
        if rewritten:
            pieces |= await self._pieces(rewritten, places, share)
        chunks, more = [], False
        for source, piece in pieces.items():
            if piece is None:
                continue
            chunk, places[source.name], cut = take(source, piece, places.get(source.name), share)
            more = more or cut
            if chunk is not None:
                chunks.append(chunk)
        return LogBatch(chunks=tuple(chunks), cursor=write_cursor(places), more=more)

    async def _pieces(
        self, sources: Sequence[LogSource], places: dict[str, Place], share: int
    ) -> dict[LogSource, _Piece | None]:
        commands = []
        for source in sources:
            place = places.get(source.name)
            start = -1 if place is None else place.offset - len(place.tail)
            extra = 0 if place is None else len(place.tail)
            commands.append(
                Command(("sh", "-c", _READ, "sh", source.name, str(start), str(share + extra)), timeout=30)
            )
        answers = await self._client.run(commands) if commands else []
        found = {source: _piece(answer) for source, answer in zip(sources, answers, strict=True)}
        denied = [source.name for source, answer in zip(sources, answers, strict=True) if answer.code == 4]
        if denied and not any(found.values()):
            raise AccessRefusedError(
                f"the log {denied[0]} can't be read", "Give the login user read access to the job's output."
            )
        for source, answer in zip(sources, answers, strict=True):
            if found[source] is None and answer.code != _MISSING and not any(found.values()):
                raise UnreachableError(f"the log {source.name} can't be read: {answer.problem}")
        return found


def _ranked(path: str, pattern: OutputFile) -> LogSource:
    match = pattern.ranked.fullmatch(path) if pattern.ranked is not None else None
    rank = match.groupdict().get("rank") if match is not None else None
    return LogSource(name=path, rank=int(rank) if rank and rank.isdigit() else None)


def _piece(answer: Result) -> _Piece | None:
    head, newline, data = answer.out.partition(b"\n")
    words = head.split()
    if answer.code != 0 or not newline or len(words) != 2:
        return None
    size, start = int(words[0]), int(words[1])
    # `head` ends well where `tail` could not read.
    return None if size > start and not data else _Piece(start=start, size=size, data=data)


def _rewritten(place: Place | None, piece: _Piece) -> bool:
    if place is None or place.offset == 0:
        return False
    begin = place.offset - len(place.tail)
    return piece.start != begin or piece.data[: len(place.tail)] != place.tail


def take(
    source: LogSource, piece: _Piece, place: Place | None, limit: int
) -> tuple[LogChunk | None, Place, bool]:
    """Cut whole lines off a piece: the chunk, where to read on, and whether there is more already."""
    skipped = 0
    if place is None:
        data, start = piece.data, piece.start
        if start > 0:
            first = max(data.find(b"\n"), data.find(b"\r")) + 1
            first = data.find(b"\n") + 1 if b"\n" in data else first
            data, start = data[first:], start + first
        skipped, place = start, Place(start, b"", 1 if start == 0 else None)
    else:
        data, start = piece.data[len(place.tail) :], place.offset
    whole = _whole_lines(data, full=len(data) >= limit)
    text = data[:whole]
    places = Place(
        start + whole,
        (place.tail + text)[-_OVERLAP:],
        None if place.line is None else place.line + text.count(b"\n"),
    )
    more = start + len(data) < piece.size and whole > 0
    if not text:
        return None, places, more
    chunk = LogChunk(
        source=source, text=text.decode("utf-8", "replace"), first_line=place.line, skipped_bytes=skipped
    )
    return chunk, places, more


def _whole_lines(data: bytes, *, full: bool) -> int:
    """Where the last whole line ends. A line as long as the limit is given in pieces, no character torn."""
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if end or not full:
        return end
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # the first byte of a character: is the character whole?
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < length else len(data)
        if byte < 0x80:
            break
    return len(data)
