"""Any bytes in, whole lines out."""

from __future__ import annotations

import random

import pytest

from tests.diagnosis.conftest import examine, log
from trainguard.core.diagnosis.stream import CHUNK, chunks, streams_of
from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.observation import LogSource

BAD = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4 GiB\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_the_encoding_does_not_matter(encoding: str) -> None:
    text = "étape 1\n" * 20 + BAD
    diagnosis = examine(log(text.encode(encoding))).diagnosis
    assert diagnosis.fault == "gpu_oom"
    assert diagnosis.citations[0].line == 21


@pytest.mark.parametrize(
    "line",
    [
        b"\x1b[31mCUDA \x1b[1mout\x1b[0m of memory\x1b[0m",
        b"\x1b]0;title\x07CUDA out of memory",
        b"CUDA out\x00 of memory",
        b"10%|#   | 1/10 [00:01<00:09, 1.0it/s]\r20%|##  | 2/10 [00:02<00:08, 1.0it/s]CUDA out of memory",
        b"\xff\xfe\xfd\x80 CUDA out of memory \xc3\x28",
    ],
)
def test_paint_and_rubbish_do_not_hide_a_line(line: bytes) -> None:
    diagnosis = examine(log(b"one\ntwo\n" + line + b"\n")).diagnosis
    assert (diagnosis.fault, diagnosis.citations[0].line) == ("gpu_oom", 3)
    assert "\x1b" not in diagnosis.citations[0].text


def test_how_a_stream_is_cut_into_blocks_does_not_matter() -> None:
    rng = random.Random(5)
    text = ("x" * 90 + "\n") * 9000 + BAD + ("y" * 90 + "\n") * 3000
    whole = examine(log(text)).diagnosis
    for _ in range(3):
        cuts = sorted(rng.sample(range(len(text)), 40))
        blocks = [text[a:b].encode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        stream = log("")
        cut = type(stream)(stream.source, stream.kind, blocks)
        assert examine(cut).diagnosis == whole


def test_lines_keep_their_numbers_over_chunks() -> None:
    text = "".join(f"line {n}\n" for n in range(1, 60_001)) + BAD
    assert len(text) > 2 * CHUNK
    assert examine(text).diagnosis.citations[0].line == 60_001


def test_a_line_that_never_ends_is_searched_and_cited_in_part() -> None:
    text = "z" * (3 * CHUNK) + " CUDA out of memory " + "z" * (3 * CHUNK)
    diagnosis = examine(text).diagnosis
    assert diagnosis.fault == "gpu_oom"
    assert len(diagnosis.citations[0].text) <= 2000


def test_a_cut_through_a_line_hides_nothing() -> None:
    for shift in range(-25, 5, 6):
        text = "z" * (CHUNK + shift) + " CUDA out of memory " + "z" * CHUNK
        assert examine(text).diagnosis.fault == "gpu_oom", shift


def test_chunks_stay_bounded_whatever_the_blocks_are() -> None:
    blocks = (b"a" * 1000 for _ in range(3000))
    assert max(map(len, chunks(blocks))) <= 2 * CHUNK


def test_evidence_keeps_the_line_numbers_of_its_source() -> None:
    source = LogSource(name="pod/train")
    excerpt = Evidence(source=source, kind=EvidenceKind.LOG, text="a\n" + BAD, first_line=1000, at=0.0)
    [stream] = streams_of([excerpt])
    assert examine(stream).diagnosis.citations[0].line == 1001


def test_an_excerpt_without_a_known_beginning_has_no_line_numbers() -> None:
    excerpt = Evidence(source=LogSource(name="x"), kind=EvidenceKind.LOG, text=BAD, first_line=None, at=0.0)
    assert examine(*streams_of([excerpt])).diagnosis.citations[0].line is None
