"""From a diagnosis to a plan: which actions fit, and what the policy says of each."""

from __future__ import annotations

from pydantic import Field

from trainguard.core.action import Access, Action, ActionKind, Scope
from trainguard.core.checkpoint import Checkpoint, bad_after, newest_good
from trainguard.core.decision import Decision, Plan, Verdict
from trainguard.core.fact import Fact
from trainguard.core.handlers import FailureHandler, HandlerMatch, exit_status, match_handler, used_up
from trainguard.core.health import Health
from trainguard.core.history import NodeEvent, RecoveryRecord
from trainguard.core.incident import Incident
from trainguard.core.job import Job, ResumeBy
from trainguard.core.nodes import named_before, restarts_first, suspect_nodes
from trainguard.core.observation import Liveness, Observation
from trainguard.core.policy import Policy, Preset
from trainguard.core.remission import passed
from trainguard.core.verdict import CERTAIN_ENOUGH, Diagnosis, FaultClass


class Situation(Fact):
    """Everything a plan rests on, gathered before it is made."""

    job: Job
    incident: Incident
    diagnosis: Diagnosis
    observation: Observation
    """The latest look at the job."""
    policy: Policy
    access: Access
    supported: frozenset[ActionKind]
    history: tuple[RecoveryRecord, ...] = ()
    """Earlier incidents of the job, newest first."""
    checkpoints: tuple[Checkpoint, ...] | None = None
    known_nodes: frozenset[str] = frozenset()
    """Nodes the scheduler itself names for this job: the only ones an action may name."""
    excluded_nodes: frozenset[str] = frozenset()
    """Left out by earlier recoveries."""
    node_events: tuple[NodeEvent, ...] = ()
    """What other incidents laid at the door of the nodes that this one names."""
    refused: dict[ActionKind, str] = Field(default_factory=dict)
    """What the scheduler refused to do in this incident, and why."""
    alike_jobs: int = Field(default=1, ge=0)
    """Jobs of the cluster that failed alike within the storm window, this one included."""
    handlers: tuple[FailureHandler, ...] = ()
    """The owner's scripts by exit code."""
    script_uses: dict[str, int] = Field(default_factory=dict)
    """How often each has run without progress since, by `HandlerMatch.key`."""
    now: float

    @property
    def exit_code(self) -> int | None:
        """What the job ended with, where it has ended."""
        seen = self.observation
        return exit_status(seen.exit_code, seen.exit_signal) if seen.liveness is Liveness.FAILED else None

    @property
    def script(self) -> HandlerMatch | None:
        """The owner's script for this exit code."""
        return match_handler(self.handlers, self.exit_code, self.script_uses)


def plan(situation: Situation) -> Plan:
    """Choose the first action of the ladder that may run, else the first that may be asked for.

    Restarts are alternatives, the rest of the ladder accompanies them; the owner's script for the exit code
    comes first. What is refused stays in the plan's steps only where nothing may be done at all, so that
    the report can say why.
    """
    script = _script_step(situation)
    scripts = [script] if script else []
    steps = [_decide(situation, action) for action in _candidates(situation)]
    restarts = [step for step in steps if step.action.kind.restarts]
    others = [step for step in steps if not step.action.kind.restarts]
    chosen = _best(restarts)
    if chosen is None or chosen.verdict is Verdict.REFUSE:
        return Plan(incident=situation.incident.id, steps=tuple(scripts + restarts + others))
    scripts = [step for step in scripts if step.verdict is not Verdict.REFUSE]
    needed = [_decide(situation, action) for action in _set_aside(situation)]
    if not finds_its_own_checkpoint(situation.job):
        needed = [step for step in needed if step.verdict is Verdict.RUN]
    companions = [step for step in others if step.verdict is Verdict.RUN or chosen.verdict is Verdict.ASK]
    companions = [step for step in companions if step.verdict is not Verdict.REFUSE]
    # What is to run again needs its machine.
    companions = [step for step in companions if step.action.kind.scope is not Scope.MONEY]
    return Plan(incident=situation.incident.id, steps=(*needed, *scripts, *companions, chosen))


def stale(incident: Incident, action: Action, seen: Observation, health: Health, step: int | None) -> str:
    """Say why an action planned for `incident` must not be done any more; empty if it may.

    `health` and `step` are what is known of the job with the look `seen`.
    """
    if seen.liveness is Liveness.UNKNOWN:
        return "the job can't be seen right now"
    if seen.incarnation is None:
        return "the scheduler does not name the job's incarnation"
    if seen.incarnation.token != action.incarnation.token:
        return f"the job is now incarnation {seen.incarnation.token}, not {action.incarnation.token}"
    if seen.liveness is Liveness.STOPPED:
        return f"its owner or an operator stopped it ({seen.native or 'stopped'})"
    if seen.liveness is Liveness.SUCCEEDED and action.kind.restarts:
        return "it finished by itself"
    if seen.restart_underway:
        return "the scheduler is already bringing it back"
    if incident.state.closed:
        return "the incident is closed"
    return "it passed by itself" if passed(incident, seen, health, step) else ""


def _best(steps: list[Decision]) -> Decision | None:
    for wanted in (Verdict.RUN, Verdict.ASK, Verdict.REFUSE):
        for step in steps:
            if step.verdict is wanted:
                return step
    return None


def _candidates(situation: Situation) -> list[Action]:
    # Bad checkpoints are set aside wherever there are any, whatever the ladder says: see `_set_aside`.
    ladder = situation.diagnosis.actions
    kinds = [kind for kind in ladder if not kind.advice and kind not in _NOT_OF_THE_LADDER]
    if _after_script(situation) and not any(kind.restarts for kind in kinds):
        kinds.append(ActionKind.RESTART)
    if _detour(situation):
        kinds.remove(ActionKind.RESTART_EXCLUDING_NODE)
        kinds.insert(kinds.index(ActionKind.RESTART), ActionKind.RESTART_EXCLUDING_NODE)
    actions = [_fill(situation, kind) for kind in kinds]
    return [action for action in actions if action is not None]


_NOT_OF_THE_LADDER = {ActionKind.SET_ASIDE_CHECKPOINT, ActionKind.RUN_RECOVERY_SCRIPT}


def _detour(situation: Situation) -> tuple[str, ...]:
    """Nodes to leave out before the plain restart is tried: other incidents named them, too.

    After the owner's script the restart is plain: it is the owner who says what the cause is.
    """
    if not restarts_first(situation.diagnosis) or _after_script(situation):
        return ()
    named = {event.node for event in situation.node_events}
    return tuple(node for node in _bad_nodes(situation) if node in named)


def _script_step(situation: Situation) -> Decision | None:
    """The owner's script for the exit code, or why it runs no more."""
    found, incarnation = situation.script, situation.incident.incarnation
    spent = used_up(situation.handlers, situation.exit_code, situation.script_uses)
    if incarnation is None or (found is None and not spent):
        return None
    newest = newest_good(situation.checkpoints)
    action = Action(
        kind=ActionKind.RUN_RECOVERY_SCRIPT,
        incarnation=incarnation,
        checkpoint=newest.path if newest else "",
        script=found.rule.recovery_script if found else "",
        handler=found.key if found else "",
        exit_code=situation.exit_code,
        note=f"incident {situation.incident.id}: exit code {situation.exit_code}",
    )
    if found is not None:
        return _decide(situation, action)
    basis = f"exit code {situation.exit_code} came back although its recovery script ran: {spent}"
    return Decision(action=action, verdict=Verdict.REFUSE, basis=basis, at=situation.now)


def _after_script(situation: Situation) -> bool:
    """Whether the owner's script may run or be asked for: then a restart follows it, as often as its owner says."""
    step = _script_step(situation) if situation.script else None
    return step is not None and step.verdict is not Verdict.REFUSE


def _fill(situation: Situation, kind: ActionKind) -> Action | None:
    incarnation = situation.incident.incarnation or situation.observation.incarnation
    if incarnation is None:
        return None
    chosen = _resume_point(situation, kind) if kind.restarts else None
    nodes = _bad_nodes(situation) if kind.names_nodes else ()
    if kind is ActionKind.RESTART_EXCLUDING_NODE:
        nodes = _detour(situation) or nodes
    return Action(
        kind=kind,
        incarnation=incarnation,
        nodes=nodes,
        checkpoint=chosen.path if chosen else "",
        checkpoint_step=chosen.step if chosen else None,
        memory_bytes=_more_memory(situation) if kind is ActionKind.RESTART_WITH_MORE_MEMORY else None,
        time_limit=_more_time(situation) if kind is ActionKind.EXTEND_TIME_LIMIT else None,
        note=f"incident {situation.incident.id}: {situation.diagnosis.fault}",
    )


def _bad_nodes(situation: Situation) -> tuple[str, ...]:
    return suspect_nodes(situation.diagnosis, situation.observation, situation.known_nodes)


def _resume_point(situation: Situation, kind: ActionKind) -> Checkpoint | None:
    newest = newest_good(situation.checkpoints)
    if kind is not ActionKind.RESTART_FROM_EARLIER_CHECKPOINT or newest is None:
        return newest
    if situation.diagnosis.fault is FaultClass.CHECKPOINT_CORRUPTION:
        return newest
    older = tuple(c for c in situation.checkpoints or () if c.path != newest.path)
    return newest_good(older) or newest


def _more_memory(situation: Situation) -> int | None:
    """None where the present limit is not known: then the adapter, which knows it, asks for half more."""
    limits, now = situation.policy.limits, situation.observation.memory_limit
    if now is None:
        return limits.memory_bytes
    wanted = int(now * limits.memory_factor)
    return wanted if limits.memory_bytes is None else min(wanted, limits.memory_bytes)


def _more_time(situation: Situation) -> float | None:
    limits, now = situation.policy.limits, situation.observation.time_limit
    if now is None:
        return limits.time_limit
    wanted = now * limits.time_factor
    return wanted if limits.time_limit is None else min(wanted, limits.time_limit)


def _blindly(situation: Situation) -> bool:
    """Whether a job that must be told where to resume can't be: nothing could be looked at, or nothing is good."""
    job, found = situation.job, situation.checkpoints
    told = job.checkpoints is not None and not finds_its_own_checkpoint(job)
    return told and found != () and newest_good(found) is None


def _set_aside(situation: Situation) -> list[Action]:
    """Bad checkpoints newer than the one to resume from: a training may trip over them."""
    incarnation = situation.incident.incarnation
    if incarnation is None:
        return []
    chosen = newest_good(situation.checkpoints)
    return [
        Action(
            kind=ActionKind.SET_ASIDE_CHECKPOINT,
            incarnation=incarnation,
            checkpoint=bad.path,
            checkpoint_step=bad.step,
            note=bad.problem,
        )
        for bad in bad_after(situation.checkpoints, chosen)
    ]


def finds_its_own_checkpoint(job: Job) -> bool:
    """Whether a bad newest checkpoint must be out of the way before a restart."""
    return job.checkpoints is not None and job.checkpoints.resume.by is ResumeBy.NOTHING


def _decide(situation: Situation, action: Action) -> Decision:
    """Let every check speak: the strictest counts, of equally strict ones the first. The whitelist always speaks."""
    checks = (_possible, _safe, _within_budget, _automatics, _whitelist)
    said = [answer for check in checks if (answer := check(situation, action)) is not None]
    verdict, basis, would_allow = min(said, key=lambda answer: _STRICTNESS.index(answer[0]))
    basis = "; ".join(filter(None, (basis, _named_before(situation, action))))
    return Decision(action=action, verdict=verdict, basis=basis, would_allow=would_allow, at=situation.now)


def _named_before(situation: Situation, action: Action) -> str:
    """What a restart, with or without the nodes, and an action on nodes have to say of these."""
    if not (action.kind.restarts or action.kind.names_nodes):
        return ""
    nodes = action.nodes or _bad_nodes(situation)
    return named_before(event for event in situation.node_events if event.node in nodes)


_STRICTNESS = (Verdict.REFUSE, Verdict.ASK, Verdict.RUN)


_Said = tuple[Verdict, str, str] | None


def _possible(situation: Situation, action: Action) -> _Said:
    if action.kind is ActionKind.RUN_RECOVERY_SCRIPT:
        return None  # the guard runs it, not the scheduler
    if action.kind not in situation.supported:
        return Verdict.REFUSE, f"{situation.job.ref.scheduler} can't do {action.kind}", ""
    if action.kind in situation.access.impossible:
        why = situation.access.impossible[action.kind]
        return Verdict.REFUSE, f"no right to: {why}", why
    if action.kind in situation.refused:
        return Verdict.REFUSE, f"the scheduler refused it: {situation.refused[action.kind]}", ""
    if action.kind.names_nodes and not action.nodes:
        return Verdict.REFUSE, "the evidence names no node that the scheduler knows for this job", ""
    if action.kind is ActionKind.RESTART_FROM_EARLIER_CHECKPOINT and _takes_the_newest(situation, action):
        return (
            Verdict.REFUSE,
            "the training finds its newest checkpoint by itself: it can't be told to take an earlier one",
            'checkpoints.resume = {by = "argument", name = "--resume"}, or another way to tell it',
        )
    return None


def _takes_the_newest(situation: Situation, action: Action) -> bool:
    """Whether the training would resume from another checkpoint than the one the action names."""
    if not finds_its_own_checkpoint(situation.job):
        return False
    if situation.diagnosis.fault is FaultClass.CHECKPOINT_CORRUPTION:
        return False  # the bad newest ones are set aside: the newest good one is the earlier one
    newest = newest_good(situation.checkpoints)
    return newest is None or action.checkpoint != newest.path


def _safe(situation: Situation, action: Action) -> _Said:
    incident, seen = situation.incident, situation.observation
    begun = incident.step is not None or newest_good(situation.checkpoints) is not None
    wanted = begun or situation.job.watching.recover_before_first_step
    if action.kind.restarts and not wanted:
        return (
            Verdict.REFUSE,
            "it failed before its first step: an early failure is its owner's to fix",
            "watching.recover_before_first_step = true",
        )
    if not _destroys(action, seen):
        return None
    sources = {source for signal in incident.signals for source in signal.sources}
    if len(sources) < 2:
        named = ", ".join(sources) or "nothing"
        return _ask(situation, action, f"only {named} says so: a person must be the second signal", "")
    return None


def _destroys(action: Action, seen: Observation) -> bool:
    """Whether it may end something that is still alive. A restart of a dead job destroys nothing."""
    ends = action.kind.restarts or action.kind in {
        ActionKind.CANCEL,
        ActionKind.DELETE_POD,
        ActionKind.SUSPEND,
        ActionKind.REBOOT_NODE,
        ActionKind.DESTROY_INSTANCE,
    }
    return ends and not seen.liveness.terminal


def _within_budget(situation: Situation, action: Action) -> _Said:
    if not action.kind.restarts or _after_script(situation):
        return None
    tried = tried_without_progress(situation)
    limit = situation.policy.budgets.same_cause
    if tried >= limit:
        return (
            Verdict.REFUSE,
            f"the same error came back after {tried} fix attempt{'s' * (tried != 1)} without progress",
            f"budgets.same_cause = {tried + 1}",
        )
    return None


def tried_without_progress(situation: Situation) -> int:
    """Count the fixes for this root cause since the job last got past one of its failures."""
    count = 0
    for record in situation.history:
        if record.fingerprint != situation.diagnosis.fingerprint or record.acted_at is None:
            continue
        if record.progressed:
            break
        count += 1
    return count


def _automatics(situation: Situation, action: Action) -> _Said:
    """Where the automatics stop and a person is asked, whatever the whitelist says."""
    budgets, diagnosis = situation.policy.budgets, situation.diagnosis
    since = situation.now - budgets.window
    recent = sum(1 for r in situation.history if r.acted_at is not None and r.acted_at >= since)
    widest = len(situation.excluded_nodes | set(action.nodes))
    reasons = (
        (
            action.kind.restarts and recent >= budgets.restarts,
            f"flapping: {recent} restarts in {budgets.window:.0f} s (budgets.restarts = {budgets.restarts})",
        ),
        (
            bool(action.nodes) and widest > budgets.excluded_nodes,
            f"blast radius: {widest} nodes left out (budgets.excluded_nodes = {budgets.excluded_nodes})",
        ),
        (
            situation.alike_jobs >= budgets.storm_jobs,
            f"storm: {situation.alike_jobs} jobs failed alike (budgets.storm_jobs = {budgets.storm_jobs})",
        ),
        (
            diagnosis.confidence < CERTAIN_ENOUGH and _destroys(action, situation.observation),
            f"the cause is not certain ({diagnosis.confidence:.2f} < {CERTAIN_ENOUGH})",
        ),
        (
            action.kind.restarts and _blindly(situation),
            "no checkpoint to resume from can be named: it would start over",
        ),
        (action.kind.scope is Scope.CLUSTER, "cluster scope is never automatic"),
        (
            action.kind.scope is Scope.NODE and not _proven_outside_the_job(situation, action),
            "only the job's own log accuses the node, and a log can print anything",
        ),
    )
    for stops, why in reasons:
        if stops:
            return _ask(situation, action, why, "")
    return None


def _proven_outside_the_job(situation: Situation, action: Action) -> bool:
    """Whether the scheduler or a source that the job can't write to says that the nodes are bad."""
    if set(action.nodes) <= set(situation.observation.bad_nodes):
        return True
    return any(citation.source.kind != "log" for citation in situation.diagnosis.citations)


def _whitelist(situation: Situation, action: Action) -> _Said:
    policy, fault = situation.policy, situation.diagnosis.fault
    if action.kind in policy.refuse:
        return Verdict.REFUSE, f'policy.refuse names "{action.kind}"', "take it out of policy.refuse"
    if action.kind.scope is Scope.MONEY:
        told = "policy.teardown.destroy_on_fail = true"
        if policy.teardown.destroy_on_fail:
            return Verdict.RUN, told, ""
        return Verdict.REFUSE, "rented machines follow policy.teardown alone", told
    for line in policy.allow:
        if line.covers(action.kind, fault):
            return Verdict.RUN, f"policy.{line}", ""
    if policy.preset is Preset.AUTONOMOUS and action.kind.scope is Scope.JOB:
        return Verdict.RUN, 'policy.preset = "autonomous" (job scope)', ""
    return _ask(
        situation, action, f'not whitelisted (policy.preset = "{policy.preset}")', _line(action, fault)
    )


def _ask(situation: Situation, action: Action, why: str, would_allow: str) -> tuple[Verdict, str, str]:
    asks = situation.policy.preset is not Preset.OBSERVE and action.kind not in situation.policy.refuse
    return (Verdict.ASK if asks else Verdict.REFUSE), why, would_allow


def _line(action: Action, fault: FaultClass) -> str:
    if fault is FaultClass.UNKNOWN or action.kind is ActionKind.RUN_RECOVERY_SCRIPT:
        return f'policy.allow = ["{action.kind}"]'
    return f'policy.allow = [{{action = "{action.kind}", faults = ["{fault}"]}}]'
