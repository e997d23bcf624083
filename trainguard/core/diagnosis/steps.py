"""Signs that the training moved: step counters, progress bars, losses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from trainguard.core.diagnosis.text import Stamp, clean, head

_COUNTER = re.compile(
    r"(?i)(?:^|[\s\[({|,'\"_])(?:global[_ ]?step|train(?:ing)?[_ ]?step|step|iteration|iter|num_updates|update|batch)s?"
    r"['\"]?\s*[:=#\[(]?\s*\[?\s*(?P<step>\d{1,10})(?:\s*/\s*(?P<total>\d{1,10}))?"
)
_EPOCH_BATCH = re.compile(
    r"(?i)\bepoch\b[:\s]*\[?\s*(?P<epoch>\d{1,6})\]?(?:/\d{1,6})?[:\s,\]\[]*(?P<step>\d{1,9})\s*/\s*(?P<total>\d{1,9})"
)
_BAR = re.compile(
    r"^(?P<label>.{0,160}?)\d{1,3}%\|[^|]{0,300}\|?\s*(?P<step>\d{1,10})/(?P<total>\d{1,10}) \[[\d:]+<"
)
_KERAS = re.compile(r"^\s*(?P<step>\d{1,9})/(?P<total>\d{1,9}) \[[=>.]")
_CONSUMED = re.compile(
    r"(?i)['\"]?(?:consumed[ _](?:samples|tokens)|(?:num_)?(?:input_)?tokens(?:_seen)?)['\"]?\s*[:=]\s*(?P<step>\d{1,15})"
)
_LOGGED = re.compile(r"\{'loss': [\d.e-]+, .{0,300}'epoch': ")
"""One line of the Hugging Face trainer: its epoch is rounded, but each line is a step."""
_EPOCH = re.compile(r"['\"]epoch['\"]:\s*(?P<epoch>\d+(?:\.\d+)?)")
_TIME_OR_VERSION = re.compile(r"[.:]\d")
_LOSS = re.compile(
    r"(?i)(?:^|[\s'\"_|,{(])(?:lm |train(?:ing)?[_ ])?loss['\"]?\s*[:=]?\s*(?P<loss>[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|nan|inf))\b"
)
_PART_OF_LOSS = re.compile(
    r"(?i)(?:^|[\s'\"|,{(])(?:\w{1,20}_)?loss_\w{1,30}['\"]?\s*[:=]\s*(?P<loss>[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|nan|inf))\b"
)
"""A part of a loss (`loss_cls: 0.3`), where the whole is not on the line."""
_NOT_TRAINING = re.compile(
    r"(?i)load|download|fetch|\bmap\b|tokeni|generat|group|sav|filter|resolv|extract|prepar|convert|"
    r"eval|valid|test|upload|compil|cach|collect|retry|attempt"
)


@dataclass(frozen=True, slots=True)
class Point:
    """One sign of progress."""

    line: int
    key: str
    """Which counter it is; only equal ones compare."""
    step: float
    loss: float | None
    rank: int | None
    stamp: Stamp | None
    text: str


def points(data: bytes, first_line: int) -> list[Point]:
    """All progress of a piece of text."""
    found = []
    for number, raw in _lines(data, first_line):
        if _DIGIT.search(raw) is None or _SIGNS.search(raw) is None:
            continue
        text = clean(raw[:4096])
        counted = _counted(text, number)
        if counted is not None:
            before = head(text)
            found.append(Point(number, *counted, _loss(text), before.rank, before.stamp, text))
    return found


_DIGIT = re.compile(rb"\d")
_SIGNS = re.compile(rb"(?i)step|iter|update|batch|epoch|\d/\d+ \[")


def _lines(data: bytes, first_line: int) -> Iterable[tuple[int, bytes]]:
    for offset, line in enumerate(data.split(b"\n")):
        for part in line.split(b"\r"):
            yield first_line + offset, part


def _counted(text: str, line: int) -> tuple[str, float] | None:
    """Which counter a line shows, and where it stands."""
    bar = _BAR.search(text) if "<" in text else None
    if bar is not None:
        if _NOT_TRAINING.search(bar["label"]):
            return None
        return "bar " + re.sub(r"[\d.%\s]+", "", bar["label"])[:20], float(bar["step"])
    batch = _EPOCH_BATCH.search(text) if "poch" in text else None
    if batch is not None:
        return "epoch", float(batch["epoch"]) * 1e9 + float(batch["step"])
    counter = _COUNTER.search(text)
    if counter is not None and not _TIME_OR_VERSION.match(text, counter.end("step")):
        return "step", float(counter["step"])
    return _counted_otherwise(text, line)


def _counted_otherwise(text: str, line: int) -> tuple[str, float] | None:
    keras = _KERAS.match(text)
    if keras is not None:
        return "keras", float(keras["step"])
    consumed = _CONSUMED.search(text)
    if consumed is not None:
        return "consumed", float(consumed["step"])
    if _LOGGED.match(text):
        return "logged", float(line)
    epoch = _EPOCH.search(text)
    return None if epoch is None else ("epochs", float(epoch["epoch"]))


def _loss(text: str) -> float | None:
    found = _LOSS.search(text) or _PART_OF_LOSS.search(text)
    return float(found["loss"]) if found else None


def advanced(after: Iterable[Point], needed: int) -> bool:
    """Whether the points show at least `needed` steps forward of one counter."""
    last: dict[tuple[str, int | None], float] = {}
    forward: dict[tuple[str, int | None], int] = {}
    for point in after:
        key = (point.key, point.rank)
        if key in last and point.step > last[key]:
            forward[key] = forward.get(key, 0) + 1
            if forward[key] >= needed and (point.loss is None or math.isfinite(point.loss)):
                return True
        last[key] = point.step
    return needed == 0
