"""Root cause from log streams and scheduler facts: pure, deterministic, in one pass."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from trainguard.core.action import ActionKind
from trainguard.core.diagnosis import advice
from trainguard.core.diagnosis.candidate import Candidate, gather
from trainguard.core.diagnosis.lastwords import last_words, words_of
from trainguard.core.diagnosis.matcher import Matcher
from trainguard.core.diagnosis.remedy import ladder
from trainguard.core.diagnosis.root import Ranking, confidence, rank
from trainguard.core.diagnosis.rule import Catalogue
from trainguard.core.diagnosis.scan import Hit, Scanned, scan
from trainguard.core.diagnosis.steps import advanced
from trainguard.core.diagnosis.stream import Stream
from trainguard.core.diagnosis.suspects import Suspicion
from trainguard.core.diagnosis.timeline import Timeline
from trainguard.core.evidence import Citation
from trainguard.core.observation import Liveness, LogSource, Observation
from trainguard.core.verdict import Diagnosis, FaultClass, Finding, SaidBy, Suspect

_CITED = 5
"""Lines cited for the root."""
_LISTED = 12
"""Consequences and runners-up that are listed."""


def diagnose(
    streams: Iterable[Stream],
    catalogue: Catalogue,
    observation: Observation | None = None,
    *,
    matcher: Matcher | None = None,
) -> Diagnosis:
    """Find the root cause. Streams are read once, one after another, in bounded memory."""
    return Examination(streams, catalogue, observation, matcher=matcher).diagnosis


class Examination:
    """A diagnosis and the material it rests on, for those who show more than the verdict."""

    def __init__(
        self,
        streams: Iterable[Stream],
        catalogue: Catalogue,
        observation: Observation | None = None,
        *,
        matcher: Matcher | None = None,
    ) -> None:
        matcher = matcher or catalogue.matcher
        self.observation = observation
        self.scanned: tuple[Scanned, ...] = tuple(
            scan(stream, index, matcher) for index, stream in enumerate(streams)
        )
        self.timeline = Timeline(self.scanned, observation.at if observation else None)
        self.candidates = gather(self.scanned, catalogue, self.timeline, observation)
        self.ranking = rank(self.candidates, observation)
        self._hear_out(catalogue)
        self.diagnosis = self._diagnosis()

    def _hear_out(self, catalogue: Catalogue) -> None:
        """Where no rule knows the words, or only their kind, go by what such words speak of in general."""
        root, observation = self.ranking.root, self.observation
        if observation is not None and observation.liveness is Liveness.SUCCEEDED:
            return
        if root is not None and root.rule.vague:
            told = words_of(root, catalogue)
            if told is not None:
                self.ranking.root = told
                self.ranking.others.insert(0, (root, "its words say more"))
        elif root is None or root.says_only_that:
            said = last_words(self.scanned, catalogue)
            if root is not None:
                said = [c for c in said if c.rule.fault is not FaultClass.CODE_BUG]
            if said:
                self.candidates += said
                self.ranking = rank(self.candidates, observation)

    def _diagnosis(self) -> Diagnosis:
        root = self.ranking.root
        if root is not None:
            return self._of(root)
        healthy, why = self._healthy()
        if healthy:
            return self._nothing(FaultClass.HEALTHY, why)
        return self._nothing(FaultClass.UNKNOWN, "No rule explains what happened.")

    def _of(self, root: Candidate) -> Diagnosis:
        suspects = self._suspects(root)
        sure = confidence(self.ranking, self.observation)
        unknown = root.says_only_that
        return Diagnosis(
            fault=FaultClass.UNKNOWN if unknown else root.rule.fault,
            cause=_sentence(root, suspects),
            rule=root.rule.id,
            by=SaidBy.RULE,
            confidence=sure,
            transient=None if unknown else root.rule.transient,
            citations=self._citations(root),
            suspects=suspects,
            actions=() if unknown else ladder(root, self._stream_of(root)),
            consequences=self._findings([(c, "follows from the root") for c in self.ranking.consequences]),
            runners_up=self._findings(self.ranking.others),
            look_next=advice.look_next(root, sure, self.scanned),
            fingerprint=_fingerprint(root),
            code_location=_location(root),
        )

    def _stream_of(self, root: Candidate) -> Scanned | None:
        return None if root.first is None else self.scanned[root.first.stream]

    def _nothing(self, fault: FaultClass, why: str) -> Diagnosis:
        unknown = fault is FaultClass.UNKNOWN
        shown = [c for c in self.ranking.healthy if c.first is not None]
        return Diagnosis(
            fault=fault,
            cause=why,
            by=SaidBy.NOBODY if unknown else SaidBy.RULE,
            rule=shown[0].rule.id if shown and not unknown else "",
            confidence=0.0 if unknown else 0.8,
            citations=() if unknown or not shown else self._citations(shown[0]),
            actions=() if unknown else (ActionKind.NONE,),
            runners_up=self._findings(self.ranking.others),
            look_next=advice.look_next(None, 0.0, self.scanned) if unknown else (),
            fingerprint=_unknown_fingerprint(self.observation) if unknown else "",
        )

    def _healthy(self) -> tuple[bool, str]:
        liveness = self.observation.liveness if self.observation else None
        if liveness is Liveness.FAILED:
            return False, ""
        if liveness is Liveness.SUCCEEDED:
            return True, "The scheduler says that it ended well, and nothing in the logs contradicts it."
        if advice.ends_badly(self.scanned):
            return False, ""
        if self.ranking.healthy:
            return True, self.ranking.healthy[0].rule.explain.strip()
        if any(_moved(one) for one in self.scanned):
            return True, "The training moved, and nothing that was printed stopped it."
        if advice.all_quiet(self.scanned):
            return True, "Nothing in it speaks of trouble."
        return False, ""

    def _citations(self, root: Candidate) -> tuple[Citation, ...]:
        if root.fact and not root.hits:
            source = LogSource(
                name=self.observation.source if self.observation else "scheduler", kind="status"
            )
            return (Citation(source=source, line=None, text=root.fact),)
        seen: dict[str, Hit] = {}
        for hit in _most_telling_first(root):
            seen.setdefault(hit.text, hit)
        return tuple(self.cite(hit) for hit in list(seen.values())[:_CITED])

    def cite(self, hit: Hit) -> Citation:
        """A hit as a citation."""
        stream = self.scanned[hit.stream].stream
        line = None if stream.first_line is None else stream.first_line + hit.line - 1
        return Citation(source=stream.source, line=line, text=hit.text, at=self.timeline.wall(hit.stamp))

    def _findings(self, candidates: Sequence[tuple[Candidate, str]]) -> tuple[Finding, ...]:
        found = []
        for candidate, why in candidates[:_LISTED]:
            rule = candidate.rule
            found.append(
                Finding(
                    rule=rule.id,
                    name=rule.name,
                    fault=rule.fault,
                    citation=self._citations(candidate)[0],
                    count=candidate.count,
                    why_not=why,
                )
            )
        return tuple(found)

    def _suspects(self, root: Candidate) -> tuple[Suspect, ...]:
        known = {one.stream.source.node for one in self.scanned}
        known |= set(self.observation.nodes) if self.observation else set()
        suspects = []
        for where, why in Suspicion(self.ranking, self.scanned, self.timeline).places(root):
            node = where.node if where.node in known else ""  # a log may name whom it likes
            cited = None if why is None else self.cite(why)
            suspects.append(Suspect(rank=where.rank, node=node, device=where.device, why=cited))
        return tuple(suspects)


def _sentence(root: Candidate, suspects: Sequence[Suspect]) -> str:
    first = re.split(r"(?<=[.!?])\s", " ".join(root.rule.explain.split()), maxsplit=1)[0]
    if not suspects or suspects[0] == Suspect():
        return first
    who = suspects[0]
    where = [f"rank {who.rank}"] if who.rank is not None else []
    where += [f"node {who.node}"] if who.node else []
    return f"{first} First seen on {', '.join(where)}." if where else first


_SAME_CRASH = 60
"""Lines around the first in which the order of a rule's lines means nothing."""


def _most_telling_first(root: Candidate) -> list[Hit]:
    """The lines of the root; of a consequence first the one that the rule's first pattern fits, for it says most."""
    if not root.rule.cascade:
        return root.hits
    first = root.hits[0]
    near = [h for h in root.hits if h.stream == first.stream and abs(h.line - first.line) <= _SAME_CRASH]
    best = min(near, key=_exactness)
    return [best, *(hit for hit in root.hits if hit is not best)]


def _exactness(hit: Hit) -> int:
    patterns = hit.rule.patterns
    return next((i for i, pattern in enumerate(patterns) if pattern.search(hit.text)), len(patterns))


def _moved(one: Scanned) -> bool:
    """Whether a stream shows that the training moved; a number beside the word "step" alone does not."""
    shown = any(p.key != "step" or p.loss is not None for p in one.progress)
    return shown or advanced(one.progress, 1)


_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}|\d+(?:\.\d+)?")


def _fingerprint(root: Candidate) -> str:
    """The rule, and for errors of code the owner's line and the message without its numbers."""
    parts = [root.rule.fault.value, root.rule.id, _location(root)]
    if root.rule.scope == "code" and root.first is not None:
        message = root.first.text.rpartition(": ")[0] or root.first.text
        parts.append(_VARIABLE.sub("#", message)[-120:])
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _unknown_fingerprint(observation: Observation | None) -> str:
    facts = (observation.native, observation.exit_code, observation.exit_signal) if observation else ()
    return hashlib.sha256(repr(("unknown", facts)).encode()).hexdigest()[:16]


def _location(root: Candidate) -> str:
    return next((hit.code for hit in root.hits if hit.code), "")


__all__ = ["Examination", "Ranking", "diagnose"]
