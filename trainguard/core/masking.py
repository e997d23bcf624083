"""Takes secrets out of text before it is stored, shown, sent or given to a model.

Lines stay lines, so that a citation's number still fits. Mask whole lines and mask before cutting: half a token is
no longer recognisable. Key blocks may be cut anywhere: `Masker.mask(…, stream=…)` remembers an open one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainguard.core.pseudonyms import Pseudonyms
from trainguard.core.secret_patterns import ISSUED, NAMED

MASK = "[masked]"
"""What stands where a secret stood."""

_ACROSS = tuple(row for row in ISSUED + NAMED if row.across_lines)
_WITHIN = tuple(row for row in ISSUED + NAMED if not row.across_lines)
_MARKER = re.compile(
    r"(?P<begin>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File)"
    r"|-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
)
_KEY_HEADER = re.compile(r"(?:Proc-Type|DEK-Info|Comment|Version|Encryption|Private-Lines|Public-Lines):")
_KEY_TOKEN = re.compile(r"[A-Za-z0-9+/=]++$")
_FULL_KEY_LINE = re.compile(
    r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/]{62}(?:[A-Za-z0-9+/]{6}|[A-Za-z0-9+/]{12})?[A-Za-z0-9+/=]{2}$"
)
_CUT_KEY_LINE = re.compile(r"(?=[^\s]*?[a-z])(?=[^\s]*?[A-Z])(?=[^\s]*?[0-9+/])[A-Za-z0-9+/]{8,76}={0,2}$")
_HEX = re.compile(r"[0-9a-fA-F]++$")
_BLOCK_LINES = 400
"""A key block never has more lines: an opening line without an end must not swallow a log."""


class Masker:
    """Masks many texts so that equal hosts and addresses keep equal pseudonyms, and turns them back."""

    def __init__(
        self, *, hosts: bool = False, addresses: bool = False, known_hosts: Iterable[str] = ()
    ) -> None:
        self._pseudonyms = Pseudonyms(hosts=hosts, addresses=addresses, known_hosts=known_hosts)
        self._open_blocks: dict[str, int] = {}

    def mask(self, text: str, *, stream: str = "") -> str:
        """Mask a text. With `stream`, a key block cut by the end of one chunk goes on in the next."""
        masked = self._mask_keys(text, stream)
        masked = _mask_within_lines(_mask_across_lines(masked))
        return self._pseudonyms.hide(masked)

    def unmask(self, text: str) -> str:
        """Put the real hosts and addresses back where this masker's pseudonyms stand. Secrets stay gone."""
        return self._pseudonyms.reveal(text)

    def _mask_keys(self, text: str, stream: str) -> str:
        left = self._open_blocks.pop(stream, 0) if stream else 0
        if not left and "-----" not in text and "PuTTY" not in text and not _has_long_run(text):
            return text
        lines = text.splitlines(keepends=True)
        masked, left = _mask_blocks(lines, left)
        if stream and left:
            self._open_blocks[stream] = left
        return "".join(masked)


def mask(text: str, *, hosts: bool = False, addresses: bool = False) -> str:
    """Mask one text; `hosts` and `addresses` also hide where it comes from. Twice masked is once masked."""
    return Masker(hosts=hosts, addresses=addresses).mask(text)


def _mask_across_lines(text: str) -> str:
    lowered = text.lower()
    for row in _ACROSS:
        if any(word in lowered for word in row.needs):
            text = row.pattern.sub(_masked, text)
    return text


def _mask_within_lines(text: str) -> str:
    """Mask line by line, and on each line only what it has a word for."""
    lowered = text.lower()
    needed = [(row.pattern, tuple(word for word in row.needs if word in lowered)) for row in _WITHIN]
    rows = [(pattern, words) for pattern, words in needed if words]
    return "\n".join(_mask_line(rows, line) for line in text.split("\n")) if rows else text


def _mask_line(rows: list[tuple[re.Pattern[str], tuple[str, ...]]], line: str) -> str:
    lowered = line.lower()
    for pattern, words in rows:
        for word in words:
            if word in lowered:
                line = pattern.sub(_masked, line)
                break
    return line


def _masked(match: re.Match[str]) -> str:
    groups = match.groupdict(default="")
    lines = match.group().count("\n") - groups.get("keep", "").count("\n")
    return groups.get("keep", "") + (f"{MASK}\n" * lines or MASK) + groups.get("tail", "")


def _has_long_run(text: str) -> bool:
    return re.search(r"[A-Za-z0-9+/]{64}", text) is not None


def _mask_blocks(lines: list[str], left: int) -> tuple[list[str], int]:
    """Mask key blocks. `left` lines of an open block may follow; gives the same for the next chunk."""
    masked: list[str] = []
    for line in lines:
        body = line.rstrip("\r\n")
        text, left, tail = _mask_block_line(body, left)
        if tail:
            _mask_backwards(masked)
        masked.append(text + line[len(body) :])
    _mask_middle(masked)
    return masked, left


def _mask_block_line(body: str, left: int) -> tuple[str, int, bool]:
    """Mask one line: its text, how many lines may follow in the block, and whether an unopened block ends here."""
    if _MARKER.search(body):
        return _mask_marked_line(body, left > 0)
    if not left:
        return body, 0, False
    if not body.strip():
        return body, left - 1, False
    if _KEY_HEADER.search(body):
        return MASK, left - 1, False
    token = _key_token(body)
    if token is None:
        return body, 0, False
    return body[: token.start()] + MASK, left - 1, False


def _mask_marked_line(body: str, inside: bool) -> tuple[str, int, bool]:
    """Mask a line in which blocks begin or end, several perhaps, as JSON writes them with `\\n`."""
    parts: list[str] = []
    unopened = False
    at = 0
    for marker in _MARKER.finditer(body):
        if marker["begin"]:
            parts += [] if inside else [body[at : marker.start()]]
            inside = True
        else:
            unopened |= not inside
            parts.append(MASK)
            inside = False
        at = marker.end()
    parts.append(MASK if inside else body[at:])
    return "".join(parts), _BLOCK_LINES if inside else 0, unopened


def _key_token(body: str) -> re.Match[str] | None:
    """Find the base64 at the end of a line, behind a time stamp or rank that a logger may have put before it."""
    stripped = body.rstrip(" \t\"',\\")
    start = max(stripped.rfind(" "), stripped.rfind("\t"), stripped.rfind("]"), stripped.rfind('"')) + 1
    match = _KEY_TOKEN.match(stripped, start)
    if match is None or (start > 0 and stripped[:start].strip() and len(match.group()) < 16):
        return None
    return match


def _mask_backwards(masked: list[str]) -> None:
    """Mask the base64 lines before the end of a block whose beginning was cut off."""
    for index in range(len(masked) - 1, max(-1, len(masked) - _BLOCK_LINES), -1):
        body = masked[index].rstrip("\r\n")
        token = _key_token(body)
        if token is None or not body.strip():
            return
        masked[index] = body[: token.start()] + MASK + masked[index][len(body) :]


def _mask_middle(masked: list[str]) -> None:
    """Mask two or more full-length base64 lines in a row, and the cut ones beside them: the middle of a block."""
    run: list[int] = []
    for index in range(len(masked) + 1):
        if index < len(masked) and _is_full_key_line(masked[index].rstrip("\r\n")):
            run.append(index)
            continue
        if len(run) >= 2:
            for line in run:
                _mask_end(masked, line, _FULL_KEY_LINE)
            for line in {max(0, run[0] - 1), min(len(masked) - 1, index)}:
                _mask_end(masked, line, _CUT_KEY_LINE)
        run = []


def _mask_end(masked: list[str], line: int, pattern: re.Pattern[str]) -> None:
    body = masked[line].rstrip("\r\n")
    start = max(body.rfind(" "), body.rfind("\t"), body.rfind("]")) + 1
    found = pattern.search(body, start) if pattern is _FULL_KEY_LINE else pattern.match(body, start)
    if found is not None:
        masked[line] = body[: found.start()] + MASK + masked[line][len(body) :]


def _is_full_key_line(body: str) -> bool:
    match = _FULL_KEY_LINE.search(body, max(0, len(body) - 80))
    return match is not None and _HEX.match(match.group()) is None
