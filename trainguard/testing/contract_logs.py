"""Contract point 5: a log is read once, whole, bounded, and whatever is in it."""

from __future__ import annotations

import pytest

from trainguard.core.errors import SchedulerError, UnreachableError
from trainguard.core.job import Job
from trainguard.core.observation import LogBatch
from trainguard.schedulers.base import Scheduler
from trainguard.testing.contract_observe import running
from trainguard.testing.scheduler_lab import LINE_MARK, Ability, Lab, Workload

DEFAULT_LIMIT = 1_000_000


def numbered(first: int, count: int, tail: str = "") -> bytes:
    """Make `count` distinct whole lines."""
    return "".join(f"{LINE_MARK}{n:06d} {tail}\n" for n in range(first, first + count)).encode()


class Reader:
    """Reads a job's log on and on by cursor, and keeps what came."""

    def __init__(self, lab: Lab, job: Job, cursor: str = "", limit: int = DEFAULT_LIMIT) -> None:
        self.lab, self.job, self.cursor, self.limit = lab, job, cursor, limit
        self.texts: dict[str, str] = {}

    async def read(self, scheduler: Scheduler | None = None) -> LogBatch:
        """Read one batch and check its bound."""
        batch = await (scheduler or self.lab.scheduler).logs(self.job, self.cursor, self.limit)
        size = sum(len(chunk.text) for chunk in batch.chunks)
        assert size <= self.limit, f"{size} characters where at most {self.limit} bytes were asked"
        for chunk in batch.chunks:
            self.texts[chunk.source.name] = self.texts.get(chunk.source.name, "") + chunk.text
        assert isinstance(batch.cursor, str)
        self.cursor = batch.cursor
        return batch

    async def drain(self, scheduler: Scheduler | None = None) -> None:
        """Read until the adapter says that there is no more for now."""
        for _ in range(10_000):
            if not (await self.read(scheduler)).more:
                return
        pytest.fail("`more` for 10,000 batches: the cursor does not move")

    def lines(self) -> list[str]:
        """Give the test's own lines, in the order in which they came, without their line ends."""
        return [
            line
            for text in self.texts.values()
            for line in text.replace("\r", "\n").split("\n")
            if line.startswith(LINE_MARK)
        ]

    def numbers(self) -> list[int]:
        """Give the numbers of the test's lines."""
        return [int(line[len(LINE_MARK) : len(LINE_MARK) + 6]) for line in self.lines()]

    async def until_line(self, text: str) -> None:
        """Read on until a line of the test holds this text."""

        async def look() -> bool | None:
            await self.drain()
            return True if any(text in line for line in self.lines()) else None

        await self.lab.until(look, f"a log line with {text!r}")


async def quiet(lab: Lab, limit: int = DEFAULT_LIMIT) -> tuple[Job, Reader]:
    """Start a job that logs nothing of its own, and a reader that has read what there was."""
    job, _ = await running(lab, Workload.QUIET)
    reader = Reader(lab, job, limit=limit)
    await lab.append_log(job, f"{LINE_MARK}begin\n".encode())
    await reader.until_line("begin")
    reader.texts.clear()
    return job, reader


class LogContract:
    """Point 5."""

    async def test_5_every_line_comes_once_and_in_order(self, lab: Lab) -> None:
        """Over many reads while the log grows."""
        job, reader = await quiet(lab)
        for first in range(0, 50, 10):
            await lab.append_log(job, numbered(first, 10))
            await reader.read()
        await reader.until_line(f"{LINE_MARK}000049")
        assert reader.numbers() == list(range(50))

    async def test_5_nothing_new_is_an_empty_batch(self, lab: Lab) -> None:
        """And the cursor is still good."""
        job, reader = await quiet(lab)
        batch = await reader.read()
        assert not batch.more
        assert not reader.lines()
        await lab.append_log(job, numbered(7, 1))
        await reader.until_line(f"{LINE_MARK}000007")
        assert reader.numbers() == [7]

    async def test_5_another_process_reads_on_with_the_same_cursor(self, lab: Lab) -> None:
        """The guard was restarted: no line is lost or comes again."""
        job, reader = await quiet(lab)
        await lab.append_log(job, numbered(0, 5))
        await reader.until_line(f"{LINE_MARK}000004")
        await lab.append_log(job, numbered(5, 5))
        twin = lab.twin()

        async def look() -> bool | None:
            await reader.drain(twin)
            return True if len(reader.numbers()) >= 10 else None

        await lab.until(look, "ten lines")
        await twin.close()
        assert reader.numbers() == list(range(10))

    async def test_5_a_batch_is_bounded_and_says_that_there_is_more(self, lab: Lab) -> None:
        """A flood is read in pieces, none of its lines lost."""
        job, reader = await quiet(lab, limit=4_000)
        await lab.append_log(job, numbered(0, 500, "x" * 60))
        await reader.until_line(f"{LINE_MARK}000499")
        assert reader.numbers() == list(range(500))

    async def test_5_an_empty_cursor_starts_near_the_end(self, lab: Lab) -> None:
        """Who comes late reads the last lines, not the whole history."""
        job, warm = await quiet(lab)
        await lab.append_log(job, numbered(0, 2_000, "x" * 60))
        await warm.until_line(f"{LINE_MARK}001999")
        late = Reader(lab, job, limit=10_000)
        await late.drain()
        numbers = late.numbers()
        assert numbers
        assert numbers[-1] == 1_999
        assert numbers[0] > 1_000
        assert numbers == list(range(numbers[0], 2_000))

    async def test_5_half_a_line_is_not_torn(self, lab: Lab) -> None:
        """Written in two pieces, read in between, it comes as one line."""
        job, reader = await quiet(lab)
        await lab.append_log(job, f"{LINE_MARK}000001 first half,".encode())
        await reader.drain()
        await lab.append_log(job, b" second half\n")
        await reader.until_line("second half")
        assert reader.lines() == [f"{LINE_MARK}000001 first half, second half"]

    async def test_5_a_character_is_not_torn_at_the_limit(self, lab: Lab) -> None:
        """Two- and four-byte characters on every boundary."""
        job, reader = await quiet(lab, limit=333)
        await lab.append_log(job, numbered(0, 60, "é𝛑" * 15))
        await reader.until_line(f"{LINE_MARK}000059")
        assert reader.numbers() == list(range(60))
        assert not any("\ufffd" in line for line in reader.lines())

    async def test_5_invalid_bytes_are_replaced_and_reading_goes_on(self, lab: Lab) -> None:
        """NUL, broken UTF-8 and terminal escapes harm nothing."""
        lab.needs(Ability.RAW_BYTES)
        job, reader = await quiet(lab)
        await lab.append_log(job, f"{LINE_MARK}000001 ".encode() + b"\xff\xfe\x80 \x00 \x1b[31mred\x1b[0m\n")
        await lab.append_log(job, numbered(2, 1))
        await reader.until_line(f"{LINE_MARK}000002")
        assert reader.numbers() == [1, 2]
        assert "\ufffd" in reader.lines()[0]

    async def test_5_progress_bars_are_seen_before_their_line_ends(self, lab: Lab) -> None:
        """A bar that never prints a newline is still the job's heartbeat."""
        lab.needs(Ability.LIVE_BARS)
        job, reader = await quiet(lab)
        await lab.append_log(job, f"{LINE_MARK}000001 10%\r{LINE_MARK}000002 20%\r".encode())
        await reader.until_line(f"{LINE_MARK}000002")
        await lab.append_log(job, f"{LINE_MARK}000003 30%\r\n".encode())
        await reader.until_line(f"{LINE_MARK}000003")
        assert reader.numbers() == [1, 2, 3]

    async def test_5_a_line_longer_than_the_limit_does_not_stop_the_reader(self, lab: Lab) -> None:
        """A megabyte without a newline comes in pieces or cut; what follows it comes whole."""
        lab.needs(Ability.LONG_LINES)
        job, reader = await quiet(lab, limit=50_000)
        await lab.append_log(job, b"z" * 1_000_000 + b"\n" + numbered(1, 3))
        await reader.until_line(f"{LINE_MARK}000003")
        assert reader.numbers() == [1, 2, 3]

    async def test_5_a_truncated_log_is_read_from_its_new_beginning(self, lab: Lab) -> None:
        """No error, no silence."""
        lab.needs(Ability.TRUNCATE_LOG)
        job, reader = await quiet(lab)
        await lab.append_log(job, numbered(0, 100))
        await reader.until_line(f"{LINE_MARK}000099")
        await lab.truncate_log(job)
        await lab.append_log(job, numbered(200, 3))
        await reader.until_line(f"{LINE_MARK}000202")
        assert reader.numbers() == [*range(100), 200, 201, 202]

    async def test_5_a_rotated_log_is_followed(self, lab: Lab) -> None:
        """Lines written before the rotation and not yet read are not lost."""
        lab.needs(Ability.ROTATE_LOG)
        job, reader = await quiet(lab)
        await lab.append_log(job, numbered(0, 10))
        await reader.until_line(f"{LINE_MARK}000009")
        await lab.append_log(job, numbered(10, 10))
        await lab.rotate_log(job)
        await lab.append_log(job, numbered(20, 10))
        await reader.until_line(f"{LINE_MARK}000029")
        assert reader.numbers() == list(range(30))

    async def test_5_an_unreadable_log_raises(self, lab: Lab) -> None:
        """It is not an empty log."""
        lab.needs(Ability.UNREADABLE_LOG)
        job, reader = await quiet(lab)
        await lab.make_log_unreadable(job)
        with pytest.raises(SchedulerError):
            await reader.read()

    async def test_5_the_log_of_an_unheard_of_job_raises(self, lab: Lab) -> None:
        """It is not an empty log either."""
        with pytest.raises(SchedulerError):
            await lab.scheduler.logs(lab.unheard_of())

    async def test_5_an_unreachable_log_raises_and_the_cursor_stays_good(self, lab: Lab) -> None:
        """What was written in the meantime comes afterwards."""
        job, reader = await quiet(lab)
        async with lab.unreachable():
            with pytest.raises(UnreachableError):
                await reader.read()
        await lab.append_log(job, numbered(0, 3))
        await reader.until_line(f"{LINE_MARK}000002")
        assert reader.numbers() == [0, 1, 2]

    async def test_5_a_cursor_of_another_age_is_no_crash(self, lab: Lab) -> None:
        """A cursor that can't be understood counts as an empty one, or is refused as our own error."""
        job, _ = await quiet(lab)
        for cursor in ("?", '{"v": 99}', "[]", "9" * 30, "-1"):
            try:
                batch = await lab.scheduler.logs(job, cursor, 10_000)
            except SchedulerError:
                continue
            assert sum(len(chunk.text) for chunk in batch.chunks) <= 10_000
