"""No secret that a scheduler, a log or an answer carries is in what leaves: messages, pages, links, log lines."""

from __future__ import annotations

import html
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.test_masking import ISSUED, NAMED_CONTEXTS, PASSWORD
from tests.ledger import facts
from trainguard.blocks.notifier import NotifierBlock
from trainguard.core.action import Outcome
from trainguard.core.approval_page import approval_page, approval_question
from trainguard.core.conditions import plain as plain_reason
from trainguard.core.decision import Lease
from trainguard.core.guard_page import GuardView, ListedIncident, guard_page
from trainguard.core.health import Health, assess
from trainguard.core.history import IntentRecord
from trainguard.core.incident import IncidentState
from trainguard.core.job import Watching
from trainguard.core.links import find_links
from trainguard.core.message_formats import mask_page, plain, plain_title, slack_payload
from trainguard.core.messages import (
    Message,
    approval_needed,
    degraded,
    incident_ended,
    incident_opened,
    sight_lost,
)
from trainguard.core.observation import Liveness, Observation
from trainguard.core.plot import progress_plot
from trainguard.core.progress import Reading, read_progress
from trainguard.core.report import IncidentFile, incident_report
from trainguard.core.signal import Signal, SignalKind
from trainguard.tasks.duty import _ToPrefect

EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LINE_CONTEXTS = [context for context in NAMED_CONTEXTS if "\n" not in context and "\x1b" not in context]
SAID = st.one_of(
    ISSUED.map(lambda secret: (secret, f"the container said {secret} and ended")),
    st.tuples(PASSWORD, st.sampled_from(LINE_CONTEXTS)).map(lambda said: (said[0], said[1].format(said[0]))),
)
"""A secret, and what somebody said with it in it."""
FIELDS = ("native", "reason", "stuck", "warning", "fix")


class Ear(NotifierBlock):
    """A channel that keeps what it is given."""

    _block_type_slug = "test-ear"

    async def _deliver(self, message: Message) -> None:
        heard.append(message)


heard: list[Message] = []


def absent(secret: str, text: str) -> None:
    """The secret is not there, nor with backslashes in it, nor as HTML or JSON writes it."""
    bare = html.unescape(text).replace("\\", "")
    wanted = secret.rpartition("/")[2] if secret.startswith("https://") else secret
    assert wanted.replace("\\", "") not in bare
    assert wanted not in text


def observed(field: str, said: str, liveness: Liveness) -> Observation:
    return facts.observation(liveness=liveness, step=None).model_copy(update={field: said})


def signals_of(observation: Observation) -> tuple[Signal, ...]:
    health, given_off = Health(), ()
    for look in range(4):
        seen = observation.model_copy(update={"at": facts.NOW + 100 * look})
        health, signals = assess(
            health, seen, Reading(), Watching(pending_deadline=50), facts.NOW + 100 * look
        )
        given_off += signals  # type: ignore[assignment]
    return given_off


async def sent(message: Message) -> str:
    heard.clear()
    assert (await Ear().send(message)).sent
    (given_off,) = heard
    return json.dumps(slack_payload(given_off)) + plain(given_off) + plain_title(given_off)


@given(SAID, st.sampled_from(FIELDS), st.sampled_from((Liveness.FAILED, Liveness.PENDING, Liveness.UNKNOWN)))
@EXAMPLES
async def test_nothing_of_an_observation_leaks_into_messages_pages_and_lines(
    said: tuple[str, str], field: str, liveness: Liveness
) -> None:
    secret, text = said
    found = signals_of(observed(field, text, liveness))
    extra = Signal(kind=SignalKind.CRASH, at=facts.NOW, detail=f"failed {text}", sources=("scheduler",))
    incident = facts.incident(signals=(*found, extra), state=IncidentState.UNRECOVERABLE, outcome=text)
    for message in (
        incident_opened(facts.JOB, incident, None, status=text),
        approval_needed(
            facts.JOB, incident, facts.diagnosis().model_copy(update={"cause": text}), facts.request()
        ),
        incident_ended(facts.JOB, incident, None, facts.plan()),
        sight_lost(facts.JOB, since=facts.NOW, detail=text),
        *(degraded(facts.JOB, signal) for signal in incident.signals),
    ):
        absent(secret, await sent(message))
    known = IncidentFile(job=facts.JOB, incident=incident)
    view = GuardView(
        job=facts.JOB,
        status="Enabled",
        line=text,
        reading=Reading(),
        incidents=(ListedIncident(incident=incident),),
    )
    for page in (incident_report(known), approval_page(known), approval_question(known), guard_page(view)):
        absent(secret, mask_page(page))
    record = logging.LogRecord("trainguard", logging.INFO, "", 0, "%s: %s", (SignalKind.CRASH, text), None)
    absent(secret, _ToPrefect().format(record))


@given(SAID)
@EXAMPLES
def test_nothing_of_an_outcome_leaks_into_the_report(said: tuple[str, str]) -> None:
    secret, text = said
    lease = Lease(job_key=facts.KEY, holder="guard", number=1, expires_at=facts.NOW)
    outcome = Outcome(fence="tg-inc00001-1", status="refused", at=facts.NOW, detail=text)
    record = IntentRecord(intent=facts.intent(lease), outcome=outcome)
    known = IncidentFile(job=facts.JOB, incident=facts.incident(), intents=(record,))
    absent(secret, mask_page(incident_report(known)))


@given(SAID, st.integers(0, 260))
@EXAMPLES
def test_a_secret_is_masked_before_a_reason_is_cut(said: tuple[str, str], before: int) -> None:
    secret, text = said
    shown = plain_reason("x" * before + " " + text)
    assert len(shown) <= 200
    assert secret.rstrip("/").rpartition("/")[2][:12] not in shown


HEX40 = "0123456789abcdef0123456789abcdef01234567"
LINES = (
    (
        "wandb: View run at https://wandb.ai/team/p/runs/negt2tz0?apiKey={}",
        "https://wandb.ai/team/p/runs/negt2tz0",
    ),
    (
        "TensorBoard 2.19.0 at http://localhost:6006/?token={} (Press CTRL+C to quit)",
        "http://localhost:6006/",
    ),
    (
        "wandb: View run at https://wandb.ai/team/p/runs/negt2tz0?nw=nwuser",
        "https://wandb.ai/team/p/runs/negt2tz0?nw=nwuser",
    ),
    (
        "View run x at: http://127.0.0.1:5000/#/experiments/0/runs/7d2c8b1e0c0f4c0c9bd3a1d1a4f7d1a2",
        "http://127.0.0.1:5000/#/experiments/0/runs/7d2c8b1e0c0f4c0c9bd3a1d1a4f7d1a2",
    ),
)


@pytest.mark.parametrize(("line", "url"), LINES)
def test_a_link_keeps_its_page_and_loses_its_secret(line: str, url: str) -> None:
    (link,) = find_links(line.format(HEX40), ())
    assert link.url == url


@given(ISSUED.filter(lambda secret: "/" not in secret and "==" not in secret))
@EXAMPLES
def test_a_link_with_a_secret_in_its_path_is_none(secret: str) -> None:
    found = find_links(
        f"wandb: View run at https://wandb.ai/t/p/runs/{secret}/x https://h/runs/1?key={secret}", ()
    )
    assert all(secret not in link.url + link.run_id for link in found)


def test_links_pictures_and_markdown_stay_as_they_are_drawn() -> None:
    text = "".join(f"step {step} loss {5 / (step + 1):.4f}\n" for step in range(0, 3000, 7))
    reading = read_progress(text, Reading(), facts.NOW)
    links: Any = ()
    for line, _ in LINES[2:]:
        links = find_links(line, links)
    reading = reading.model_copy(update={"links": links})
    plot = progress_plot(reading, (facts.incident(),))
    view = GuardView(
        job=facts.JOB,
        status="Enabled",
        line="ts Enabled",
        reading=reading,
        incidents=(ListedIncident(incident=facts.incident()),),
        plot=plot,
    )
    page = guard_page(view)
    assert len(plot) > 1000
    assert mask_page(page) == page


def test_a_picture_is_left_alone_whatever_its_letters_spell() -> None:
    picture = "![Step ~1/2](data:image/svg+xml;base64,eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9eyJAKIAAAAABBBBCCCCDDDD==)"
    assert mask_page(f"a\n{picture}\nb") == f"a\n{picture}\nb"
    assert "hunter2" not in mask_page(f"password=hunter2 {picture} password=hunter2")
