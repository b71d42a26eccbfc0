"""The report of a run of the demo: what was seen, in numbers and pictures, and the verdict."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from textwrap import wrap

from audit import PROVIDER_DB, Report, Unreadable, audit
from rich.console import Console
from rich.text import Text

from demo.account import Account, Kill, Restart
from demo.evidence import held_ms
from demo.play import EDGE
from demo.running import databases_in
from demo.verdict import conditions, failed_by_restart, recoveries, stall_trips, trips
from synchromesh.cli.show import print_story, time_of_day, waterfall
from synchromesh.cli.why import print_why
from synchromesh.codec import to_datetime
from synchromesh.system.config.rundir import RunDir
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.explanation import explain

FINDING = 1
TURNS_MAX = 12
DEGRADED_MAX = 12


def judge(account: Account, folder: Path, out: Console) -> int:
    """Audit the databases, print the report, and return the exit code: 0, or 1 for a finding.

    Raises:
        FileNotFoundError: a database is missing.
    """
    try:
        with databases_in(folder) as place:
            audited = audit(place, RunDir(folder).data / PROVIDER_DB, account.told)
    except (sqlite3.Error, Unreadable) as error:
        audited = Report(findings=[f"the databases in {folder} cannot be read: {error}"])
    _head(f"servo-works: {account.orders} orders in {account.took_s:.1f} s", out)
    for name, text in chain(
        _counts(account, audited),
        _breaker(account),
        _degraded(account),
        _kills(account.kills),
        _restarts(account),
        _losses(account),
        _repair(account),
    ):
        _print_line(name, text, out)
    _print_pictures(account, out)
    _head("audit of the six databases and the provider's books, by SQL alone", out)
    for line in audited.lines():
        out.print(f"  {line}", markup=False)
    return _print_verdict(account, audited, out)


def _print_line(name: str, text: str, out: Console) -> None:
    """Print a line with a name before it; a terminal that is narrower gets several."""
    for part in wrap(text, max(40, out.width - 13)) if out.is_terminal else [text]:
        out.print(f"  {name:<10} {part}", markup=False, soft_wrap=True)
        name = ""


def _print_verdict(account: Account, audited: Report, out: Console) -> int:
    _head("verdict", out)
    missed = 0
    for each in conditions(account, audited):
        missed += not each.is_met
        mark, style = ("ok ", "green") if each.is_met else ("NOT", "red")
        out.print(Text.assemble("  ", (mark, style), f" {each.must}: {each.seen}"))
    if not missed:
        out.print("\n[bold green]passed[/bold green]: nothing was lost and nothing is half done")
        return 0
    out.print(f"\n[bold red]failed[/bold red]: {missed} of the above not met")
    return FINDING


def _counts(account: Account, audited: Report) -> Iterator[tuple[str, str]]:
    processes = ", ".join(f"{name} {pid}" for name, pid in sorted(account.processes.items()))
    yield "processes", processes
    if account.replicas > 1:
        yield "gateways", _listed({f"by {url}": count for url, count in account.ways_in.items()})
    yield "orders", f"{audited.orders['placed']} placed, {audited.orders['rejected']} undone"
    yield "", f"undone: {_listed(account.reasons)}"
    yield "", f"{account.accepted} were accepted at first, and decided later"
    with_keys, with_tokens = account.with_keys, account.with_tokens
    yield "customers", f"{with_keys} came with API keys, {with_tokens} with tokens"
    yield "", f"refused, as they had to be: {_listed(account.intruders)}"
    yield "requests", f"{sum(account.requests.values())} sent: {_listed(account.requests)}"
    turned_away = f": {_listed(account.turned_away)}" if account.turned_away else ""
    yield "", f"{sum(account.turned_away.values())} turned away by a rate{turned_away}"
    late = sum(failure.is_out_of_time for failure in account.failures)
    yield "", f"{len(account.failures)} failed, {late} of them for want of time"
    failures = Counter((each.act, each.route, each.reason) for each in account.failures)
    for (act, route, reason), count in sorted(failures.items()):
        yield "", f"act {act}: {count} {route}: {reason}"
    yield "sagas", _listed(audited.sagas)


def _breaker(account: Account) -> Iterator[tuple[str, str]]:
    tripped, by_stall = len(trips(account)), len(stall_trips(account))
    recovered = len(recoveries(account))
    yield (
        "breaker",
        f"{EDGE}: tripped {tripped}, {by_stall} of them by the stall; recovered {recovered}",
    )
    turns = [turn for turn in account.turns if turn.edge == EDGE]
    for turn in turns[:TURNS_MAX]:
        act = account.act_of(turn)
        yield "", f"{time_of_day(turn.at)} {turn.before} -> {turn.after}, act {act}"
    if len(turns) > TURNS_MAX:
        yield "", f"and {len(turns) - TURNS_MAX} turns more"
    others = Counter(turn.edge for turn in account.turns if turn.edge != EDGE)
    if others:
        yield "", f"turns of other breakers: {_listed(others)}"


def _degraded(account: Account) -> Iterator[tuple[str, str]]:
    yield "degraded", f"{len(account.degraded)} answers in which something stood in"
    oldest: dict[tuple[str, str, str, str], float | None] = {}
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for each in account.degraded:
        key = (each.act, each.page, each.branch, each.status)
        counts[key] += 1
        if each.age_s is not None:
            oldest[key] = max(each.age_s, oldest.get(key) or 0.0)
    for key, count in sorted(counts.items())[:DEGRADED_MAX]:
        act, page, branch, status = key
        age_s = oldest.get(key)
        what = f"its {branch} is {status}" if branch else f"it is {status}"
        age = "" if age_s is None else f", up to {age_s:.1f} s old"
        yield "", f"act {act}: {count} {page}: {what}{age}"
    if len(counts) > DEGRADED_MAX:
        yield "", f"and {len(counts) - DEGRADED_MAX} more of the kind"


def _kills(kills: Iterable[Kill]) -> Iterator[tuple[str, str]]:
    for kill in kills:
        down_s = (kill.back_us - kill.at_us) / 1e6
        at, met = _clock(kill.at_us), len(kill.in_flight)
        yield "kill -9", f"{_processes(kill.pids)}, at {at}, with {met} sagas in flight"
        yield "", f"{_processes(kill.successors)} took over after {down_s:.2f} s"
        yield "recovered", f"{kill.recovered} sagas went on there"


def _restarts(account: Account) -> Iterator[tuple[str, str]]:
    for restart in account.restarts:
        yield "restart", _restart(restart)
        yield "", f"bridged: {restart.bridged} calls were held until it was there"
        yield "", f"meanwhile it told {restart.answered} times what is in stock"
        if restart.given_up:
            yield "", f"held in vain: {restart.given_up}; tried again, or fell back"
    longest = account.longest_hold
    if longest is not None:
        edge = f"{longest.service} -> {longest.name}"
        yield "", f"longest: {held_ms(longest)} ms, {edge}, trace {longest.trace_id}"
    yield "", f"{len(failed_by_restart(account))} requests failed because of it"


def _losses(account: Account) -> Iterator[tuple[str, str]]:
    for loss in account.losses:
        yield "replica", f"{loss.instance}, process {loss.pid}, {loss.how} at {_clock(loss.at_us)}"
        yield "", f"without it {loss.asked} quotes were asked for, and {loss.failed} failed"


def _repair(account: Account) -> Iterator[tuple[str, str]]:
    repair = account.repair
    if repair is not None:
        stuck, parked = len(repair.stuck), len(repair.parked)
        yield (
            "bug",
            f"releases with bugs left {stuck} sagas stuck, {parked} messages parked",
        )
        yield "", f"{len(repair.retried)} were retried, {len(repair.replayed)} were replayed"


def _restart(restart: Restart) -> str:
    took_s = (restart.back_us - restart.at_us) / 1e6
    return (
        f"{_processes(restart.pids)}, at {_clock(restart.at_us)}; after {took_s:.2f} s it is "
        f"{_processes(restart.successors)}"
    )


def _processes(pids: Mapping[str, int]) -> str:
    return ", ".join(f"{name}, process {pid}" for name, pid in pids.items())


def _print_pictures(account: Account, out: Console) -> None:
    if account.spans:
        _head("one trace, of a saga that the kill met", out)
        spans = [*account.spans, *map(_as_span, account.kills[-1:])]
        out.print(waterfall(spans, out.width))
    if account.undone is not None:
        _head("one saga that was undone", out)
        print_story(out, account.undone)
    if account.slowest:
        _head("why the slowest request took so long: synchromesh why TRACE", out)
        print_why(out, explain(account.slowest), [])


def _as_span(kill: Kill) -> SpanRecord:
    """Return the time without orders as a span, so that it can be seen among the others."""
    took_us = kill.back_us - kill.at_us
    return SpanRecord(
        "", "kill", "", "orders", "KILL -9", "until its successor", kill.at_us, took_us, "down", {}
    )


def _clock(at_us: int) -> str:
    return time_of_day(to_datetime(at_us).isoformat())


def _head(text: str, out: Console) -> None:
    out.print()
    out.print(Text(text, style="bold"))


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered) or "none"
