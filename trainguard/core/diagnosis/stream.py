"""Streams of text in, equal blocks of clean bytes out, whatever the encoding and the line lengths."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from trainguard.core.diagnosis.text import ESCAPES
from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.observation import LogSource

CHUNK = 1 << 18
"""Bytes looked at together: they fit into a core's cache."""
LINE_LIMIT = 1 << 12
"""Bytes of a line that are looked at around a hit."""
OVERLAP = 1 << 12
"""Bytes of a cut line that are looked at twice, so that a cut hides nothing short."""


@dataclass(frozen=True)
class Stream:
    """One log, kernel log or listing: bytes or text in order, in blocks of any size."""

    source: LogSource
    kind: EvidenceKind
    blocks: Iterable[bytes | str] = field(repr=False)
    first_line: int | None = 1
    """Line number of the first line; None where the beginning of the source is unknown."""


def streams_of(evidence: Sequence[Evidence]) -> tuple[Stream, ...]:
    """Collected evidence as streams. Excerpts of one source and kind stay in their order."""
    return tuple(Stream(e.source, e.kind, (e.text,), e.first_line) for e in evidence)


def chunks(blocks: Iterable[bytes | str]) -> Iterator[bytes]:
    """Cut a stream into blocks of whole lines. A line that never ends is cut, with an overlap."""
    carry = b""
    for data in _whole(_decoded(blocks)):
        carry = carry + data if carry else data
        if len(carry) < CHUNK:
            continue
        end = max(carry.rfind(b"\n"), carry.rfind(b"\r")) + 1
        if end:
            ready, carry = carry[:end], carry[end:]
        else:
            ready, carry = carry, carry[-OVERLAP:]
        yield _cleaned(ready)
    if carry:
        yield _cleaned(carry)


def bounds(data: bytes, offset: int) -> tuple[int, int]:
    """The line around a hit that ends at `offset`, at most twice the line limit long."""
    low = max(0, offset - LINE_LIMIT)
    start = max(data.rfind(b"\n", low, offset - 1), data.rfind(b"\r", low, offset - 1)) + 1
    end = data.find(b"\n", offset - 1, offset + LINE_LIMIT)
    if end < 0:
        end = min(len(data), offset + LINE_LIMIT)
    turn = data.find(b"\r", offset - 1, end)
    return max(start, low), turn if turn >= 0 else end


def _whole(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """No block longer than a chunk; small ones are gathered."""
    gathered: list[bytes] = []
    size = 0
    for block in blocks:
        for start in range(0, len(block), CHUNK):
            piece = block[start : start + CHUNK]
            gathered.append(piece)
            size += len(piece)
            if size >= CHUNK // 2:
                yield b"".join(gathered)
                gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def _cleaned(data: bytes) -> bytes:
    if b"\x1b" in data:
        data = ESCAPES.sub(b"", data)
    if b"\0" in data:
        data = data.translate(None, b"\0")
    return data


def _decoded(blocks: Iterable[bytes | str]) -> Iterator[bytes]:
    """UTF-16 becomes UTF-8; everything else stays as it is."""
    decoder: codecs.IncrementalDecoder | None = None
    first = True
    for block in blocks:
        if isinstance(block, str):
            yield block.encode("utf-8", "replace")
            continue
        if first and block:
            first = False
            decoder = _wide(block)
        yield block if decoder is None else decoder.decode(block).encode("utf-8", "replace")


def _wide(block: bytes) -> codecs.IncrementalDecoder | None:
    """A decoder where the text is UTF-16, with or without its mark."""
    sample = block[:4096]
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return codecs.getincrementaldecoder("utf-16")("replace")
    half = len(sample) // 2
    if half >= 8:
        if sample[1::2].count(0) > 0.7 * half:
            return codecs.getincrementaldecoder("utf-16-le")("replace")
        if sample[0::2].count(0) > 0.7 * half:
            return codecs.getincrementaldecoder("utf-16-be")("replace")
    return None
