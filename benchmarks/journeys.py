"""What five journeys pass: Python calls, and files of synchromesh.

    python -m benchmarks.journeys [JOURNEY ...]

A gateway request (API key, scope, rate, one call), a call, a unit of one statement, a saga step
(one call, recorded), and an event from a unit to a unit of another service. All of a system runs in
one process; threads are counted too. `--files` lists the files.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import journeys_app
from benchmarks.processes import running, synchromesh

# A running gateway knows of a new key within a second.
KEYS_WITHIN_S = 1.5
JOURNEYS = ("gateway request", "call", "unit", "saga step", "event")


@dataclass(frozen=True, slots=True)
class Gone:
    """A journey's Python calls and its files."""

    calls: int
    files: list[str]


def measure(journeys: Iterable[str] = JOURNEYS) -> dict[str, Gone]:
    """Go each journey in a system of its own process, and return what it passed."""
    with running(journeys_app.CONFIG, settings=["system.loop=asyncio"]) as system:
        words = ("gateway", "key", "add", "scout", "--scope", journeys_app.SCOPE, "--json")
        key = json.loads(synchromesh(system.folder, *words))["key"]
        time.sleep(KEYS_WITHIN_S)
        return {
            journey: Gone(
                **system.ask("/go", {"journey": journey, "url": system.gateway, "key": key})
            )
            for journey in journeys
        }


def main(words: list[str]) -> None:
    """Print a line for each journey."""
    wanted = [word for word in words if word != "--files"] or list(JOURNEYS)
    unknown = sorted(set(wanted) - set(JOURNEYS))
    if unknown:
        sys.exit(f"there is no journey {unknown[0]!r}; there are: {', '.join(JOURNEYS)}")
    print(f"{'journey':<16} {'Python calls':>12} {'files':>6}")
    for journey, gone in measure(wanted).items():
        print(f"{journey:<16} {gone.calls:>12} {len(gone.files):>6}")
        if "--files" in words:
            print("".join(f"    {file}\n" for file in gone.files), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
