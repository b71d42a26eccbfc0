"""Runs universes of servo-works; a seed that breaks something is printed as one command.

python -m synchromesh.examples.servo_works.simulation --seed 0 --count 100
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

# The modules of an example are named from its own folder, as its system names them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from universes import Universe

PROGRESS_EVERY = 100


def main() -> int:
    """Run the seeds that the command line names; 1 where one of them breaks something."""
    parser = argparse.ArgumentParser(description="Simulates servo-works under faults.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many universes")
    parser.add_argument("--trace", action="store_true", help="print each universe's hash")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for number, seed in enumerate(range(options.seed, options.seed + options.count), 1):
        universe = Universe(seed).run()
        counts.update(universe.count)
        counts.update({"universes": 1, "steps": universe.world.loop.steps})
        if options.trace:
            sys.stdout.write(f"seed {seed}: {universe.trace}\n")
        if universe.broken:
            sys.stdout.writelines(f"{line}\n" for line in universe.broken)
            sys.stdout.write(f"to see it again: make sim SEED={seed} N=1\n")
            return 1
        if number % PROGRESS_EVERY == 0:
            sys.stderr.write(f"{number} of {options.count} universes\n")
    if options.json:
        sys.stdout.write(json.dumps(counts) + "\n")
    else:
        sys.stdout.writelines(f"{n:9,} {what}\n" for what, n in sorted(counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
