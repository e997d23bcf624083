"""From results to a table for people: each figure beside its bar and its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Result = Mapping[str, Any]


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    value: str
    bar: str = ""
    met: bool | None = None
    baseline: str = ""


def _density(found: Result) -> Iterator[Figure]:
    base = found["baseline"]
    for size in found["sizes"]:
        count = size["guards"]
        aim = count >= 1000
        started = size["all_started_s"]
        refused = sum(size["server_errors"].values())
        yield Figure(
            f"{count} guards: processors, worker and server",
            f"{size['cpu_share']:.1%} of two cores ({size['cpu_share_worker']:.1%} + {size['cpu_share_server']:.1%})",
            "< 60 %",
            size["cpu_share"] < 0.6,
            f"{base['cpu_ms_a_second_and_guard'] * count / 2000:.0%} (extrapolated from {base['runs']})",
        )
        yield Figure(
            f"{count} guards: the worker's memory",
            f"{size['worker_rss_mb']:.0f} MB in {size['worker_processes']} process",
            "<= 2,000 MB",
            size["worker_rss_mb"] <= 2000,
            f"{base['rss_mb_a_guard'] * count:,.0f} MB (extrapolated)",
        )
        yield Figure(
            f"{count} guards: all started within",
            "not all" if started is None else f"{started} s",
            "600 s, no error" if aim else "",
            (started is not None and started <= 600 and not size["trouble"] and not refused) if aim else None,
        )
        yield Figure(
            f"{count} guards: errors seen by the worker, and in the server's own log",
            f"{len(size['trouble'])}, {refused}",
        )
        yield Figure(
            f"{count} guards: questions to the cluster a minute",
            f"{size['cluster_queries_a_minute']} (and {size['log_reads_a_minute']} reads of logs)",
            "the same for any number",
            None,
            f"{count} (one each minute and job)",
        )


def _latency(found: Result) -> Iterator[Figure]:
    n = found["guards"]
    seen, acted = found["detection_s"], found["detection_to_restart_s"]
    yield Figure(
        f"failure to detection, {n} guards, {found['failures']} failures",
        f"p50 {seen.get('p50')} s, p99 {seen.get('p99')} s",
        "p99 <= 10 s",
        bool(seen) and seen["p99"] <= 10,
        "p50 30 s, p99 59 s (a poll a minute)",
    )
    yield Figure(
        f"detection to restart issued, {n} guards",
        f"p50 {acted.get('p50')} s, p99 {acted.get('p99')} s",
        "p99 <= 5 s",
        bool(acted) and acted["p99"] <= 5,
        "a person",
    )
    twice = found["duplicate_restarts"] + found["duplicate_incidents"]
    lost = found["lost_recoveries"]
    yield Figure("recoveries done twice, and lost", f"{twice}, {lost}", "0, 0", not twice and not lost)


def _growth(found: Result) -> Iterator[Figure]:
    steady, base = found["mb_a_steady_day"], found["baseline"]
    yield Figure(
        "databases, a job and steady day",
        f"{steady['both']} MB (Prefect {steady['prefect']}, ledger {steady['ledger']})",
        "<= 3 MB",
        steady["both"] <= 3,
        f"{base['mb_a_day']} MB ({base['kb_a_poll']} kB a poll, {base['polls_measured']} measured)",
    )
    yield Figure(
        "databases, a job's first day", f"{found['mb_the_first_day']['both']} MB", "<= 3 MB",
        found["mb_the_first_day"]["both"] <= 3,
    )  # fmt: skip
    yield Figure(
        "task runs a job and day",
        f"{found['task_runs_a_day']}",
        "<= 150",
        found["task_runs_a_day"] <= 150,
        f"{base['task_runs_a_day']}",
    )


def _soak(found: Result) -> Iterator[Figure]:
    change, most = found["rss_change"], found["rss_largest_deviation"]
    yield Figure(
        f"memory of one guard, day 10 to day {found['days']:.0f} (virtual)",
        f"{found['rss_mb_first']} to {found['rss_mb_last']} MB: {change:+.1%}, at most {most:.1%} off",
        "± 5 %",
        most <= 0.05,
    )
    yield Figure(
        "flow runs it took, and task runs in the largest",
        f"{found['flow_runs']}, {found['task_runs_in_the_largest_flow_run']}",
        "< 5,000",
        found["task_runs_in_the_largest_flow_run"] < 5000,
    )
    yield Figure(
        "incidents, and recovered",
        f"{found['incidents']}, {found['recovered']}",
        "all",
        found["incidents"] == found["recovered"],
    )
    yield Figure("databases, a day with incidents", f"{found['mb_a_day']['both']} MB", "<= 3 MB",
                 found["mb_a_day"]["both"] <= 3)  # fmt: skip


def _scan(found: Result) -> Iterator[Figure]:
    yield Figure(
        f"the whole catalogue over {found['megabytes']} MB of log, one core",
        f"{found['trainguard_mb_per_s']} MB/s",
        baseline=f"ripgrep {found['ripgrep_mb_per_s']} MB/s, `re` line by line {found['re_line_by_line_mb_per_s']} MB/s",
    )
    yield Figure(
        "a 10 MB log, processor time",
        f"{found['ten_megabytes_cpu_s']} s ({found['ten_megabytes_first_cpu_s']} s the first time)",
    )


def _slurm_poll(found: Result) -> Iterator[Figure]:
    polls = found["poll_ms_by_jobs"]
    yield Figure(
        "one poll of Slurm",
        ", ".join(f"{ms} ms for {jobs} jobs" for jobs, ms in polls.items()),
        baseline=f"{found['baseline_ssh_sacct_ms_a_job']} ms a job (`ssh sacct` each)",
    )
    seen = found["detection_s_from_slurms_end_time"]
    yield Figure(
        f"end of a job to detection, {found['watched_while_detecting']} jobs, polled every {found['poll_interval_s']:.0f} s",
        f"p50 {seen['p50']} s, p99 {seen['p99']} s",
    )


def _kubernetes_watch(found: Result) -> Iterator[Figure]:
    base = found["baseline_kubectl_get"]
    yield Figure(
        "failure to verdict on Kubernetes",
        f"p50 {found['latency_ms_p50']} ms, p99 {found['latency_ms_p99']} ms",
        "p99 <= 1 s",
        found["latency_ms_p99"] <= 1000,
        f"p50 {base['latency_ms_median_at_10_s']} ms (`kubectl get` every 10 s)",
    )
    costs = found["cost"]
    yield Figure(
        "requests to the API server a minute",
        ", ".join(f"{cost['requests_per_minute']} for {cost['jobs']} jobs" for cost in costs),
        "the same for any number",
        len({cost["requests_per_minute"] for cost in costs}) == 1,
        f"{base['requests_per_minute_for_1000_jobs_every_10_s']} for 1000",
    )
    yield Figure(
        "requests to begin, and memory of the watch",
        ", ".join(
            f"{c['requests_to_begin']} and {c['memory_kib'] / 1024:.1f} MB for {c['jobs']} jobs"
            for c in costs
        ),
    )


_FIGURES: Mapping[str, Callable[[Result], Iterator[Figure]]] = {
    "density": _density,
    "latency": _latency,
    "growth": _growth,
    "soak": _soak,
    "scan": _scan,
    "slurm_poll": _slurm_poll,
    "kubernetes_watch": _kubernetes_watch,
}
NAMES = tuple(_FIGURES)
ON_POSTGRES = " on Postgres"
"""Ends the name of a measurement whose databases were on Postgres."""

_TITLES = {
    "density": "How many guards fit on two cores",
    "latency": "How soon a failure is detected and answered",
    "growth": "What a job and day adds to the databases",
    "soak": "90 virtual days of one guard",
    "scan": "How fast logs are read",
    "slurm_poll": "Watching Slurm",
    "kubernetes_watch": "Watching Kubernetes",
}


def figures(name: str, result: Result) -> list[Figure]:
    """Give the lines of one measurement."""
    if "skipped" in result:
        return [Figure("skipped", str(result["skipped"]))]
    return list(_FIGURES[name.removesuffix(ON_POSTGRES)](result))


def table(name: str, result: Result) -> str:
    """Give one measurement as a table in Markdown."""
    lines = [
        f"## {name}: {_TITLES[name.removesuffix(ON_POSTGRES)]}",
        "",
        "| what | measured | bar | met | baseline |",
        "|---|---|---|---|---|",
    ]
    met = {True: "yes", False: "**no**", None: ""}
    lines += [
        f"| {f.what} | {f.value} | {f.bar} | {met[f.met]} | {f.baseline} |" for f in figures(name, result)
    ]
    return "\n".join([*lines, "", _where(result)])


def _where(result: Result) -> str:
    on = result.get("on")
    if not on:
        return ""
    return (
        f"Measured {on['date']} in {on['took_s']} s on {on['cores']} cores ({on['processor']}), {on['memory_gb']} GB; "
        f"Python {on['python']}, Prefect {on['prefect']}, trainguard {on['trainguard']}; "
        f"load average before: {on['load_average_before']}.\n"
    )


_HEAD = """# Benchmarks

`make bench` measures everything and writes this page and `benchmarks/results.json`; `make bench BENCH=name`
measures one and keeps the others. Every figure is one run on one machine; the baseline ran in the same one.

- `density`, `latency`, `growth` and `soak` use a real Prefect server on SQLite, the real worker, flows and
  ledger. Only the cluster is simulated (`trainguard/testing`): it computes its jobs from a seed and writes down
  what really happened to them and when.
- The baseline of `density` and `growth` is Prefect's stock `process` worker with a flow that polls its job
  with one task run a minute. Few of them fit, so few are measured and the rest is extrapolated per guard.
- `soak` and `growth` let time pass as fast as the guard keeps up.
- `slurm_poll` and `kubernetes_watch` need their labs.

What keeps the records small: between checks a guard only looks, without a task run. Of a healthy job's checks
one every half hour is shown in Prefect as a task run and on the guard's page; all checks of a job's first
hour, all uncertain ones and all with news are. Each check has its line in the run's log and in the ledger,
where sameness leaves one row a quarter of an hour. After 2,000 checks the guard hands over to a new flow run.
Events are most of what a task run leaves; Prefect drops them after `PREFECT_SERVER_EVENTS_RETENTION_PERIOD`
(7 days), and ended flow runs where its `db_vacuum` is switched on.
"""


def page(results: Mapping[str, Result]) -> str:
    """Give docs/benchmarks.md."""
    kept = (name + where for name in NAMES for where in ("", ON_POSTGRES))
    return "\n".join([_HEAD, *(table(name, results[name]) for name in kept if name in results)])
