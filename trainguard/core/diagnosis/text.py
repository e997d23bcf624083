"""What stands before the message of a log line: rank, node, time, and the paint around them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum

ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]{0,4096}(?:\x07|\x1b\\)?|[@-Z\\-_])")
"""Terminal escapes: colours, cursor moves, titles, links."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_BAR = re.compile(r"^[^|'\"]{0,120}\|[^|]{0,300}\|?\s*[\d.]+[kMG]?/[\d.]+[kMG]? \[[^\]]{0,120}\][ \t]*")
"""A progress bar without its end of line, glued to the message that follows."""


class Clock(StrEnum):
    """Which kind of time a stamp is."""

    WALL = "wall"
    YEARLESS = "yearless"
    """Month, day and time (syslog, glog): seconds since the start of year 2000."""
    UPTIME = "uptime"
    """Seconds since boot (dmesg)."""


_BETTER = {Clock.UPTIME: 0, Clock.YEARLESS: 1, Clock.WALL: 2}


@dataclass(frozen=True, slots=True)
class Stamp:
    """A line's own time."""

    clock: Clock
    seconds: float


@dataclass(slots=True)
class Head:
    """What the prefixes of a line say, and where its message begins."""

    body: str
    rank: int | None = None
    node: str = ""
    stamp: Stamp | None = None
    kernel: bool = False
    """It has the form of a kernel message."""


_HOST = r"[A-Za-z][A-Za-z0-9._-]{1,63}"
_ISO = r"(?P<iso>\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?\s?(?:Z|[+-]\d\d:?\d\d)?)"
_MONTHS = {
    name: number
    for number, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], start=1
    )
}
_MONTH = "|".join(_MONTHS)
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        # torch, accelerate, torchrun --local-ranks-filter / --tee, mpirun --tag-output
        r"\[(?:[Rr]ank|RANK|default)[ :_]?(?P<rank>\d{1,6})\]:?\s?",
        r"\[(?P<rank>\d{1,6})\](?:<std(?:out|err)>)?:\s?",
        r"\[\d+,(?P<rank>\d{1,6})\]<std(?:out|err|diag)>:\s?",
        r"(?i:(?:global[_ ])?rank)[ =:_]?(?P<rank>\d{1,6})[\]:|,]\s?",
        # srun --label
        r"(?P<rank>\d{1,6}): (?=\S)",
        # Ray
        r"\((?P<actor>[\w.:<>\[\]-]+)?,?\s?(?:rank=(?P<rank>\d+),?\s?)?pid=\d+(?:, ip=(?P<node>[\w.:-]+))?\)\s?",
        r"\((?:head|worker\d*|[\w-]+), rank=(?P<rank>\d+), pid=\d+(?:, ip=(?P<node>[\w.:-]+))?\)\s?",
        # kubectl logs --prefix
        r"\[pod/(?P<node>[\w.-]+)/[\w.-]+\]\s?",
        # NCCL: host:pid:tid [device]
        rf"(?P<node>{_HOST}):\d+:\d+ \[(?P<device>\d+)\]\s",
        # dmesg -T, dmesg, /dev/kmsg
        rf"\[(?P<ctime>(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (?:{_MONTH})\s+\d{{1,2}} \d\d:\d\d:\d\d \d{{4}})\]\s?(?P<kernel>)",
        r"\[\s{0,12}(?P<uptime>\d{1,9}\.\d{6})\](?P<kernel>)\s?",
        r"\d{1,3},\d+,(?P<micro>\d{1,18}),[-c+];(?P<kernel>)",
        # syslog and journal
        rf"(?P<syslog>(?:{_MONTH})\s+\d{{1,2}} \d\d:\d\d:\d\d(?:\.\d+)?) (?P<node>{_HOST}|[\d.]+)\s(?=[\w\[(.\/-]+:)",
        rf"{_ISO} (?P<node>{_HOST}) (?=[\w.-]+(?:\[\d+\])?:)",
        r"kernel:(?P<kernel>)\s?",
        rf"\[(?P<mdy>(?:{_MONTH}) \d{{1,2}} \d{{4}} \d\d:\d\d:\d\d)\]\s?",
        # glog, absl, torch: E0102 03:04:05.678 pid file.cc:12]
        r"\[?[IWEFCD](?P<glog>\d{3,4} \d\d:\d\d:\d\d(?:\.\d+)?)\s+(?:\d+ )?[\w./-]+(?:\.\w+)?:\d+\]\s?",
        r"\[?[IWEFCD](?P<glog>\d{3,4} \d\d:\d\d:\d\d(?:\.\d+)?)\s+\d+ [^\]\n]{1,160}:\d+\]\s?",
        r"\[[IWEFCD] [\w./-]+:\d+\]\s?",
        r"[IWEF]0000 00:00:(?P<epoch>\d{9,10}\.\d+)\s+\d+ [\w./-]+:\d+\]\s?",
        r"[IWEF] [\w./-]+\.(?:cc|cpp|h|py|go):\d+\]\s?",
        # Ray's own loggers
        rf"\[{_ISO}(?: [IWEFCD])?(?: \d+){{0,2}}\]\s?(?:\([\w-]+\)\s?)?(?:[\w.]+:\d+:\s+)?",
        rf"\[?{_ISO}\]?(?:\s?[|:,-])*\s?",
        r"\[(?:PG |PG ID )?(?:ID )?\d+[^\]]{0,80}[Rr]ank (?P<rank>\d{1,6})\]\s?",
        r"\d\d:\d\d:\d\d(?:[.,]\d+)?(?: -)?\s",
        # levels and logger names
        r"[\[(<]?(?:DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL)[\])>]?(?::[\w.]{1,80}:(?:\d+:)?|\s?[|:-]|\]|\s(?=\S))\s?",
        r"\[[A-Za-z_][\w.]{2,80}(?::\d+)?(?::[\w<>.]+)?\](?=\[| -)(?: - )?",
        # pdsh, deepspeed: `worker-3: text`
        r"(?P<node>[a-z][a-z0-9.-]{0,61}\d[a-z0-9.-]{0,20}): (?=\S)",
    )
)
_MAX_PREFIXES = 8
_BEGINNING = re.compile(
    r"(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{1,60}(?:Error|Exception|Exit|Interrupt|Iteration|Fault|Timeout|NotFound)(?::\s|:?$)"
    r"|Traceback \(most recent call last|File \"[^\"\n]{1,400}\", line \d|panic: |terminate called |Segmentation fault|"
    r"FATAL: {3}|thread '[^']{1,60}' (?:\(\d+\) )?panicked|Killed\s*$"
)
"""How messages begin that are known by their beginning."""
_TOKEN = re.compile(
    r"(?:<\d{1,3}>1 (?:\S{1,255} ){5}(?:-|\[[^\]\n]{0,400}\])|\[\d{1,2}(?:;\d{1,3}){0,3}m|\[[^\]\[]{0,80}\]|\([^()]{0,80}\)|<[^<>]{0,60}>|[|\u2500-\u257f>*!#:-]{1,4}"
    r"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|stderr|stdout|remote|local|[FPEWI]|"
    + _MONTH
    + r"|[A-Z]{4,8})(?![\w.-])"
    r"|[\d:.,/+TZ_-]{1,40}(?![\w])"
    r"|[\w./@-]{1,60}(?=\s{0,12}[|:\[<]|\s#|\s-\s|\s[\w./-]{1,40}\[\d{1,9}\]:))\s{0,40}"
)
"""One piece of what may stand before a message: brackets, numbers, levels, a name and its colon; never a sentence."""
_ESCAPED = re.compile(
    r"\\n(?=(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{1,60}(?:Error|Exception|Exit|Interrupt|Fault|Timeout|NotFound)(?:: |\\n|\"|$))"
)
"""Where the exception begins in a traceback that was printed as one line."""
_FAR = 160
"""So far into a line a message may begin."""
_JSON = re.compile(
    r'(?i)^\{.{0,400}?"(?:msg|message|log|text|line|textPayload|error|exception|event|body)"\s?:\s?"'
)

_LOGFMT = re.compile(
    r'(?:time|ts|t|level|lvl|severity|caller)=(?:"[^"\n]{0,80}"|[^"\s]\S{0,120})'
    r'(?:\s{1,4}[\w.-]{1,40}=(?:"[^"\n]{0,200}"|[^"\s]\S{0,200})){0,8}?\s{1,4}(?:msg|message|error|err)="'
)
"""Keys and values, as programs in Go print them."""


def clean(raw: bytes) -> str:
    """Decode a line whatever its bytes are, without control and invisible characters."""
    text = raw.decode("utf-8", "replace")
    return _CONTROL.sub("", text).rstrip()


def head(text: str) -> Head:
    """Take the prefixes off a clean line."""
    found = Head(text)
    bar = _BAR.match(text)
    if bar is not None and bar.end() < len(text):
        found.body = text[bar.end() :]
    for _ in range(_MAX_PREFIXES):
        if not _strip_one(found):
            break
    found.body = _beginning(found.body.lstrip())
    return found


def _beginning(body: str) -> str:
    """The message behind a prefix of no known form, or inside a line of keys and values."""
    if body[:1] == "{":
        body = body[found.end() :] if (found := _JSON.match(body)) else body
    elif found := _LOGFMT.match(body):
        body = body[found.end() :]
    if "Traceback (most recent call last)" in body and (ends := [*_ESCAPED.finditer(body)]):
        return body[ends[-1].end() :]
    start = _BEGINNING.search(body, 0, _FAR * 3)
    if start is None or not 0 < start.start() <= _FAR:
        return body
    at = 0
    while at < start.start():
        token = _TOKEN.match(body, at, start.start() + 1)
        if token is None:
            return body
        at = token.end()
    return body[start.start() :] if at == start.start() else body


_STARTS = {
    kind: tuple(p for p in _PREFIXES if any(p.pattern.startswith(opening) for opening in openings))
    for kind, openings in {
        "[": ("\\[", "[\\[", "(?P<iso>"),
        "(": ("\\(", "[\\["),
        "<": ("[\\[",),
        "digit": ("(?P<rank>\\d", "\\d", "(?P<iso>", "\\[?(?P<iso>"),
        "letter": ("(?i:(?:global", "(?P<node>", "(?P<syslog>", "kernel:", "\\[?[IWEFCD]", "[IWEF]", "[\\["),
    }.items()
}
"""Prefixes by the character that they can begin with: most lines need no more than a few looks."""


def _start_of(text: str) -> str:
    first = text[:1]
    if first.isdigit():
        return "digit"
    return "letter" if first.isalpha() else first


def _strip_one(found: Head) -> bool:
    for prefix in _STARTS.get(_start_of(found.body), ()):
        match = prefix.match(found.body)
        if match is None or match.end() == 0:
            continue
        _take(found, match.groupdict())
        found.body = found.body[match.end() :]
        return True
    return False


def _take(found: Head, groups: dict[str, str | None]) -> None:
    if found.rank is None and groups.get("rank"):
        found.rank = int(groups["rank"] or 0)
    if not found.node and groups.get("node"):
        found.node = groups["node"] or ""
    if groups.get("kernel") is not None:
        found.kernel = True
    stamp = _stamp(groups)
    if stamp is not None and (found.stamp is None or _BETTER[stamp.clock] > _BETTER[found.stamp.clock]):
        found.stamp = stamp


def _stamp(groups: dict[str, str | None]) -> Stamp | None:
    for name, value in groups.items():
        reader = _READERS.get(name)
        if value and reader is not None:
            try:
                return reader(value)
            except ValueError:
                return None
    return None


def _iso(value: str) -> Stamp:
    text = value.replace("/", "-").replace(",", ".").strip()
    whole, zone = text[:19].replace(" ", "T"), text[19:]
    fraction = re.match(r"\.\d+", zone)
    seconds = float(fraction.group()) if fraction else 0.0
    offset = re.search(r"([+-])(\d\d):?(\d\d)$", zone)
    tz = UTC
    if offset is not None:
        delta = timedelta(hours=int(offset.group(2)), minutes=int(offset.group(3)))
        tz = timezone(delta if offset.group(1) == "+" else -delta)
    return Stamp(Clock.WALL, datetime.fromisoformat(whole).replace(tzinfo=tz).timestamp() + seconds)


def _uptime(value: str) -> Stamp:
    return Stamp(Clock.UPTIME, float(value))


def _micro(value: str) -> Stamp:
    return Stamp(Clock.UPTIME, int(value) / 1e6)


def _yearless(month: int, day: int, clock: str) -> Stamp:
    hours, minutes, seconds = clock.split(":")
    midnight = datetime(2000, month, day, tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)
    return Stamp(
        Clock.YEARLESS, midnight.total_seconds() + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    )


def _syslog(value: str) -> Stamp:
    month, day, clock = value.split()
    return _yearless(_MONTHS[month], int(day), clock)


def _glog(value: str) -> Stamp:
    date, clock = value.split()
    return _yearless(int(date[:-2]), int(date[-2:]), clock)


def _dated(month: str, day: str, clock: str, year: str) -> Stamp:
    moment = datetime.fromisoformat(f"{year}-{_MONTHS[month]:02}-{int(day):02}T{clock}")
    return Stamp(Clock.WALL, moment.replace(tzinfo=UTC).timestamp())


def _ctime(value: str) -> Stamp:
    _, month, day, clock, year = value.split()
    return _dated(month, day, clock, year)


def _mdy(value: str) -> Stamp:
    month, day, year, clock = value.split()
    return _dated(month, day, clock, year)


def _epoch(value: str) -> Stamp:
    return Stamp(Clock.WALL, float(value))


_READERS = {
    "epoch": _epoch,
    "iso": _iso,
    "uptime": _uptime,
    "micro": _micro,
    "syslog": _syslog,
    "glog": _glog,
    "ctime": _ctime,
    "mdy": _mdy,
}
