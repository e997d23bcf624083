"""The owner's own line in a Python traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence

EXCEPTION = re.compile(
    r"(?:[A-Za-z_][\w]*\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning|Iteration|Fault|Timeout|Refused|NotFound))(?::|$)"
)
"""The last line of a traceback: an exception's name."""
RAISED = re.compile(r"(?:^\s{0,5000}|[\]>:-] )(?:[A-Za-z_]\w*\.){0,8}[A-Z]\w{2,60}(?:Error|Exception): ")
"""An exception's last line, also behind a prefix."""
_FRAME = re.compile(r'\s*File "(?P<path>[^"\n]{1,400})", line (?P<line>\d{1,7})')
_IPYTHON = re.compile(
    r"(?:File )?(?P<path>[~/][^\s:]{1,400}\.py|<ipython-input[^>]*>):(?P<line>\d{1,7}), in |Cell In\["
)
_FOREIGN = re.compile(
    r"site-packages|dist-packages|/lib(?:64)?/python\d|\\Lib\\|lib[/\\]python|<frozen |importlib|"
    r"\bbin/(?:torchrun|accelerate|deepspeed|ray)$|multiprocessing[/\\]|^<(?!ipython)"
)
_SEPARATORS = ("During handling of the above", "The above exception was the direct cause")


def owners_frame(lines: Sequence[str]) -> str:
    """`file.py:12` of the innermost frame that is not a library's; the last frame where all are; else empty.

    `lines` are the messages before the exception's line, oldest first, one process's only.
    """
    own = last = ""
    for text in reversed(lines):
        if text.startswith("Traceback (most recent call last)") or text.startswith(_SEPARATORS):
            break
        frame = _FRAME.match(text) or _IPYTHON.match(text)
        if frame is None or not frame.groupdict().get("path"):
            continue
        where = f"{frame['path']}:{frame['line']}"
        last = last or where
        if not _FOREIGN.search(frame["path"]):
            own = where
            break
    return own or last
