"""Reading pod logs by time stamp: what is new, once, whatever the stamps look like."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from trainguard.schedulers.kubernetes.logs import PodLogs, Run, parse_cursor, runs_of, write_cursor

Object = dict[str, Any]


class Log:
    """The API server's log endpoint over a list of lines, as `Kube.lines` gives them."""

    def __init__(self, *lines: str) -> None:
        self.all, self.asked = list(lines), list[Object]()

    async def lines(
        self, path: str, silence: float = 0, opened: Callable[[], None] | None = None, **query: Any
    ) -> AsyncGenerator[bytes, None]:
        self.asked.append(query)
        shown = self.all
        if query.get("sinceTime"):
            shown = [line for line in shown if line[:19] >= query["sinceTime"][:19]]
        if query.get("tailLines"):
            shown = shown[-query["tailLines"] :]
        for line in shown:
            yield line.encode()


def pod(restarts: int = 0, **state: Any) -> Object:
    status = {"name": "main", "restartCount": restarts, "state": state or {"running": {}}}
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "containerStatuses": [status]},
    }


async def read(log: Log, cursor: str = "", limit: int = 1_000_000, **more: Any) -> tuple[str, str, bool]:
    batch = await PodLogs(log).read([pod(**more)], cursor, limit)  # type: ignore[arg-type]
    return "".join(chunk.text for chunk in batch.chunks), batch.cursor, batch.more


async def test_lines_of_one_instant_come_once() -> None:
    same = "2026-01-01T00:00:00.5Z"
    log = Log(f"{same} a\n", f"{same} b\n")
    text, cursor, _ = await read(log)
    assert text == "a\nb\n"
    log.all += [f"{same} c\n", "2026-01-01T00:00:01Z d\n"]
    text, cursor, _ = await read(log, cursor)
    assert text == "c\nd\n"
    assert (await read(log, cursor))[0] == ""


async def test_a_node_in_another_time_zone_and_short_fractions_are_in_order() -> None:
    log = Log("2026-01-01T02:00:00.9+02:00 a\n")
    _, cursor, _ = await read(log)
    assert "2026-01-01T00:00:00.900000000Z" in cursor
    log.all += ["2026-01-01T02:00:00.95+02:00 b\n", "2026-01-01T02:00:01+02:00 c\n"]
    assert (await read(log, cursor))[0] == "b\nc\n"


async def test_a_line_without_a_stamp_belongs_to_the_one_before() -> None:
    """A line of more than 16 KiB is stored in pieces, and a stamp may be missing."""
    assert (await read(Log("2026-01-01T00:00:00Z a\n", "no stamp here\n")))[0] == "a\nno stamp here\n"


async def test_half_a_line_waits_while_the_container_runs_and_comes_once_it_has_ended() -> None:
    log = Log("2026-01-01T00:00:00Z whole\n", "2026-01-01T00:00:01Z half")
    text, cursor, _ = await read(log)
    assert text == "whole\n"
    assert (await read(log, cursor, terminated={"exitCode": 1}))[0] == "half"


async def test_an_ended_container_is_not_asked_again() -> None:
    log = Log("2026-01-01T00:00:00Z a\n")
    _, cursor, _ = await read(log, terminated={"exitCode": 1})
    await read(log, cursor, terminated={"exitCode": 1})
    assert len(log.asked) == 1


async def test_the_rest_of_the_run_before_is_read_after_a_restart() -> None:
    log = Log("2026-01-01T00:00:00Z a\n")
    _, cursor, _ = await read(log)
    log.all += ["2026-01-01T00:00:05Z last words\n"]
    batch = await PodLogs(log).read([pod(restarts=1)], cursor, 10_000)  # type: ignore[arg-type]
    assert [query.get("previous") for query in log.asked] == ["", "true", ""]
    assert batch.chunks[0].text == "last words\n"


def test_a_run_that_nobody_was_reading_is_listed_for_evidence_only() -> None:
    assert [run.previous for run in runs_of([pod(restarts=2)], {})] == [False]
    assert [run.previous for run in runs_of([pod(restarts=2)], {}, everything=True)] == [True, False]
    assert runs_of([pod(waiting={"reason": "ContainerCreating"})], {}) == []


async def test_line_numbers_are_told_where_the_beginning_was_read() -> None:
    log = Log(*(f"2026-01-01T00:00:{n:02}Z line {n}\n" for n in range(10)))
    batch = await PodLogs(log).read([pod()], "", 1_000_000)  # type: ignore[arg-type]
    assert batch.chunks[0].first_line == 1
    log.all.append("2026-01-01T00:01:00Z more\n")
    batch = await PodLogs(log).read([pod()], batch.cursor, 1_000_000)  # type: ignore[arg-type]
    assert batch.chunks[0].first_line == 11
    late = await PodLogs(log).read([pod()], "", 30)  # type: ignore[arg-type]
    assert late.chunks[0].first_line is None


def test_a_cursor_survives_its_own_writing() -> None:
    places = parse_cursor('{"v":1,"runs":{"u/main/0":["2026-01-01T00:00:00.000000000Z",2,7,false]}}')
    assert places is not None
    assert parse_cursor(write_cursor(places)) == places
    assert isinstance(Run, type)


def test_init_containers_and_sidecars_have_logs_too() -> None:
    """A native sidecar is an init container that goes on running."""
    one = pod()
    one["status"]["containerStatuses"].append({"name": "upload", "restartCount": 0, "state": {"running": {}}})
    one["status"]["initContainerStatuses"] = [
        {"name": "fetch", "restartCount": 1, "state": {"terminated": {"exitCode": 0}}},
        {"name": "proxy", "restartCount": 0, "state": {"running": {}}},
    ]
    found = {(run.container, run.restart, run.ended) for run in runs_of([one], {}, everything=True)}
    assert found == {
        ("main", 0, False),
        ("upload", 0, False),
        ("fetch", 0, True),
        ("fetch", 1, True),
        ("proxy", 0, False),
    }
