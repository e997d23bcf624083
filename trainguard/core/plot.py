"""Progress and loss as a picture in markdown: an SVG image, drawn from numbers alone."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

from trainguard.core.incident import Incident
from trainguard.core.progress import Reading

WIDTH, HEIGHT = 600, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 78, 50
_DIGIT = 9
"""Width of a digit, amply: of marks nearer to each other than their numbers are wide only the first has one."""
_INK, _FAINT, _LINE, _DONE, _ALERT = "#334155", "#cbd5e1", "#2563eb", "#16a34a", "#dc2626"
_LOG_FROM = 50.0
"""Ratio of the largest to the smallest loss from which the scale is logarithmic."""
_MOST_MARKS = 20


class _Scale(NamedTuple):
    """From (step, loss) to a place in the picture."""

    first: int
    last: int
    low: float
    high: float
    logarithmic: bool
    over: bool
    """There are losses above `high`."""

    def x(self, step: int) -> float:
        share = (step - self.first) / max(self.last - self.first, 1)
        return _LEFT + min(max(share, 0.0), 1.0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, loss: float) -> float:
        low, high, value = self.low, self.high, min(max(loss, self.low), self.high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def progress_plot(reading: Reading, incidents: Sequence[Incident] = ()) -> str:
    """Give a markdown image of progress, loss and incidents; an empty string before the first step.

    The picture holds numbers only, nothing that a log could have written, and its text alternative says
    the same for those who can't see it.
    """
    if reading.progress is None:
        return ""
    image = base64.b64encode(_svg(reading, incidents).encode()).decode()
    return f"![{_caption(reading, incidents)}](data:image/svg+xml;base64,{image})"


def _caption(reading: Reading, incidents: Sequence[Incident]) -> str:
    finite = [loss for _, loss in reading.loss_history if math.isfinite(loss)]
    losses = f", loss {finite[0]:.4g} to {finite[-1]:.4g}" if finite else ""
    met = f", {len(incidents)} incident{'s' * (len(incidents) != 1)}" if incidents else ""
    return f"Step {reading.progress}{losses}{met}"


def _svg(reading: Reading, incidents: Sequence[Incident]) -> str:
    scale = _scale(reading, incidents)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff" stroke="{_FAINT}"/>',
        *_progress_bar(reading),
        *_axes(scale, has_loss=bool(reading.loss_history)),
        *_marks(scale, incidents),
        *_curve(reading, scale),
        *_legend(reading, incidents),
        "</svg>",
    ]
    return "".join(parts)


def _scale(reading: Reading, incidents: Sequence[Incident]) -> _Scale:
    steps = [step for step, _ in reading.loss_history] or [0]
    steps += [incident.step for incident in incidents if incident.step is not None]
    losses = sorted(loss for _, loss in reading.loss_history if math.isfinite(loss)) or [0.0]
    # A divergence must not flatten everything before it.
    low, high = losses[0], losses[min(len(losses) - 1, len(losses) * 97 // 100)]
    logarithmic = low > 0 and high / low > _LOG_FROM
    return _Scale(min(steps), max(*steps, reading.best_step or 0), low, high, logarithmic, losses[-1] > high)


def _progress_bar(reading: Reading) -> list[str]:
    progress = reading.progress
    assert progress is not None
    if not progress.total:
        return [_text(_LEFT, 27, f"step {progress.step}")]
    share = min(progress.step / progress.total, 1.0)
    label = f"step {progress.step} of {progress.total} ({share:.0%})"
    room = WIDTH - _LEFT - _RIGHT - 8.0 * len(label)
    return [
        f'<rect x="{_LEFT}" y="16" width="{room:.1f}" height="12" rx="6" fill="{_FAINT}"/>',
        f'<rect x="{_LEFT}" y="16" width="{room * share:.1f}" height="12" rx="6" fill="{_DONE}"/>',
        _text(WIDTH - _RIGHT, 27, label, anchor="end"),
    ]


def _axes(scale: _Scale, *, has_loss: bool) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts = [
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}" fill="none" stroke="{_FAINT}"/>',
        _text(_LEFT, bottom + 17, f"step {scale.first}"),
        _text(WIDTH - _RIGHT, bottom + 17, f"{scale.last}", anchor="end"),
    ]
    if not has_loss:
        return [*parts, _text(WIDTH / 2, HEIGHT / 2, "the log prints no loss", anchor="middle")]
    ends = [scale.high] if scale.high == scale.low else [scale.low, scale.high]
    name = "loss (log)" if scale.logarithmic else "loss"
    most = "≥" if scale.over else ""
    ticks = [
        _text(
            _LEFT - 6, scale.y(value) + 5, f"{most if value == scale.high else ''}{value:.3g}", anchor="end"
        )
        for value in ends
    ]
    return [*parts, *ticks, _text(8, _TOP - 22, name)]


def _curve(reading: Reading, scale: _Scale) -> list[str]:
    """The losses, one line for each stretch that goes forward; losses that are no numbers as red dots."""
    parts: list[str] = []
    line: list[str] = []
    before = -1
    for step, loss in (*reading.loss_history, (-1, math.nan)):
        if (step <= before or not math.isfinite(loss)) and line:
            parts.append(
                f'<polyline points="{" ".join(line)}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>'
            )
            line = []
        if math.isfinite(loss):
            line.append(f"{scale.x(step):.1f},{scale.y(loss):.1f}")
        elif step >= 0:
            parts.append(f'<circle cx="{scale.x(step):.1f}" cy="{_TOP}" r="2" fill="{_ALERT}"/>')
        before = step
    return parts


def _marks(scale: _Scale, incidents: Sequence[Incident]) -> list[str]:
    """A dashed line at each step where there was trouble, once, with its number where there is room."""
    parts: list[str] = []
    labelled = -math.inf
    for step in sorted({one.step for one in incidents[-_MOST_MARKS:] if one.step is not None}):
        x = scale.x(step)
        parts.append(
            f'<path d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="{_ALERT}" stroke-dasharray="4 3"/>'
        )
        if x - labelled >= _DIGIT * len(str(step)):
            parts.append(_text(x, _TOP - 5, str(step), anchor="middle", colour=_ALERT))
            labelled = x
    return parts


def _legend(reading: Reading, incidents: Sequence[Incident]) -> list[str]:
    named = ["dashed: incidents"] if any(one.step is not None for one in incidents) else []
    if any(not math.isfinite(loss) for _, loss in reading.loss_history):
        named.append("dots: loss NaN or infinite")
    return [_text(WIDTH / 2, HEIGHT - 10, ", ".join(named), anchor="middle", colour=_ALERT)] if named else []


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'
