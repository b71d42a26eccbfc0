"""The verdict on a run of the demo, from its account and its databases, and the report of it."""

import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from audit import PROVIDER_DB, Report, audit
from rich.console import Console
from rich.text import Text

from demo.account import Account
from demo.play import EDGE, IN_FLIGHT_MIN
from synchromesh.cli.show import moment, print_story, waterfall
from synchromesh.codec import to_datetime

FINDING = 1


def judge(account: Account, data: Path, out: Console) -> int:
    """Audit the databases, print the report, and return the exit code: 0, or 1 for a finding.

    Raises:
        FileNotFoundError: a database is missing.
    """
    try:
        audited = audit(data, data / PROVIDER_DB, account.told)
    except sqlite3.Error as error:
        audited = Report(findings=[f"the databases in {data} cannot be read: {error}"])
    _print_counts(account, audited, out)
    _print_breaker(account, out)
    _print_pictures(account, out)
    _head("audit of the six databases and the provider's books", out)
    for line in audited.lines():
        out.print(f"  {line}", markup=False)
    found = shortfalls(account, audited)
    if audited.is_clean and not found:
        out.print("\n[bold green]passed[/bold green]: nothing was lost and nothing is half done")
        return 0
    for line in found:
        out.print(Text(f"  {line}", style="red"))
    out.print(f"\n[bold red]failed[/bold red]: {len(audited.findings) + len(found)} findings")
    return FINDING


def shortfalls(account: Account, audited: Report) -> list[str]:
    """Return what the run did not show although it had to; one readable line each."""
    found = list(account.notes)
    unanswered = account.orders - len(account.told)
    if unanswered:
        found.append(f"{unanswered} of {account.orders} orders have no answer")
    kill = account.kill
    if kill is None:
        found.append("the system was never killed")
    else:
        if len(kill.in_flight) < IN_FLIGHT_MIN:
            found.append(
                f"the kill met {len(kill.in_flight)} sagas in flight, expected {IN_FLIGHT_MIN}"
            )
        if kill.recovered < 1 or kill.recovered != len(kill.in_flight):
            found.append(
                f"{kill.recovered} sagas were recovered, {len(kill.in_flight)} were in flight"
            )
    if not audited.sagas["undone"]:
        found.append("no saga was undone")
    trips, recoveries = _trips(account)
    if not trips:
        found.append(f"the breaker {EDGE} never tripped")
    if not recoveries:
        found.append(f"the breaker {EDGE} never recovered")
    return found


def _trips(account: Account) -> tuple[int, int]:
    turns = Counter((turn.before, turn.after) for turn in account.turns if turn.edge == EDGE)
    return turns["closed", "open"], turns["half_open", "closed"]


def _print_counts(account: Account, audited: Report, out: Console) -> None:
    _head(f"servo-works: {account.orders} orders in {account.took_s:.1f} s", out)
    lines = [
        ("orders", f"{audited.orders['placed']} placed, {audited.orders['rejected']} rejected"),
        ("requests", f"{account.requests} sent, {account.failed} failed and repeated"),
        ("", f"failed: {_counts(account.failures)}"),
        ("sagas", _counts(audited.sagas)),
        ("", f"undone: {_counts(account.reasons)}"),
    ]
    kill = account.kill
    if kill is not None:
        at = moment(to_datetime(kill.at_us).isoformat())
        lines += [
            ("kill -9", f"at {at}, {len(kill.in_flight)} sagas in flight"),
            ("", f"{account.told_at_kill} orders had their answer before it"),
            ("recovered", f"{kill.recovered} sagas after the restart"),
        ]
    for name, text in lines:
        out.print(f"  {name:<10} {text}", markup=False)


def _print_breaker(account: Account, out: Console) -> None:
    trips, recoveries = _trips(account)
    out.print(f"  {'breaker':<10} {EDGE}: tripped {trips}, recovered {recoveries}", markup=False)
    for turn in account.turns:
        if turn.edge == EDGE:
            out.print(f"  {'':<10} {moment(turn.at)} {turn.before} -> {turn.after}", markup=False)
    others = Counter(turn.edge for turn in account.turns if turn.edge != EDGE)
    if others:
        out.print(f"  {'':<10} turns of others: {_counts(others)}", markup=False)


def _print_pictures(account: Account, out: Console) -> None:
    if account.spans:
        _head("one trace, of a saga that the kill met", out)
        out.print(waterfall(account.spans))
    if account.undone is not None:
        _head("one saga that was undone", out)
        print_story(out, account.undone)


def _head(text: str, out: Console) -> None:
    out.print()
    out.print(Text(text, style="bold"))


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered) or "none"
