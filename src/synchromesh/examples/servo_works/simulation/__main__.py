"""Runs universes of servo-works; a seed that breaks something is printed as one command.

python -m synchromesh.examples.servo_works.simulation --seed 0 --count 100
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

# The modules of an example are named from its own folder, as its system names them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from universes import Universe

COLLECT_EVERY, PROGRESS_EVERY = 5, 100
MODULE = "python -m synchromesh.examples.servo_works.simulation"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds of the command line; return 1 where one of them breaks something."""
    parser = argparse.ArgumentParser(description="Simulates servo-works under faults.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many universes")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="no random faults: each seed once for each step of each node, which dies before it",
    )
    parser.add_argument("--kill", default="", help="NODE:STEP: only that one of a sweep")
    parser.add_argument("--trace", action="store_true", help="print each universe's hash")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    for number, (command, universe) in enumerate(_universes(options), 1):
        universe.run()
        counts.update(universe.count)
        counts.update({"universes": 1, "steps": universe.world.loop.steps})
        if options.trace:
            sys.stdout.write(f"{command}: {universe.trace}\n")
        if universe.broken:
            sys.stdout.writelines(f"{line}\n" for line in universe.broken)
            sys.stdout.write(f"to see it again: {command}\n")
            return 1
        if number % COLLECT_EVERY == 0:
            gc.collect()
        if number % PROGRESS_EVERY == 0:
            sys.stderr.write(f"{number} universes\n")
    if options.json:
        sys.stdout.write(json.dumps(counts) + "\n")
    else:
        sys.stdout.writelines(f"{n:9,} {what}\n" for what, n in sorted(counts.items()))
    return 0


def _universes(options: argparse.Namespace) -> Iterator[tuple[str, Universe]]:
    """Yield each universe with the command that runs it alone."""
    for seed in range(options.seed, options.seed + options.count):
        if options.kill:
            kills = [options.kill]
        elif options.sweep:
            calm = Universe(seed, is_stormy=False)
            yield f"{MODULE} --seed {seed} --count 1 --sweep", calm
            nodes = calm.world.nodes.values()
            kills = [f"{n.name}:{step}" for n in nodes for step in range(1, n.steps + 1)]
        else:
            yield f"make sim SEED={seed} N=1", Universe(seed)
            continue
        for kill in kills:
            name, _, step = kill.partition(":")
            universe = Universe(seed, is_stormy=False, kill=(name, int(step)))
            yield f"{MODULE} --seed {seed} --count 1 --kill {kill}", universe


if __name__ == "__main__":
    # A universe leaves hundreds of thousands of objects, which are better looked through at once.
    gc.freeze()
    gc.disable()
    sys.exit(main())
