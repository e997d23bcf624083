"""What people are told says enough to act on, and nothing out of a log becomes markup."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainguard.core.action import Action, ActionKind
from trainguard.core.decision import ApprovalRequest, Decision, Plan, Verdict
from trainguard.core.evidence import Citation
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.message_formats import (
    clean,
    code,
    fence,
    markdown,
    markdown_escape,
    plain,
    plain_title,
    slack_payload,
)
from trainguard.core.messages import (
    Link,
    Message,
    MessageKind,
    Severity,
    approval_needed,
    incident_ended,
    incident_opened,
    moment,
    sight_lost,
    sight_recovered,
    span,
)
from trainguard.core.observation import LogSource
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis, FaultClass, SaidBy, Suspect

REF = JobRef(scheduler="runai", cluster="prod", id="ml-team/my-training-job")
JOB = Job(ref=REF, name="my-training-job", project="ml-team")
RUN = Incarnation(job=REF, token="a1b2c3d4-e5f6-7890-abcd-ef1234567890", attempt=2)
FAILED_AT = 1764844215.0
INCIDENT = Incident(
    id="a1b2c3d4",
    job_key=JOB.key,
    incarnation=RUN,
    signals=(Signal(kind=SignalKind.CRASH, at=FAILED_AT, detail="exit code 137", sources=("scheduler",)),),
    failed_at=FAILED_AT,
    detected_at=FAILED_AT + 3,
    step=4600,
)
DIAGNOSIS = Diagnosis(
    fault=FaultClass.HOST_OOM,
    cause="The kernel killed the trainer: its memory limit was reached.",
    rule="MEM-001",
    by=SaidBy.RULE,
    confidence=0.9,
    citations=(
        Citation(source=LogSource(name="rank3.log", rank=3), line=812, text="Killed process 4242 (python)"),
    ),
    suspects=(Suspect(rank=3, node="gpu-7"),),
    actions=(ActionKind.RESTART_WITH_MORE_MEMORY,),
)
PLAN = Plan(
    incident=INCIDENT.id,
    steps=(
        Decision(
            action=Action(kind=ActionKind.RESTART_WITH_MORE_MEMORY, incarnation=RUN),
            verdict=Verdict.ASK,
            basis="not whitelisted",
            would_allow='allow = ["restart_with_more_memory"]',
            at=FAILED_AT,
        ),
    ),
)
REQUEST = ApprovalRequest(
    id="a1b2c3d4-1",
    incident=INCIDENT.id,
    job_key=JOB.key,
    incarnation=RUN,
    plan=PLAN,
    asked_at=FAILED_AT,
    deadline=FAILED_AT + 3600,
)
RUN_PAGE = (Link(label="Paused run", url="http://127.0.0.1:4200/runs/flow-run/0b1c"),)


def texts(payload: Any) -> list[dict[str, Any]]:
    """Every text object of a Slack payload."""
    if isinstance(payload, dict):
        own = [payload] if payload.get("type") in {"mrkdwn", "plain_text"} else []
        return own + [found for value in payload.values() for found in texts(value)]
    if isinstance(payload, list):
        return [found for value in payload for found in texts(value)]
    return []


def test_an_opened_incident_tells_who_what_when_and_why() -> None:
    message = incident_opened(JOB, INCIDENT, DIAGNOSIS, status="OOMKilled", links=RUN_PAGE)
    told = plain(message)
    for word in (
        "ml-team",
        "my-training-job",
        "training",
        "OOMKilled",
        "2025-12-04 10:30:15 UTC",
        RUN.token,
        "memory limit was reached",
        "host_oom",
        "rank 3 node gpu-7",
        "rank3.log:812: Killed process 4242",
        "trainguard incidents a1b2c3d4",
    ):
        assert word in told
    assert plain_title(message) == "Job failure: my-training-job"


def test_an_incident_is_told_before_its_cause_is_known() -> None:
    message = incident_opened(JOB, INCIDENT, None)
    assert ("Status", "crash") in message.fields
    assert "exit code 137" in message.body


def test_a_request_names_the_action_its_deadline_the_run_and_the_command() -> None:
    told = plain(approval_needed(JOB, INCIDENT, DIAGNOSIS, REQUEST, links=RUN_PAGE))
    for word in (
        "restart_with_more_memory",
        "until 2025-12-04 11:30:15 UTC nothing is done",
        "trainguard approve a1b2c3d4-1",
        RUN_PAGE[0].url,
    ):
        assert word in told


def test_a_recovery_tells_its_times_and_what_was_lost() -> None:
    ended = INCIDENT.model_copy(
        update={
            "state": IncidentState.RECOVERED,
            "acted_at": FAILED_AT + 9,
            "recovered_at": FAILED_AT + 130,
            "checkpoint_step": 4500,
            "outcome": "Restarted from step 4500.",
        }
    )
    message = incident_ended(JOB, ended, DIAGNOSIS)
    assert message.severity is Severity.GOOD
    assert (
        "Seen after 3 s. Acted after 9 s. Progress verified after 2 min 10 s. Steps computed again: 100."
        in message.body
    )


def test_an_unrecoverable_incident_says_what_would_have_been_done_and_what_allows_it() -> None:
    ended = INCIDENT.model_copy(update={"state": IncidentState.UNRECOVERABLE, "outcome": "Not permitted."})
    message = incident_ended(JOB, ended, DIAGNOSIS, PLAN)
    assert message.title == "Not recoverable: my-training-job"
    assert "Would have been done:\n1. restart_with_more_memory (ask: not whitelisted)" in message.body
    assert 'allow = ["restart_with_more_memory"]' in message.body


def test_blindness_is_never_told_as_failure() -> None:
    lost = sight_lost(JOB, since=FAILED_AT, detail="Connection refused")
    assert "state is unknown" in lost.body
    assert "fail" not in plain(lost).lower()
    assert "2 min" in sight_recovered(JOB, at=FAILED_AT, blind_for=120).body


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h")],
)
def test_durations_are_told_in_two_units(seconds: float, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize("at", [float("inf"), float("nan"), 1e30, -1e30])
def test_an_impossible_time_is_told_as_its_number(at: float) -> None:
    assert moment(at) == str(at)


HOSTILE = (
    "<!channel> <!here> <@U123> @channel @here @everyone",
    "<https://evil.example|click>",
    "``` *bold* ~strike~ `code` ```",
    "````\n# heading\n````",
    "![x](https://evil.example/x.png) [y](javascript:alert(1))",
    "<img src=x onerror=alert(1)> </td><script>alert(1)</script> &lt;b&gt;",
    "https://evil.example www.evil.example mail@evil.example",
    "| a | b |\n|---|---|\n> quote\n- item\n1. item\n---\n***",
    "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07 \x1b[2J\x1b]0;title\x07 \x9b31m",
    "\u202egnp.exe \u200b\u2066x\u2069 \ufeff",
    "\r\nprogress\rprogress\x0b\x0c\x85\u2028\u2029",
    ":rotating_light: &amp;",
    "~~~\n</pre>\n~~~",
)
UNTRUSTED = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=200),
    st.lists(
        st.sampled_from([*"`~*_<>&|[]()!#.:x\n\\\x1b\u202e", "@channel", "@here", "http://", "www."])
    ).map("".join),
)


def message_with(text: str) -> Message:
    return Message(
        kind=MessageKind.OPENED,
        severity=Severity.CRITICAL,
        title=f"Job failure: {text}",
        fields=(("Job name", text), ("Status", text)),
        body=text,
        excerpt=text,
        links=RUN_PAGE,
    )


@given(UNTRUSTED)
@settings(max_examples=300, deadline=None)
def test_untrusted_text_stays_text_in_slack(text: str) -> None:
    payload = slack_payload(message_with(text))
    json.dumps(payload)
    for found in texts(payload):
        references = re.findall(r"<[^>]*>?", found["text"])
        assert references in ([], [f"<{RUN_PAGE[0].url}|Paused run>"])
        assert not re.search(r"@(channel|here|everyone)\b", found["text"])
        if found["type"] == "plain_text":
            assert found["emoji"] is False
            continue
        assert found["verbatim"] is True
        fenced = re.fullmatch(r"```\n(.*)\n```", found["text"], re.DOTALL)
        assert fenced is None or "`" not in fenced[1]
    assert "<" not in payload["text"] + payload["attachments"][0]["fallback"]


@given(UNTRUSTED)
@settings(max_examples=300, deadline=None)
def test_every_punctuation_mark_of_untrusted_text_is_escaped_in_markdown(text: str) -> None:
    escaped = markdown_escape(text)
    rest = re.sub(r"\\[!-/:-@\[-`{-~]|&(?:amp|lt);", "", escaped)
    assert not re.search(r"[!-/:-@\[-`{-~]", rest)


@given(UNTRUSTED)
@settings(max_examples=300, deadline=None)
def test_nothing_in_an_excerpt_closes_its_fence(text: str) -> None:
    opening, *body, closing = fence(text).split("\n")
    assert set(closing) == {"`"}
    assert opening == f"{closing}text"
    assert not [line for line in body if closing in line]
    assert not re.search(r"[\r\x0b\x0c\x85\u2028\u2029\x1b\u202e]", "".join(body))


@given(UNTRUSTED)
@settings(max_examples=200, deadline=None)
def test_plain_text_mentions_nobody_and_moves_no_cursor(text: str) -> None:
    told = plain(message_with(text)) + plain_title(message_with(text))
    assert not re.search(r"@\s*(?:channel|here|everyone)\b", told, re.IGNORECASE)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", told)


def test_what_is_invisible_is_shown_as_its_code() -> None:
    assert clean("a\u202eb\u200bc\x00d\u0085e") == "a\\u202eb\\u200bc\\u0000d\\u0085e"


def test_terminal_sequences_are_taken_out() -> None:
    assert (
        clean("\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\ \x1b]0;t\x07x")
        == "red link x"
    )


@pytest.mark.parametrize("size", [10, 3_000, 3_001, 100_000])
@pytest.mark.parametrize("piece", ["&", "line of log\n", "`", "é"])
def test_slacks_limits_hold_for_any_length(size: int, piece: str) -> None:
    payload = slack_payload(message_with(piece * size))
    blocks = payload["attachments"][0]["blocks"]
    assert len(blocks) <= 50
    for block in blocks:
        assert len(block.get("fields", [])) <= 10
        limit = 150 if block["type"] == "header" else 3000
        assert all(1 <= len(found["text"]) <= limit for found in texts(block))
        assert all(len(field["text"]) <= 2000 for field in block.get("fields", []))


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "file:///etc/passwd", "https://", "ftp://x/y", "", "http://[bad"]
)
def test_only_web_addresses_become_links(url: str) -> None:
    message = message_with("x").model_copy(update={"links": (Link(label="go", url=url),)})
    assert "](" not in markdown(message)
    assert "|go>" not in json.dumps(slack_payload(message))


def test_a_link_cannot_be_ended_early() -> None:
    message = message_with("x").model_copy(
        update={"links": (Link(label="go", url="https://x.example/a>b|c d"),)}
    )
    assert "https://x.example/a%3Eb%7Cc%20d" in markdown(message)
    assert "<https://x.example/a%3Eb%7Cc%20d|go>" in json.dumps(slack_payload(message))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/train.py:120", "`/home/alice/train.py:120`"),
        ("a`b``c", "``` a`b``c ```"),
        ("one\n# two", "`one # two`"),
        ("token=hunter2secret9", "`token=[masked]`"),
    ],
)
def test_a_code_span_shows_text_as_it_is_and_nothing_in_it_ends_it(text: str, shown: str) -> None:
    assert code(text) == shown
