"""`synchromesh test`: the tests of a system, and its opening under faults."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError

FINDING = 1
# pytest's, and unittest's of 3.12, for no tests at all.
NOTHING_RAN = 5


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--sim", "is_simulated", is_flag=True, help="Run the opening under faults instead.")
@click.option("--seed", default=0, show_default=True, help="The first seed of the storms.")
@click.option("--storms", default=20, show_default=True, type=click.IntRange(0, 100_000))
@click.option("--cuts", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--json", "is_json", is_flag=True, help="Print JSON; with --sim.")
@click.pass_obj
def test(
    folder: Path,
    arguments: tuple[str, ...],
    is_simulated: bool,
    seed: int,
    storms: int,
    cuts: int,
    is_json: bool,
) -> int:
    """Run the tests of the folder: by pytest where it is installed, else by unittest.

    ARGUMENTS are given to it. Exits 1 where a test fails.

    With --sim the system is opened instead, by the function that [dev] opening names, in virtual
    time: with a power cut at each of its steps, and in storms that lose, repeat and delay requests
    between its services. Each time all sagas must end, and no message may be left.
    """
    if is_simulated:
        if arguments:
            raise click.UsageError(f"--sim runs no tests, so it takes no {arguments[0]!r}")
        return _simulate(folder, seed, storms, cuts, is_json)
    runner = "pytest" if find_spec("pytest") else "unittest"
    ended = subprocess.run(  # noqa: S603  the arguments are the user's own
        [sys.executable, "-m", runner, *arguments], cwd=folder, check=False
    )
    if ended.returncode == NOTHING_RAN:
        raise ConfigError(f"{runner} found no test in {folder}; a test is in a file test_NAME.py")
    if ended.returncode < 0:
        raise ConfigError(f"{runner} was ended by signal {-ended.returncode}")
    return ended.returncode and FINDING


def _simulate(folder: Path, seed: int, storms: int, cuts: int, is_json: bool) -> int:
    from synchromesh.system.config.definitions import load_opening, load_services
    from synchromesh.system.config.reading import read_layers
    from synchromesh.testing import NotSurvived, survive

    config, _ = read_layers(folder, environment=os.environ, flags=())
    services, opening = load_services(config, folder), load_opening(config, folder)
    if opening is None:
        raise ConfigError(
            "--sim opens the system under faults, and [dev] opening names no function in "
            f"{folder}; name one, or write a test with synchromesh.testing.survive"
        )
    try:
        told = survive(
            opening, *services, check=lambda _: None, cuts_max=cuts, storms=storms, seed=seed
        )
    except NotSurvived as error:
        if is_json:
            print_json({"is_survived": False, "why": str(error)})
        else:
            print_line(str(error))
        return FINDING
    if is_json:
        counts = dict(sorted(told.count.items()))
        print_json({"is_survived": True, "cuts": len(told.cuts), "storms": storms, "count": counts})
    else:
        rare = ", ".join(f"{what}: {n}" for what, n in sorted(told.count.items()))
        print_line(f"survived {len(told.cuts)} power cuts and {storms} storms; {rare}")
    return 0
