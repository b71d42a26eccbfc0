"""Run scenarios, print a table an experiment, and write `benchmarks/results/cascade.json`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from typing import Any

from benchmarks.cascade.catalogue import by_name, drawn, everything, few, pictured
from benchmarks.cascade.judging import BIN_S, Judged, figure, judge, judged, table
from benchmarks.cascade.timeline import Timeline
from benchmarks.harness import RESULTS, machine, versions

SYSTEMS, SYSTEMS_OF_SUITE = 200, 20


def _print_table(experiment: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{experiment}")
    for row in rows:
        median, worst = (
            "never" if row[column] is None else f"{row[column]:g}" for column in ("median", "worst")
        )
        print(
            f"  {row['claim']:<26} kept {row['kept']:>3} of {row['made']:<3}  median {median:<6} "
            f"worst {worst:<6} ({row['bound']}, {row['worst_in']})"
        )


def _print_one(each: Judged) -> None:
    print(f"{each.name}: {each.cpu_s:.2f} s of CPU")
    for claim in each.claims:
        print(f"  {'kept  ' if claim.is_kept else 'BROKEN'} {claim}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="SCENARIO", help="run this one, and print it whole"
    )
    parser.add_argument(
        "--timeline", type=float, metavar="SECONDS", help="with --only: print what happened, too"
    )
    parser.add_argument(
        "--few", action="store_true", help="run what the test suite runs, a twentieth of all"
    )
    parser.add_argument(
        "--systems", type=int, default=SYSTEMS, metavar="N", help="how many systems to draw"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides what is left to chance")
    parser.add_argument(
        "--json", action="store_true", help="print every claim as JSON, and no table"
    )
    options = parser.parse_args()
    if options.only:
        for name in options.only:
            try:
                scenario = by_name(name)
            except KeyError:
                parser.error(
                    f"there is no scenario {name!r}; it is EXPERIMENT / LOAD / DEADLINE as the "
                    'tables have it, such as "chain of 3 / stall / 50% / 1 s", or "system 7"'
                )
            timeline = Timeline(options.timeline) if options.timeline else None
            _print_one(judge(replace(scenario, seed=options.seed), timeline))
            print("\n".join(timeline.rows if timeline else []))
        return
    count = SYSTEMS_OF_SUITE if options.few else options.systems
    scenarios = [
        *(few() if options.few else everything()),
        *(pictured()[:1] if options.json else pictured()),
        *(drawn(options.seed * SYSTEMS + number) for number in range(count)),
    ]
    scenarios = [replace(each, seed=options.seed) for each in scenarios]
    told = []
    for number, each in enumerate(judged(scenarios), 1):
        told.append(each)
        if sys.stderr.isatty():
            print(f"\r{number} of {len(scenarios)}", end="", file=sys.stderr)
    if options.json:
        print(
            json.dumps(
                {
                    each.name: {c.name: [figure(c.value), c.is_kept] for c in each.claims}
                    for each in told
                }
            )
        )
        return
    experiments: dict[str, list[Judged]] = {}
    for each in told:
        if each.series is None:
            experiments.setdefault(each.experiment, []).append(each)
    tables = {name: table(group) for name, group in experiments.items()}
    for name, rows in tables.items():
        _print_table(name, rows)
    took_s = [each.cpu_s for each in told]
    print(f"\n{len(told)} scenarios, {sum(took_s):.0f} s of CPU, at most {max(took_s):.1f} s")
    _write(told, tables)


def _write(told: list[Judged], tables: dict[str, Any]) -> None:
    broken = {
        each.name: {claim.name: figure(claim.value) for claim in each.claims if not claim.is_kept}
        for each in told
        if each.series is None
    }
    found = {
        "area": "cascade",
        "machine": machine(),
        "versions": versions(()),
        "scenarios": len(told),
        "experiments": tables,
        "broken": {name: claims for name, claims in broken.items() if claims},
        "bin_s": BIN_S,
        "series": {each.name: each.series for each in told if each.series is not None},
    }
    text = json.dumps(found, ensure_ascii=False, indent=1)
    # A series is one line of figures.
    (RESULTS / "cascade.json").write_text(_shorter(text) + "\n")


def _shorter(text: str) -> str:
    return re.sub(
        r"\[\s+((?:[\d.]+|null)(?:,\s+(?:[\d.]+|null))*)\s+\]",
        lambda m: f"[{' '.join(m[1].split())}]",
        text,
    )


if __name__ == "__main__":
    main()
