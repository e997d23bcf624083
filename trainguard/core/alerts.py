"""Which messages one job may send, what the last of them say, and when one that did not go out is tried again."""

from __future__ import annotations

from trainguard.core.messages import Message, MessageKind

FIRST_WAIT = 60.0
"""Seconds until a message that nobody took is tried again, and for which a claim to send holds."""
LONGEST_WAIT = 1800.0
GIVEN_UP = 24 * 3600.0
"""Seconds after which a message that nobody took is no news any more."""

_DECISIVE = {MessageKind.APPROVAL, MessageKind.ENDED}


def admitted(message: Message, used: int, limit: int) -> Message | None:
    """Give a message as it may be sent after `used` others, None where there is no room left for its kind.

    The last quarter of a job's limit is kept for questions and ends, the quarter before it for these and new
    failures: sight that comes and goes must not use up what an approval needs. Who sends the last one says so.
    """
    half, most = limit - limit // 2, limit - limit // 4
    room = limit if message.kind in _DECISIVE else most if message.kind is MessageKind.OPENED else half
    if used >= room:
        return None
    after = {half: "only failures, questions and ends are told", most: "only questions and ends are told"}
    left = "nothing more is told" if used + 1 == limit else after.get(used + 1)
    if left is None:
        return message
    note = f"From now on {left} of this job: max_alerts_per_job is {limit}."
    return message.model_copy(update={"body": f"{message.body}\n{note}".lstrip("\n")})


def due(posted_at: float, tried_at: float, now: float) -> float:
    """Say when a message is tried (again): at once, then ever more rarely. `tried_at` 0 for never.

    After a clock was set back what was tried "later" is due.
    """
    if tried_at <= 0 or tried_at > now:
        return min(posted_at, now)
    return tried_at + min(max(tried_at - posted_at, FIRST_WAIT), LONGEST_WAIT)
