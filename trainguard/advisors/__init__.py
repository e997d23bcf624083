"""Second opinions of language models on what the rules can't tell."""

from trainguard.advisors.advisor import AdviceCache, Advisor, MemoryCache
from trainguard.advisors.completion import Completion
from trainguard.advisors.evidence_tools import ToolServer
from trainguard.advisors.question import Consultation, Limits, Question

__all__ = [
    "AdviceCache",
    "Advisor",
    "Completion",
    "Consultation",
    "Limits",
    "MemoryCache",
    "Question",
    "ToolServer",
]
