"""The picture of progress and loss: true, safe, and never in the way."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainguard.core.incident import Incident
from trainguard.core.plot import HEIGHT, WIDTH, progress_plot
from trainguard.core.progress import Reading, read_progress

SVG = "{http://www.w3.org/2000/svg}"


def picture(markdown: str) -> ElementTree.Element:
    match = re.fullmatch(r"!\[[^\]\n]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert match is not None
    return ElementTree.fromstring(base64.b64decode(match[1]))


def read(*losses: float, first: int = 1) -> Reading:
    lines = "".join(f"step {step}/600 loss {loss}\n" for step, loss in enumerate(losses, first))
    return read_progress(lines, Reading(), 1.0)


def incident(step: int | None) -> Incident:
    return Incident(id="aaaaaaaa", job_key="k", incarnation=None, signals=(), detected_at=1.0, step=step)


def words(markdown: str) -> list[str]:
    return [text.text or "" for text in picture(markdown).iter(f"{SVG}text")]


def test_before_the_first_step_there_is_nothing_to_draw() -> None:
    assert progress_plot(Reading()) == ""


def test_it_shows_progress_losses_and_incidents_and_says_them_in_words() -> None:
    markdown = progress_plot(read(2.0, 1.75, 1.5), [incident(2), incident(None)])
    assert markdown.startswith("![Step ~3/600, loss 2 to 1.5, 2 incidents](data:")
    assert {"step 3 of 600 (0%)", "2", "1.5", "step 1", "3", "dashed: incidents"} <= set(words(markdown))
    assert len(list(picture(markdown).iter(f"{SVG}polyline"))) == 1


def test_each_attempt_is_a_line_of_its_own() -> None:
    reading = read_progress(
        "step 2/600 loss 1.8\nstep 3/600 loss 1.6\nstep 4/600 loss 1.5\n", read(2.0, 1.7, 1.6, 1.5, 1.4), 2.0
    )
    assert len(list(picture(progress_plot(reading)).iter(f"{SVG}polyline"))) == 2


def test_losses_that_are_no_numbers_are_dots() -> None:
    drawn = picture(progress_plot(read(2.0, float("nan"), float("inf"), 1.5)))
    assert len(list(drawn.iter(f"{SVG}circle"))) == 2
    assert "dots: loss NaN or infinite" in words(progress_plot(read(2.0, float("nan"), 1.5)))


def test_marks_are_drawn_once_a_step_and_their_numbers_do_not_overlap() -> None:
    reading = read(*[2.0 - n / 1000 for n in range(600)])
    drawn = progress_plot(reading, [incident(300), incident(300), incident(302), incident(500)])
    assert len([path for path in picture(drawn).iter(f"{SVG}path") if path.get("stroke-dasharray")]) == 3
    assert [word for word in words(drawn) if word in {"300", "302", "500"}] == ["300", "500"]


def test_a_divergence_does_not_flatten_what_was_before() -> None:
    markdown = progress_plot(read(*[2.0 - n / 100 for n in range(100)], 1e9))
    assert not any("e+09" in word for word in words(markdown))
    assert "≥1.99" in words(markdown) or "≥1.98" in words(markdown)


def test_losses_over_orders_of_magnitude_are_drawn_on_a_logarithm() -> None:
    assert "loss (log)" in words(progress_plot(read(*[1000 * 0.9**n for n in range(150)])))


@pytest.mark.parametrize("log", ["step 5/600\n", "step 5\n"])
def test_a_log_without_losses_still_has_a_picture(log: str) -> None:
    assert "the log prints no loss" in words(progress_plot(read_progress(log, Reading(), 1.0)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=60),
    st.lists(st.none() | st.integers(0, 10**11), max_size=30),
)
def test_any_numbers_stay_inside_the_picture(losses: list[float], steps: list[int | None]) -> None:
    drawn = picture(progress_plot(read(*losses), [incident(step) for step in steps]))
    for line in drawn.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = (float(number) for number in point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
