"""Runs universes of servo-works; a seed that breaks something is printed as one command.

python -m synchromesh.examples.servo_works.simulation --seed 0 --count 100
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

# The modules of an example are named from its own folder, as its system names them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from universes import Universe
from universes.universe import opened_shop

COLLECT_EVERY, PROGRESS_EVERY = 5, 100
# How many a process runs, which then ends with all that they leave behind.
FORKED = 20
MODULE = "python -m synchromesh.examples.servo_works.simulation"

Planned = tuple[str, dict[str, Any]]
"""The command that runs a universe alone, and what it is made of."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one universe."""

    command: str
    count: Counter[str]
    trace: str
    broken: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds of the command line; return 1 where one of them breaks something."""
    options = _parser().parse_args(arguments)
    counts: Counter[str] = Counter()
    opened_shop()  # once, for all of them
    for number, told in enumerate(_fates(options), 1):
        counts.update(told.count)
        if options.trace:
            sys.stdout.write(f"{told.command}: {told.trace}\n")
        if told.broken:
            sys.stdout.writelines(f"{line}\n" for line in told.broken)
            sys.stdout.write(f"to see it again: {told.command}\n")
            return 1
        if number % PROGRESS_EVERY == 0:
            sys.stderr.write(f"{number} universes\n")
    if options.json:
        sys.stdout.write(json.dumps(counts) + "\n")
    else:
        sys.stdout.writelines(f"{n:9,} {what}\n" for what, n in sorted(counts.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Simulates servo-works under faults.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many universes")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="no random faults: each seed once for each step of each node, which dies before it",
    )
    parser.add_argument("--kill", default="", help="NODE:STEP: only that one of a sweep")
    parser.add_argument(
        "--slow", action="store_true", help="switch the fast way of calls and of HTTP off"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many at once; as many as cores"
    )
    parser.add_argument("--trace", action="store_true", help="print each universe's hash")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    return parser


def _fates(options: argparse.Namespace) -> Iterator[Fate]:
    """Run all universes, and yield what became of each, in their order."""
    for planned in _planned(options):
        if options.jobs > 1 and len(planned) > 1:
            yield from _run_in_forks(planned, options.jobs)
        else:
            yield from _run_here(planned)


def _planned(options: argparse.Namespace) -> Iterator[list[Planned]]:
    """Yield the universes, those of a sweep by seeds: how many there are, its first one tells."""
    seeds = range(options.seed, options.seed + options.count)
    slow = " --slow" * options.slow
    if not (options.sweep or options.kill):
        command = f"{MODULE} --count 1 --slow --seed {{}}" if slow else "make sim SEED={} N=1"
        yield [(command.format(seed), _made(seed, options)) for seed in seeds]
        return
    for seed in seeds:
        alone, made = f"{MODULE} --seed {seed} --count 1{slow}", _made(seed, options)
        made["is_stormy"] = False
        planned = [(f"{alone} --sweep", made)] * (not options.kill)
        if options.kill:
            kills = [options.kill]
        else:
            nodes = Universe(**made).run().world.nodes.values()
            kills = [f"{n.name}:{step}" for n in nodes for step in range(1, n.steps + 1)]
        for kill in kills:
            name, _, step = kill.partition(":")
            planned.append((f"{alone} --kill {kill}", {**made, "kill": (name, int(step))}))
        yield planned


def _made(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    return {"seed": seed, "is_slow": options.slow}


def _run_here(planned: Iterable[Planned]) -> Iterator[Fate]:
    for number, each in enumerate(planned, 1):
        yield _run(each)
        if number % COLLECT_EVERY == 0:
            gc.collect()


def _run(planned: Planned) -> Fate:
    command, made = planned
    universe = Universe(**made).run()
    universe.count.update({"universes": 1, "steps": universe.world.loop.steps})
    return Fate(command, universe.count, universe.trace, universe.broken)


def _run_in_forks(planned: Sequence[Planned], jobs: int) -> Iterator[Fate]:
    """Run universes in processes that begin as this one is; yield what became of each, in order."""
    fork = multiprocessing.get_context("fork")
    batches = [planned[at : at + FORKED] for at in range(0, len(planned), FORKED)]
    running: dict[Any, tuple[int, multiprocessing.process.BaseProcess]] = {}
    done: dict[int, list[Fate]] = {}
    begun = 0
    try:
        for number in range(len(batches)):
            while number not in done:
                while len(running) < jobs and begun < len(batches):
                    ours, theirs = fork.Pipe(duplex=False)
                    process = fork.Process(target=_tell, args=(theirs, batches[begun]))
                    process.start()
                    theirs.close()
                    running[ours] = begun, process
                    begun += 1
                for said in wait(list(running)):
                    which, ended = running.pop(said)
                    # One that died says nothing: EOFError.
                    done[which] = cast("Connection", said).recv()
                    ended.join()
            yield from done.pop(number)
    finally:
        for _, left in running.values():
            left.kill()


def _tell(to: Connection, planned: Sequence[Planned]) -> None:
    # What they leave behind is not worth a look: it goes with the process.
    gc.disable()
    to.send([_run(each) for each in planned])


if __name__ == "__main__":
    # A universe leaves ten thousands of objects, which are better looked through at once.
    gc.freeze()
    gc.disable()
    sys.exit(main())
