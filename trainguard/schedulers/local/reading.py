"""Logs of a local job: the supervisor's own, and files the job names. Blocking; bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainguard.core.job import Job
from trainguard.core.observation import LogBatch, LogChunk, LogSource
from trainguard.schedulers.local.evidence import stream_name
from trainguard.supervisor import supervisor


def read_batch(job: Job, cursor: str, limit: int) -> LogBatch:
    """Read what is new. Raises the supervisor's StateError."""
    folder = Path(job.ref.id)
    main, extra = split_cursor(cursor)
    batch = supervisor.read_logs(folder, main, limit - limit // 4 if job.extra_logs else limit)
    chunks = [
        LogChunk(
            source=LogSource(name=stream_name(folder, chunk["attempt"])),
            text=chunk["data"].decode("utf-8", "replace"),
            first_line=chunk["first_line"],
            skipped_bytes=chunk["skipped"],
        )
        for chunk in batch["chunks"]
    ]
    more = bool(batch["more"])
    places: dict[str, list[int]] = {}
    for word in job.extra_logs:
        share = limit // 4 // len(job.extra_logs)
        place, chunk, left = read_file(Path(word), extra.get(word), share)
        if place is not None:
            places[word] = place
        chunks += [chunk] if chunk is not None else []
        more = more or left
    following = json.dumps({"m": batch["cursor"], "x": places}, sort_keys=True)
    return LogBatch(chunks=tuple(chunks), cursor=following, more=more)


def split_cursor(cursor: str) -> tuple[str, dict[str, Any]]:
    """Take a cursor apart; one that can't be understood counts as empty."""
    try:
        value = json.loads(cursor)
        return str(value["m"]), dict(value["x"])
    except (ValueError, KeyError, TypeError):
        return "", {}


def read_file(path: Path, place: Any, limit: int) -> tuple[list[int] | None, LogChunk | None, bool]:
    """Read a plain file on from a place [inode, offset]; gives the new place, the text, and whether there is more.

    A file that is not there yet, or can't be read, gives nothing: `collect` says why. One that was replaced
    or cut is read from its new beginning.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            inode = path.stat().st_ino
            offset = _offset(place, inode, end)
            begin = max(0, end - limit) if offset is None else offset
            file.seek(begin)
            data = file.read(limit)
    except OSError:
        return (place if isinstance(place, list) else None), None, False
    if offset is None and begin:
        cut = data.find(b"\n") + 1
        begin, data = begin + cut, data[cut:]
    full = len(data) == limit
    usable = supervisor.usable(data, full, over=False, tear=True)
    if not usable:
        return [inode, begin], None, False
    chunk = LogChunk(
        source=LogSource(name=str(path)),
        text=data[:usable].decode("utf-8", "replace"),
        first_line=1 if begin == 0 else None,
    )
    return [inode, begin + usable], chunk, full


def _offset(place: Any, inode: int, end: int) -> int | None:
    """Say where to read on; None for the first look."""
    if not (isinstance(place, list) and len(place) == 2 and all(isinstance(n, int) for n in place)):
        return None
    return place[1] if place[0] == inode and 0 <= place[1] <= end else 0
