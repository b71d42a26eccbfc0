"""Runs universes of servo-works and says which seed breaks what."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from collections import Counter

from synchromesh.examples.servo_works.simulation.universe import Universe


def main() -> int:
    """Run the seeds that the command line names; 1 where one of them breaks something."""
    parser = argparse.ArgumentParser(description="Simulates servo-works under faults.")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many universes")
    parser.add_argument("--trace", action="store_true", help="print the hash of each universe")
    parser.add_argument("--json", action="store_true", help="print counts as one line of JSON")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + options.count):
        universe = Universe(seed).run()
        counts.update(universe.count)
        counts["universes"] += 1
        counts["steps"] += universe.world.loop.steps
        if options.trace:
            sys.stdout.write(f"seed {seed}: {universe.trace}\n")
        if universe.broken:
            for line in universe.broken:
                sys.stdout.write(f"{line}\n")
            sys.stdout.write(f"make sim SEED={seed} N=1\n")
            return 1
    if options.json:
        sys.stdout.write(json.dumps(counts) + "\n")
    else:
        for what, count in sorted(counts.items()):
            sys.stdout.write(f"{count:8} {what}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
