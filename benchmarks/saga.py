"""Sagas of three steps against DBOS on SQLite, and what is left of both after a kill -9.

    python -m benchmarks.saga

Stubbed steps return at once: what is measured is the saga itself. Where a third are undone, the
last step of every third saga is refused, and what the two before it did is undone. Real commands
take an order to three other services, which run in the same process and commit to databases of
their own, once for each key; the steps of DBOS then do the same by hand, with the same statements.
Both sides write WAL with `synchronous=FULL`. Ours is the product as it is: with its fence, its
shielded starts, the undo of each step, and its spans kept on the disk; real commands pass the whole
path of calls, between services that run as in `synchromesh dev`. Every contestant has a process and
a folder of its own in each round.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.harness import Measures, Report, WrongAnswer, at_least, at_most, in_turn, size

CONTESTANTS = (
    "ours-stubbed", "dbos-stubbed", "ours-third", "dbos-third", "ours-real", "dbos-real"
)  # fmt: skip
WITHIN_S = 120.0


def _command(contestant: str, folder: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.saga_runs", contestant, folder]


def _measured(contestant: str, folder: str) -> Measures:
    ran = subprocess.run(
        _command(contestant, folder), stdout=subprocess.PIPE, timeout=WITHIN_S, check=False
    )
    if ran.returncode != 0:
        raise WrongAnswer(f"{contestant} ended with {ran.returncode}; what it said is above")
    measures: Measures = json.loads(ran.stdout.splitlines()[-1])
    return measures


def run(contestant: str) -> Callable[[], Measures]:
    """Return a round of a contestant."""

    def a_round() -> Measures:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(contestant, folder)

    return a_round


def recovery(side: str) -> Callable[[], Measures]:
    """Return a round that kills a side with 50 sagas in their second step, and has it recover."""

    def a_round() -> Measures:
        with tempfile.TemporaryDirectory() as folder:
            command = _command(f"{side}-pending", folder)
            with subprocess.Popen(command, stdout=subprocess.PIPE) as pending:
                assert pending.stdout is not None
                said = pending.stdout.readline()
                pending.send_signal(signal.SIGKILL)
            if said.strip() != b"pending":
                raise WrongAnswer(f"{side} left no sagas pending; what it said is above")
            return _measured(f"{side}-recovery", folder)

    return a_round


def main() -> None:
    """Run all contestants in turn and report."""
    results = in_turn({each: run(each) for each in CONTESTANTS}, rounds=size(5, 1), warm_up=0)
    recovered = in_turn(
        {f"{side}": recovery(side) for side in ("ours", "dbos")}, rounds=size(3, 1), warm_up=0
    )
    report = Report("saga", packages=["dbos", "sqlalchemy"])
    for kind, what, goal in (("stubbed", "3 stubbed steps", 30), ("real", "3 real commands", 15)):
        ours, peer = f"ours-{kind}", f"dbos-{kind}"
        report.against(
            f"sagas a second, {what}, 50 in flight", "/s", results, "rate",
            ours=ours, peer=peer, goal=at_least(goal),
        )  # fmt: skip
        if kind == "real":
            report.against(
                f"sagas a second, {what} to its stubbed steps", "/s", results, "rate",
                ours=ours, peer="dbos-stubbed",
            )  # fmt: skip
        report.against(
            f"p50 alone, {what}", "ms", results, "p50_ms",
            ours=ours, peer=peer, goal=at_most(1 / 5) if kind == "stubbed" else None,
        )  # fmt: skip
        report.against(
            f"CPU a saga, {what}, 50 in flight, to its",
            "ms",
            results,
            "cpu_ms",
            ours=ours,
            peer=peer,
        )
    report.against(
        "sagas a second, 3 stubbed steps, a third undone, 50 in flight", "/s", results, "rate",
        ours="ours-third", peer="dbos-third", goal=at_least(25),
    )  # fmt: skip
    report.against(
        "CPU a saga, a third undone, 50 in flight, to its", "ms", results, "cpu_ms",
        ours="ours-third", peer="dbos-third",
    )  # fmt: skip
    stubbed = "ours-stubbed"
    report.alone("CPU a saga, 50 in flight", "ms", results.median(stubbed, "cpu_ms"), at_most(0.5))
    for how, bound in (("alone", 4.0), ("many", 0.2)):
        measure = f"commits_{how}"
        named = "alone" if how == "alone" else "50 in flight"
        report.alone(
            f"durable commits a saga, {named}", "", results.median(stubbed, measure), at_most(bound)
        )
        report.against(
            f"durable commits a saga, {named}, to its", "", results, measure,
            ours=stubbed, peer="dbos-stubbed",
        )  # fmt: skip
        report.against(
            f"durable commits a saga and its commands, {named}", "", results, f"all_{measure}",
            ours="ours-real", peer="dbos-real",
        )  # fmt: skip
    report.alone(
        "50 pending after kill -9, all done",
        "s",
        recovered.median("ours", "recovery_s"),
        at_most(0.5),
    )
    report.against("50 pending after kill -9, to its", "s", recovered, "recovery_s", peer="dbos")
    report.finish()
    print("where the time goes: python -m benchmarks.profiles saga commands")


if __name__ == "__main__":
    main()
