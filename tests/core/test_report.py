"""The pages that people read: complete, in words, and inert."""

from __future__ import annotations

import re

import pytest

from tests.ledger import facts
from trainguard.core.action import Action, ActionKind
from trainguard.core.approval_page import approval_page, approval_question
from trainguard.core.decision import Decision, Lease, Plan, Verdict
from trainguard.core.evidence import Citation, EvidenceKind
from trainguard.core.guard_page import GuardView, ListedIncident, guard_page
from trainguard.core.history import IntentRecord
from trainguard.core.incident import IncidentState
from trainguard.core.observation import LogSource, Progress
from trainguard.core.progress import Reading
from trainguard.core.report import IncidentFile, incident_report
from trainguard.core.status_line import HEADER

LOG = LogSource(name="/runs/7/logs/attempt-0004.log")
LEASE = Lease(job_key=facts.KEY, holder="guard", number=1, expires_at=facts.NOW)


def plan(verdict: Verdict = Verdict.ASK) -> Plan:
    action = Action(
        kind=ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,
        incarnation=facts.FIRST,
        checkpoint="/runs/7/checkpoints/of/a/folder/with/a/long/name/step-000080.npz",
        checkpoint_step=80,
    )
    would = 'policy.allow = [{action = "restart_from_earlier_checkpoint", faults = ["numerical"]}]'
    step = Decision(action=action, verdict=verdict, basis="not whitelisted", would_allow=would, at=facts.NOW)
    return Plan(incident="inc00001", steps=(step,))


def known(**changes: object) -> IncidentFile:
    cited = Citation(source=LOG, line=188, text="FloatingPointError: loss is not finite `since` step 85")
    found = facts.diagnosis().model_copy(
        update={"citations": (cited,), "code_location": "/jobs/trainer.py:106"}
    )
    file = IncidentFile(job=facts.JOB, incident=facts.incident(), diagnosis=found, plan=plan())
    return file.model_copy(update=changes)


def recovered() -> IncidentFile:
    incident = facts.incident(
        state=IncidentState.RECOVERED,
        failed_at=facts.NOW - 4,
        checkpoint_step=80,
        recovered_at=facts.NOW + 3600,
        closed_at=facts.NOW + 3600,
        outcome="step 104, past the failure's step 100",
    )
    done = IntentRecord(intent=facts.intent(LEASE), outcome=facts.outcome())
    return known(
        incident=incident,
        request=facts.request(),
        answer=facts.answer(via="ui"),
        intents=(done,),
        step_seconds=18.0,
    )


def test_a_report_tells_the_whole_story_of_an_incident() -> None:
    page = incident_report(recovered()).replace("\\", "")
    for told in (
        "# llama: crash at step 100",
        "**recovered**: step 104, past the failure",
        "asked a person",
        "approved by ada",
        "restart: intended",
        "restart: done",
        "logs/attempt-0004.log:188",
        "- waiting: 1 h (1.00 h), of it 10 s for an answer",
        "- recomputed: 20 steps, from 80 to 100, about 6 min (0.10 h)",
        "## Intent and outcome",
        "tg-inc00001-1",
    ):
        assert told in page


def test_code_and_cited_lines_are_shown_as_they_are_printed() -> None:
    page = incident_report(known())
    assert "In the code: `/jobs/trainer.py:106`" in page
    assert "`` FloatingPointError: loss is not finite `since` step 85 ``" in page


def test_nothing_long_stands_in_a_table_whose_cells_would_not_wrap() -> None:
    page = incident_report(known())
    assert not any(line.startswith("|") for line in page.splitlines())


def test_a_place_whose_line_is_unknown_has_no_question_mark() -> None:
    found = facts.diagnosis().model_copy(
        update={"citations": (Citation(source=LogSource(name="kernel log"), line=None, text="oom"),)}
    )
    page = incident_report(known(diagnosis=found))
    assert "- kernel log `oom`" in page and "?" not in page


def test_a_report_that_waits_says_where_the_answer_is_given_and_until_when() -> None:
    url = "http://prefect/runs/flow-run/1"
    page = incident_report(known(request=facts.request(), form_url=url))
    assert "**Waits for your answer** until 2026-05-28 21:26:40 UTC" in page
    assert f"(<{url}>)" in page and "`trainguard approve inc00001-1`" in page
    assert "Waits for your answer" not in incident_report(recovered())


def test_evidence_is_shown_around_what_is_cited_and_records_for_programs_are_not() -> None:
    lines = [f"line {number}" for number in range(100)]
    evidence = facts.evidence("\n".join(lines))
    cited = Citation(source=evidence.source, line=31, text="line 30")
    state = facts.evidence('{\n "pid": 7\n}', "supervisor state").model_copy(
        update={"kind": EvidenceKind.STATUS}
    )
    found = facts.diagnosis().model_copy(update={"citations": (cited,)})
    page = incident_report(known(diagnosis=found, evidence=(evidence, state)))
    shown = re.findall(r"^line \d+$", page, re.MULTILINE)
    assert (shown[0], shown[-1], len(shown)) == ("line 18", "line 42", 25)
    assert '"pid"' not in page
    tail = incident_report(known(evidence=(evidence,)))
    assert re.findall(r"^line \d+$", tail, re.MULTILINE)[-1] == "line 99"


def test_the_form_says_what_would_be_done_and_why_it_asks() -> None:
    question = approval_question(known()).replace("\u200b", "")
    assert question.startswith(
        "May this be done? restart from earlier checkpoint from /runs/7/checkpoints/of/"
    )
    assert "\\" not in question  # where it is not read as Markdown
    page = approval_page(known()).replace("\\", "").replace("\u200b", "")
    assert "llama: crash at step 100" in page and "killed for memory" in page
    assert "logs/attempt-0004.log:188 FloatingPointError" in page
    assert "Asked because: not whitelisted" in page


@pytest.mark.parametrize("text", ["x" * 300, "&" * 60, "\\" * 60, "/a*b" * 40])
def test_the_form_has_no_word_that_would_make_it_wider_than_a_phone(text: str) -> None:
    cited = Citation(source=LOG, line=1, text=text)
    found = facts.diagnosis().model_copy(update={"citations": (cited,)})
    for page in (approval_page(known(diagnosis=found)), approval_question(known())):
        shown = re.sub(r"\\(.)", r"\1", page.replace("&amp;", "&"))
        assert max(len(word) for word in re.split(r"[\s\u200b]", shown)) <= 30
        assert page.count("**") in {0, 2}  # no mark of ours was broken apart


def view(**changes: object) -> GuardView:
    return GuardView(job=facts.JOB, status="Enabled", line="2026 Enabled", reading=Reading()).model_copy(
        update=changes
    )


def test_the_guards_page_names_its_columns_and_says_how_far_the_job_is() -> None:
    progress = Progress(step=100, total=400, loss=2.5, step_seconds=18.0)
    page = guard_page(view(progress=progress))
    assert f"{HEADER.rstrip()}\n2026 Enabled" in page.replace("run \n", "run\n")
    assert "Step **100** of 400 (25%), loss 2.5, 18 s a step, about 1 h 30 min left" in page
    assert "left" not in guard_page(view(progress=progress, status="Completed", outcome="succeeded"))


def test_the_guards_page_leads_to_reports_and_to_the_form_that_waits() -> None:
    row = ListedIncident(
        incident=facts.incident(), fault="host_oom", url="http://prefect/artifacts/artifact/1"
    )
    page = guard_page(view(incidents=(row,), request=facts.request(), form_url="http://prefect/runs/2"))
    assert "| [inc00001](<http://prefect/artifacts/artifact/1>) |" in page
    assert "| open | crash at step 100 | host_oom | 2026-05-28" in page
    assert "**Waits for your answer**" in page and "(<http://prefect/runs/2>)" in page
