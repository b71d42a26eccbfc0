"""What a run of the demo must have shown: each condition, what was seen of it, and the verdict.

None of them is a matter of how quick the machine is: what a rate turned away is no failure, and
what was too late for its deadline was asked again until it was answered.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from audit import Report

from demo.account import (
    CALM,
    INVENTORY_ROUTES,
    REST,
    RESTART,
    STALL,
    Account,
    Failure,
    RepairByHand,
    Turn,
)
from demo.play import EDGE, IN_FLIGHT_MIN
from synchromesh.calls import HoldOptions

# A quote that waits for a replica that hangs is asked for again elsewhere, where there is time for
# it: on the slowest machine, too, most of them have it.
QUOTES_WELL = 90


@dataclass(frozen=True, slots=True)
class VerdictCondition:
    """One thing that must be so for the demo to pass, in words, and what was seen of it."""

    must: str
    seen: str
    is_met: bool


def conditions(account: Account, audited: Report) -> Iterator[VerdictCondition]:
    """Yield each condition of the verdict."""
    findings = len(audited.findings)
    yield VerdictCondition("the audit finds nothing", f"{findings} findings", audited.is_clean)
    told = sum(said in ("placed", "rejected") for said in account.told.values())
    yield VerdictCondition(
        "every order has its answer", f"{told} of {account.orders}", told == account.orders
    )
    stuck = audited.sagas["stuck"]
    yield VerdictCondition("no saga is stuck", f"{stuck} are", not stuck)
    met = max((len(kill.in_flight) for kill in account.kills), default=0)
    yield VerdictCondition(
        f"orders was killed with {IN_FLIGHT_MIN} sagas in flight or more",
        f"{met} in flight",
        met >= IN_FLIGHT_MIN,
    )
    recovered = sum(kill.recovered for kill in account.kills)
    yield _one_or_more("sagas were recovered after it", recovered)
    yield _one_or_more("sagas were undone", audited.sagas["undone"])
    yield _one_or_more(f"{EDGE} tripped by the stall", len(stall_trips(account)))
    yield _one_or_more("and recovered after that", len(recoveries(account)))
    yield _one_or_more("pages were answered in part", len(account.degraded_pages))
    yield _over_restart(account)
    failed = len(failed_by_restart(account))
    yield VerdictCondition("no request failed because of it", f"{failed} failed", not failed)
    failed = len(failed_in_peace(account))
    yield VerdictCondition("no request failed while all was well", f"{failed} failed", not failed)
    yield from _ways_in(account)
    asked = sum(loss.asked for loss in account.losses)
    failed = sum(loss.failed for loss in account.losses)
    yield VerdictCondition(
        f"{QUOTES_WELL} of 100 quotes succeeded while one of three replicas was lost",
        f"{asked - failed} of {asked}",
        asked > 0 and 100 * (asked - failed) >= QUOTES_WELL * asked,
    )
    repair = account.repair or RepairByHand((), (), (), (), ())
    yield _one_or_more("sagas were stuck by a bug, and status said so", _named(repair, "stuck"))
    yield _one_or_more("messages were parked by it, and status said so", _named(repair, "parked"))
    left = len(repair.stuck) - len(repair.retried) + len(repair.parked) - len(repair.replayed)
    yield VerdictCondition("all of them were repaired by hand", f"{left} were not", not left)
    refused, otherwise = sum(account.intruders.values()), len(account.let_in)
    yield VerdictCondition(
        "wrong and expired credentials were refused",
        f"{refused} of {refused + otherwise}",
        bool(refused) and not otherwise,
    )
    for what in account.let_in:
        yield VerdictCondition("none of them was let in", what, is_met=False)
    ended = unasked_ends(account)
    yield VerdictCondition("no process ended that was not killed", f"{ended} did", not ended)
    for note in account.notes:
        yield VerdictCondition("nothing else went wrong", note, is_met=False)


def _over_restart(account: Account) -> VerdictCondition:
    """One process is away while it is restarted; of several replicas one is always there."""
    if account.replicas == 1:
        bridged = sum(restart.bridged for restart in account.restarts)
        return _one_or_more("calls were bridged over the restart of inventory", bridged)
    answered = sum(restart.answered for restart in account.restarts)
    return _one_or_more("inventory answered while its replicas were restarted one by one", answered)


def _ways_in(account: Account) -> Iterator[VerdictCondition]:
    if account.replicas > 1:
        used = len(account.ways_in)
        must = f"customers were answered by {account.replicas} gateways"
        yield VerdictCondition(must, f"{used} gateways", used == account.replicas)


def _named(repair: RepairByHand, what: str) -> int:
    """Return how many were left behind, as far as `synchromesh status` named the kind."""
    is_told = any(what in finding for finding in repair.findings)
    return len(getattr(repair, what)) if is_told else 0


def trips(account: Account) -> list[Turn]:
    """Return when the credit provider's breaker tripped."""
    return [turn for turn in _turns(account) if (turn.before, turn.after) == ("closed", "open")]


def stall_trips(account: Account) -> list[Turn]:
    """Return when it tripped while the provider stalled."""
    return [turn for turn in trips(account) if account.act_of(turn) == STALL]


def recoveries(account: Account) -> list[Turn]:
    """Return when it closed again, after it had tripped by the stall."""
    tripped = [turn.at for turn in stall_trips(account)]
    return [
        turn
        for turn in _turns(account)
        if turn.after == "closed" and tripped and turn.at > tripped[0]
    ]


def failed_by_restart(account: Account) -> list[Failure]:
    """Return the requests that failed while inventory was restarted, of those that lead to it.

    Not those for want of time: on a slow machine a process may take longer to start than a call is
    held for it, and then no instance was there.
    """
    took_s = max((each.back_us - each.at_us for each in account.restarts), default=0) / 1e6
    held_in_vain = "no_instance" if took_s > HoldOptions().hold_max_s else ""
    return [
        failure
        for failure in account.failures
        if failure.act == RESTART
        and failure.route in INVENTORY_ROUTES
        and not failure.is_out_of_time
        and failure.reason != held_in_vain
    ]


def failed_in_peace(account: Account) -> list[Failure]:
    """Return the requests that failed in an act in which nothing was done to the system."""
    return [
        failure
        for failure in account.failures
        if failure.act in (CALM, REST) and not failure.is_out_of_time
    ]


def unasked_ends(account: Account) -> int:
    """Return how often a process ended that nobody had killed."""
    killed = Counter(f"service/{name}" for kill in account.kills for name in kill.pids)
    killed.update(f"service/{loss.instance}" for loss in account.losses)
    return sum(max(0, times - killed[name]) for name, times in account.ended.items())


def _turns(account: Account) -> list[Turn]:
    return [turn for turn in account.turns if turn.edge == EDGE]


def _one_or_more(must: str, count: int) -> VerdictCondition:
    return VerdictCondition(must, str(count), count >= 1)
