"""Root cause from log streams and scheduler facts."""

from trainguard.core.diagnosis.engine import Examination, diagnose
from trainguard.core.diagnosis.rule import Catalogue, Rule
from trainguard.core.diagnosis.stream import Stream, streams_of

__all__ = ["Catalogue", "Examination", "Rule", "Stream", "diagnose", "streams_of"]
