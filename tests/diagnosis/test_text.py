"""Prefixes as real programs print them."""

from __future__ import annotations

import pytest

from trainguard.core.diagnosis.text import Clock, clean, head


@pytest.mark.parametrize(
    ("line", "body", "rank", "node"),
    [
        ("[rank3]: KeyError: 'x'", "KeyError: 'x'", 3, ""),
        ("[default7]:  iteration 5", "iteration 5", 7, ""),
        ("[1,3]<stderr>: boom", "boom", 3, ""),
        ("12: boom", "boom", 12, ""),
        ("worker-3: boom", "boom", None, "worker-3"),
        ("(RayWorkerVllm pid=7046, ip=10.0.0.7) boom", "boom", None, "10.0.0.7"),
        ("(head, rank=0, pid=4503) boom", "boom", 0, ""),
        ("[pod/train-worker-0/pytorch] boom", "boom", None, "train-worker-0"),
        ("ubuntu:39964:40044 [0] NCCL WARN x", "NCCL WARN x", None, "ubuntu"),
        ("[   24.302465] NVRM: GPU6", "NVRM: GPU6", None, ""),
        ("May 15 23:09:30 host-1 kernel: [  518.05060] x", "[  518.05060] x", None, "host-1"),
        ("2025-02-20 00:46:13,777 DEBUG boom", "boom", None, ""),
        ("[2024-02-22 19:20:17,149][datasets.builder][WARNING] - boom", "boom", None, ""),
        ("WARNING:torch.distributed.elastic:boom", "boom", None, ""),
        ("I0000 00:00:1649423660.053391 1924758 f236.cc:165] boom", "boom", None, ""),
        (
            "[rank4]:[E205 18:11:06.375750231 ProcessGroupNCCL.cpp:1870] [PG ID 12 Rank 4] boom",
            "boom",
            4,
            "",
        ),
        ("53%|█████     | 3521/6607 [21:27<18:47,  2.74it/s]boom", "boom", None, ""),
        ("2024-05-01 10:11:12 10.0.0.9 [2] KeyError: 'x'", "KeyError: 'x'", None, ""),
        ("algo-1-cf199_1  | TypeError: x", "TypeError: x", None, ""),
        ('{"level": "error", "msg": "KeyError: x"}', 'KeyError: x"}', None, ""),
        ('time="2024-05-01T10:11:12Z" level=error msg="no such pod" pod=a', 'no such pod" pod=a', None, ""),
        ("<14>1 2024-05-01T10:11:12Z n12 trainer 12 - - KeyError: x", "KeyError: x", None, ""),
        (
            r'{"msg": "Traceback (most recent call last):\n  File \"t.py\", line 3\nKeyError: x\n"}',
            r'KeyError: x\n"}',
            None,
            "",
        ),
        ("we met a KeyError: x", "we met a KeyError: x", None, ""),
    ],
)
def test_a_prefix_says_who_speaks_and_leaves_the_message(
    line: str, body: str, rank: int | None, node: str
) -> None:
    found = head(clean(line.encode()))
    assert (found.body, found.rank, found.node) == (body, rank, node)


@pytest.mark.parametrize(
    ("line", "clock"),
    [
        ("2025-02-20 00:46:13,777 DEBUG boom", Clock.WALL),
        ("2025-02-20T00:46:13Z boom", Clock.WALL),
        ("[Sat Mar  4 04:27:15 2023] boom", Clock.WALL),
        ("E0102 03:04:05.678901 123 file.cc:12] boom", Clock.YEARLESS),
        ("May 15 23:09:30 host-1 kernel: [  518.050606] boom", Clock.YEARLESS),
        ("[   24.302465] boom", Clock.UPTIME),
    ],
)
def test_the_best_stamp_of_a_line_is_kept(line: str, clock: Clock) -> None:
    stamp = head(line).stamp
    assert stamp is not None and stamp.clock is clock


def test_offsets_from_utc_count() -> None:
    here, there = head("2025-02-20T03:00:00+02:00 x").stamp, head("2025-02-20T01:00:00Z x").stamp
    assert here == there


def test_an_impossible_date_is_no_stamp() -> None:
    assert head("2025-13-40 00:46:13,777 boom").stamp is None


def test_ordinary_words_are_no_prefix() -> None:
    assert head("Training: step 198").body == "Training: step 198"


def test_invisible_characters_do_not_reach_a_citation() -> None:
    assert clean("CUDA\u202e out\u200b of\x07 memory\x00".encode()) == "CUDA out of memory"
