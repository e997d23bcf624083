"""What may be done, asked for or refused: the policy as tables of cases."""

from __future__ import annotations

from typing import Any

import pytest

from trainguard.core.action import Access, ActionKind
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.decision import Decision, Plan, Verdict
from trainguard.core.evidence import Citation
from trainguard.core.handlers import FailureHandler, HandlerRule
from trainguard.core.health import Health
from trainguard.core.history import NodeEvent, RecoveryRecord
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.job import CheckpointSpec, Incarnation, Job, JobRef, Resume, ResumeBy
from trainguard.core.observation import Liveness, LogSource, Observation
from trainguard.core.planning import Situation, plan, stale
from trainguard.core.policy import Allow, Budgets, Limits, Policy, Preset, Teardown
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis, FaultClass, SaidBy, Suspect

REF = JobRef(scheduler="slurm", cluster="lab", id="7")
RUN = Incarnation(job=REF, token="7.1")
NOW = 1_000_000.0
EVERYTHING = frozenset(ActionKind)
GOOD = (
    Checkpoint(path="/c/step-90", step=90, good=True, at=9.0),
    Checkpoint(path="/c/step-80", step=80, good=True, at=8.0),
)


def signal(kind: SignalKind = SignalKind.CRASH, *sources: str) -> Signal:
    return Signal(kind=kind, at=NOW, detail="x", sources=sources or ("scheduler", "process"))


def situation(**changes: Any) -> Situation:
    incident = Incident(
        id="abcdefgh", job_key=REF.key, incarnation=RUN, signals=(signal(),), detected_at=NOW, step=95
    )
    found = Diagnosis(
        fault=FaultClass.NCCL_COMM,
        cause="a rank left",
        by=SaidBy.RULE,
        confidence=0.9,
        actions=(ActionKind.RESTART,),
        fingerprint="f1",
    )
    seen = Observation(
        job=REF,
        at=NOW,
        source="squeue",
        liveness=Liveness.FAILED,
        native="FAILED",
        incarnation=RUN,
        nodes=("n1", "n2"),
    )
    known: dict[str, Any] = {
        "job": Job(ref=REF, name="j"),
        "incident": incident,
        "diagnosis": found,
        "observation": seen,
        "policy": Policy(preset=Preset.AUTONOMOUS),
        "access": Access(job_seen=True, logs_readable=True),
        "supported": EVERYTHING,
        "checkpoints": GOOD,
        "known_nodes": frozenset({"n1", "n2"}),
        "now": NOW,
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        known[part] = known[part].model_copy(update={field: value}) if field else value
    return Situation(**known)


def only(made: Plan) -> Decision:
    (step,) = made.steps
    return step


RUNS, ASKS, REFUSED = Verdict.RUN, Verdict.ASK, Verdict.REFUSE


@pytest.mark.parametrize(
    ("changes", "verdict", "why"),
    [
        ({}, RUNS, "autonomous"),
        ({"policy": Policy(preset=Preset.OBSERVE)}, REFUSED, "not whitelisted"),
        ({"policy": Policy(preset=Preset.ASSIST)}, ASKS, "not whitelisted"),
        ({"policy": Policy(allow=(Allow(action=ActionKind.RESTART),))}, RUNS, "policy.allow"),
        (
            {"policy": Policy(allow=(Allow(action=ActionKind.RESTART, faults=(FaultClass.DATA,)),))},
            ASKS,
            "not whitelisted",
        ),
        (
            {"policy": Policy(allow=(Allow(action=ActionKind.RESTART),), refuse=(ActionKind.RESTART,))},
            REFUSED,
            "policy.refuse",
        ),
        ({"supported": frozenset()}, REFUSED, "can't do"),
        ({"access__impossible": {ActionKind.RESTART: "no right"}}, REFUSED, "no right"),
        ({"incident__step": None, "checkpoints": ()}, REFUSED, "before its first step"),
        ({"incident__step": None}, RUNS, "autonomous"),
        ({"observation__liveness": Liveness.RUNNING}, RUNS, "autonomous"),
        (
            {
                "observation__liveness": Liveness.RUNNING,
                "incident__signals": (signal(SignalKind.STALL, "log"),),
            },
            ASKS,
            "only log says so",
        ),
        ({"observation__liveness": Liveness.RUNNING, "diagnosis__confidence": 0.4}, ASKS, "not certain"),
        ({"diagnosis__confidence": 0.4}, RUNS, "autonomous"),
        ({"alike_jobs": 3}, ASKS, "storm"),
    ],
)
def test_the_verdict_on_a_restart_and_its_basis(changes: dict[str, Any], verdict: Verdict, why: str) -> None:
    step = only(plan(situation(**changes)))
    assert step.verdict is verdict
    assert why in step.basis


def record(**changes: Any) -> RecoveryRecord:
    known: dict[str, Any] = {
        "incident": "older",
        "fingerprint": "f1",
        "fault": FaultClass.NCCL_COMM,
        "actions": (ActionKind.RESTART,),
        "acted_at": NOW - 600,
        "step_before": 95,
        "step_reached": 95,
        "state": IncidentState.UNRECOVERABLE,
    }
    return RecoveryRecord(**{**known, **changes})


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ((), RUNS),
        ((record(),), REFUSED),
        ((record(step_reached=None),), REFUSED),
        ((record(step_reached=200),), RUNS),
        ((record(fingerprint="other"),), RUNS),
        ((record(acted_at=None),), RUNS),
        ((record(step_reached=200), record()), RUNS),
    ],
)
def test_the_same_error_after_a_fix_without_progress_stops(
    history: tuple[RecoveryRecord, ...], verdict: Verdict
) -> None:
    assert only(plan(situation(history=history))).verdict is verdict


def test_the_same_error_after_a_fix_stops_for_a_live_job_with_one_source_too() -> None:
    known = situation(
        observation__liveness=Liveness.RUNNING,
        incident__signals=(signal(SignalKind.NUMERICAL, "log"),),
        history=(record(),),
    )
    step = only(plan(known))
    assert step.verdict is REFUSED and "same error came back" in step.basis


def test_flapping_asks_a_person_whatever_the_causes() -> None:
    history = tuple(record(fingerprint=f"f{i}", step_reached=500) for i in range(6))
    step = only(plan(situation(history=history)))
    assert step.verdict is ASKS and "flapping" in step.basis


def test_a_node_is_left_out_only_where_the_scheduler_knows_it() -> None:
    ladder = (ActionKind.RESTART_EXCLUDING_NODE,)
    known = situation(
        diagnosis__actions=ladder, diagnosis__suspects=(Suspect(node="n2"), Suspect(node="evil"))
    )
    assert only(plan(known)).action.nodes == ("n2",)
    forged = situation(diagnosis__actions=ladder, diagnosis__suspects=(Suspect(node="evil"),))
    assert only(plan(forged)).verdict is REFUSED


def cited(kind: str) -> tuple[Citation, ...]:
    return (Citation(source=LogSource(name="x", kind=kind), line=1, text="NVRM: Xid 79"),)


@pytest.mark.parametrize(("kind", "verdict"), [("log", None), ("kernel", RUNS)])
def test_a_node_is_never_drained_on_the_word_of_the_jobs_own_log(kind: str, verdict: Verdict | None) -> None:
    known = situation(
        diagnosis__actions=(ActionKind.RESTART_EXCLUDING_NODE, ActionKind.DRAIN_NODE),
        diagnosis__suspects=(Suspect(node="n2"),),
        diagnosis__citations=cited(kind),
        policy=Policy(preset=Preset.AUTONOMOUS, allow=(Allow(action=ActionKind.DRAIN_NODE),)),
    )
    made = plan(known)
    decided = {step.action.kind: step.verdict for step in made.steps}
    assert decided.get(ActionKind.DRAIN_NODE) is verdict
    assert made.steps[-1].action.kind is ActionKind.RESTART_EXCLUDING_NODE


def named(node: str, *others: tuple[str, str]) -> tuple[NodeEvent, ...]:
    """What incidents of some jobs laid at a node's door."""
    return tuple(
        NodeEvent(node=node, incident=incident, job_key=job, fault=FaultClass.GPU_HARDWARE, at=NOW - 60)
        for incident, job in others
    )


AGAIN, WITHOUT = ActionKind.RESTART, ActionKind.RESTART_EXCLUDING_NODE
ELSEWHERE = (("i1", "slurm/lab/8"), ("i2", "slurm/lab/9"), ("i3", "slurm/lab/9"))
TWICE = "n2 was named by 3 earlier incidents of 2 jobs within 30 days"


def allowing(*kinds: ActionKind, **more: Any) -> Policy:
    return Policy(allow=tuple(Allow(action=kind) for kind in kinds), **more)


@pytest.mark.parametrize(
    ("changes", "kind", "nodes", "verdict", "said"),
    [
        ({"node_events": ()}, AGAIN, (), RUNS, ""),
        ({}, WITHOUT, ("n2",), RUNS, TWICE),
        (
            {"node_events": named("n2", ("i1", REF.key))},
            WITHOUT,
            ("n2",),
            RUNS,
            "1 earlier incident of 1 job",
        ),
        ({"node_events": named("n1", *ELSEWHERE)}, WITHOUT, ("n1",), RUNS, "n1 was named"),
        ({"node_events": named("n9", *ELSEWHERE)}, AGAIN, (), RUNS, ""),
        ({"diagnosis__actions": (WITHOUT, AGAIN)}, WITHOUT, ("n2", "n1"), RUNS, TWICE),
        ({"diagnosis__actions": (AGAIN,)}, AGAIN, (), RUNS, TWICE),
        ({"policy": Policy(preset=Preset.ASSIST)}, WITHOUT, ("n2",), ASKS, TWICE),
        ({"policy": allowing(AGAIN)}, AGAIN, (), RUNS, TWICE),
        ({"policy": allowing(AGAIN, refuse=(WITHOUT,))}, AGAIN, (), RUNS, TWICE),
        ({"policy": allowing(WITHOUT)}, WITHOUT, ("n2",), RUNS, TWICE),
        ({"excluded_nodes": frozenset({"a", "b"})}, AGAIN, (), RUNS, TWICE),
        ({"supported": EVERYTHING - {WITHOUT}}, AGAIN, (), RUNS, TWICE),
        ({"access__impossible": {WITHOUT: "no right"}}, AGAIN, (), RUNS, TWICE),
        ({"refused": {WITHOUT: "no other node is left"}}, AGAIN, (), RUNS, TWICE),
        ({"known_nodes": frozenset({"n1"})}, AGAIN, (), RUNS, ""),
    ],
)
def test_a_node_that_other_incidents_named_is_left_out_where_that_may_be_done_and_else_nothing_changes(
    changes: dict[str, Any], kind: ActionKind, nodes: tuple[str, ...], verdict: Verdict, said: str
) -> None:
    known = {
        "diagnosis__actions": (AGAIN, WITHOUT),
        "diagnosis__suspects": (Suspect(node="n2"), Suspect(node="n1")),
        "diagnosis__transient": True,
        "node_events": named("n2", *ELSEWHERE),
    }
    step = only(plan(situation(**{**known, **changes})))
    assert (step.action.kind, step.action.nodes, step.verdict) == (kind, nodes, verdict)
    assert said in step.basis and ("was named" in step.basis) == bool(said)


def test_no_history_lets_an_action_on_the_node_itself_run() -> None:
    known: dict[str, Any] = {
        "diagnosis__actions": (WITHOUT, ActionKind.DRAIN_NODE),
        "diagnosis__suspects": (Suspect(node="n2"),),
        "diagnosis__citations": cited("kernel"),
    }
    assert plan(situation(**known)) == only_basis_differs(
        plan(situation(node_events=named("n2", *ELSEWHERE), **known))
    )


def only_basis_differs(made: Plan) -> Plan:
    """The plan without what it says of earlier incidents."""
    steps = (step.model_copy(update={"basis": step.basis.partition("; n2 was")[0]}) for step in made.steps)
    return made.model_copy(update={"steps": tuple(steps)})


def test_what_the_scheduler_refused_gives_way_to_the_next_rung() -> None:
    known = situation(
        diagnosis__actions=(WITHOUT,),
        diagnosis__suspects=(Suspect(node="n2"),),
        refused={WITHOUT: "no other node is left"},
    )
    step = only(plan(known))
    assert step.verdict is REFUSED and step.basis == "the scheduler refused it: no other node is left"


def test_the_blast_radius_counts_nodes_left_out_before() -> None:
    known = situation(
        diagnosis__actions=(ActionKind.RESTART_EXCLUDING_NODE,),
        diagnosis__suspects=(Suspect(node="n2"),),
        excluded_nodes=frozenset({"a", "b"}),
        policy=Policy(preset=Preset.AUTONOMOUS, budgets=Budgets(excluded_nodes=2)),
    )
    assert only(plan(known)).verdict is ASKS


def test_the_first_rung_that_may_run_is_taken_before_one_that_must_be_asked() -> None:
    known = situation(
        diagnosis__actions=(ActionKind.RESTART_WITH_MORE_MEMORY, ActionKind.RESTART),
        policy=Policy(allow=(Allow(action=ActionKind.RESTART),)),
    )
    assert only(plan(known)).action.kind is ActionKind.RESTART


def test_more_memory_is_counted_from_the_present_limit_and_capped() -> None:
    ladder = (ActionKind.RESTART_WITH_MORE_MEMORY,)
    grown = situation(diagnosis__actions=ladder, observation__memory_limit=100)
    assert only(plan(grown)).action.memory_bytes == 150
    policy = Policy(preset=Preset.AUTONOMOUS, limits=Limits(memory_bytes=120))
    capped = situation(diagnosis__actions=ladder, observation__memory_limit=100, policy=policy)
    assert only(plan(capped)).action.memory_bytes == 120


def test_a_bad_newest_checkpoint_is_set_aside_before_a_training_that_looks_for_its_own() -> None:
    bad = Checkpoint(path="/c/step-100", step=100, good=False, problem="truncated")
    spec = CheckpointSpec(directory="/c", resume=Resume(by=ResumeBy.NOTHING))
    job = Job(ref=REF, name="j", checkpoints=spec)
    allowed = Policy(allow=(Allow(action=ActionKind.RESTART), Allow(action=ActionKind.SET_ASIDE_CHECKPOINT)))
    made = plan(situation(job=job, checkpoints=(bad, *GOOD), policy=allowed))
    assert [(s.action.kind, s.action.checkpoint) for s in made.steps] == [
        (ActionKind.SET_ASIDE_CHECKPOINT, "/c/step-100"),
        (ActionKind.RESTART, "/c/step-90"),
    ]
    not_allowed = Policy(allow=(Allow(action=ActionKind.RESTART),))
    assert plan(situation(job=job, checkpoints=(bad, *GOOD), policy=not_allowed)).verdict is ASKS


def test_an_earlier_checkpoint_is_no_plan_for_a_training_that_takes_its_newest_by_itself() -> None:
    spec = CheckpointSpec(directory="/c", resume=Resume(by=ResumeBy.NOTHING))
    numerical: dict[str, Any] = {
        "job": Job(ref=REF, name="j", checkpoints=spec),
        "diagnosis__fault": FaultClass.NUMERICAL,
        "diagnosis__actions": (ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,),
    }
    step = only(plan(situation(**numerical)))
    assert step.verdict is REFUSED
    assert "finds its newest checkpoint by itself" in step.basis and "checkpoints.resume" in step.would_allow
    told = spec.model_copy(update={"resume": Resume(by=ResumeBy.ARGUMENT, name="--resume")})
    step = only(plan(situation(**{**numerical, "job": Job(ref=REF, name="j", checkpoints=told)})))
    assert (step.verdict, step.action.checkpoint_step) == (RUNS, 80)
    corrupt = {**numerical, "diagnosis__fault": FaultClass.CHECKPOINT_CORRUPTION}
    step = only(plan(situation(**corrupt)))
    assert (step.verdict, step.action.checkpoint_step) == (RUNS, 90)


def test_a_rented_machine_is_given_up_by_the_line_that_a_refusal_names_and_never_before_a_restart() -> None:
    destroy = ActionKind.DESTROY_INSTANCE
    ladder = {"diagnosis__actions": (destroy,)}
    refused = only(plan(situation(**ladder)))
    assert (refused.verdict, refused.would_allow) == (REFUSED, "policy.teardown.destroy_on_fail = true")
    allowed = Policy(preset=Preset.AUTONOMOUS, teardown=Teardown(destroy_on_fail=True))
    assert only(plan(situation(policy=allowed, **ladder))).verdict is RUNS
    both = plan(situation(policy=allowed, diagnosis__actions=(destroy, ActionKind.RESTART)))
    assert [step.action.kind for step in both.steps] == [ActionKind.RESTART]
    unheard_of = only(plan(situation(supported=frozenset(), **ladder)))
    assert (unheard_of.verdict, unheard_of.would_allow) == (REFUSED, "")


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ({}, ""),
        ({"liveness": Liveness.UNKNOWN}, "can't be seen"),
        ({"incarnation": None}, "does not name"),
        ({"incarnation": Incarnation(job=REF, token="7.2")}, "is now incarnation 7.2"),
        ({"liveness": Liveness.STOPPED}, "stopped it"),
        ({"liveness": Liveness.SUCCEEDED}, "finished"),
        ({"restart_underway": True}, "already bringing it back"),
    ],
)
def test_an_action_is_stale_once_the_job_is_not_as_diagnosed(seen: dict[str, Any], why: str) -> None:
    known = situation()
    action = only(plan(known)).action
    said = stale(known.incident, action, known.observation.model_copy(update=seen), Health(), 95)
    assert (why in said) if why else said == ""


SCRIPTS = (
    FailureHandler(
        name="known", rules=(HandlerRule(exit_codes=(42, 137), recovery_script="/r.sh", max_retries=2),)
    ),
)
SCRIPT = ActionKind.RUN_RECOVERY_SCRIPT
ALLOWS = Policy(allow=(Allow(action=SCRIPT), Allow(action=ActionKind.RESTART)))
NOTHING_FITS: dict[str, Any] = {"diagnosis__actions": (ActionKind.FIX_CODE_OR_CONFIG,)}


def exited(code: int | None, **changes: Any) -> Situation:
    known = {"handlers": SCRIPTS, "observation__exit_code": code, "policy": ALLOWS, **changes}
    return situation(**known)


@pytest.mark.parametrize(
    ("known", "steps", "verdict"),
    [
        (exited(42), ["run_recovery_script", "restart"], RUNS),
        (exited(42, **NOTHING_FITS), ["run_recovery_script", "restart"], RUNS),
        (exited(None, observation__exit_signal=9), ["run_recovery_script", "restart"], RUNS),
        (exited(42, policy=Policy()), ["run_recovery_script", "restart"], ASKS),
        (exited(42, policy=Policy(preset=Preset.AUTONOMOUS)), ["run_recovery_script", "restart"], ASKS),
        (exited(42, policy=Policy(preset=Preset.OBSERVE)), ["run_recovery_script", "restart"], REFUSED),
        (exited(42, policy=Policy(allow=ALLOWS.allow, refuse=(SCRIPT,))), ["restart"], RUNS),
        (exited(42, script_uses={"known#1": 1}), ["run_recovery_script", "restart"], RUNS),
        (exited(42, script_uses={"known#1": 2}, **NOTHING_FITS), ["run_recovery_script"], REFUSED),
        (exited(1), ["restart"], RUNS),
        (exited(None), ["restart"], RUNS),
        (exited(42, observation__liveness=Liveness.RUNNING), ["restart"], RUNS),
        (exited(1, diagnosis__actions=(SCRIPT, ActionKind.RESTART)), ["restart"], RUNS),
    ],
)
def test_the_owners_script_for_an_exit_code_comes_before_the_restart(
    known: Situation, steps: list[str], verdict: Verdict
) -> None:
    made = plan(known)
    assert [step.action.kind.value for step in made.steps] == steps
    assert made.verdict is verdict


def test_after_the_owners_script_no_node_is_left_out_for_its_history() -> None:
    known: dict[str, Any] = {
        "diagnosis__actions": (AGAIN, WITHOUT),
        "diagnosis__suspects": (Suspect(node="n2"),),
        "node_events": named("n2", *ELSEWHERE),
        "policy": allowing(SCRIPT, AGAIN, WITHOUT),
    }
    assert [step.action.kind for step in plan(exited(42, **known)).steps] == [SCRIPT, AGAIN]
    assert [step.action.kind for step in plan(exited(1, **known)).steps] == [WITHOUT]


def test_a_script_may_bring_the_job_back_as_often_as_its_owner_said() -> None:
    tried = RecoveryRecord(
        incident="earlier0",
        fingerprint="f1",
        fault=FaultClass.NCCL_COMM,
        actions=(SCRIPT, ActionKind.RESTART),
        acted_at=NOW - 60,
        step_before=95,
        step_reached=95,
        state=IncidentState.UNRECOVERABLE,
    )
    assert plan(exited(1, history=(tried,))).verdict is REFUSED
    assert plan(exited(42, history=(tried,), script_uses={"known#1": 1})).verdict is RUNS
