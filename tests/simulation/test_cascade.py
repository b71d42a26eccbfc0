"""One service that stalls or drowns does not take its callers along, with nothing configured.

The scenarios are those of `benchmarks.cascade`, a twentieth of them and twenty systems drawn
from seeds. They run in processes of their own, one a core, and are not measured for coverage.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.cascade.catalogue import (
    CHAIN5,
    DIAMOND,
    FAN_OUT,
    LOADS,
    SHAPES,
    WHOLE,
    drawn,
    everything,
    few,
)
from benchmarks.cascade.faults import FAULTS
from benchmarks.cascade.shape import Part, Plans

from cascade_today import FAILS_TODAY

ROOT = Path(__file__).parents[2]
UNGUARDED = "stall with nothing"

Told = dict[str, dict[str, tuple[float | None, bool]]]


@pytest.fixture(scope="module")
def told() -> Told:
    """Return what every scenario measured, and whether it kept its claims."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cascade", "--few", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: Told = json.loads(done.stdout)
    return found


def broken(told: Told) -> dict[tuple[str, str], float | None]:
    """Return the claims that are not kept where all layers are on, with what was measured."""
    return {
        (scenario, claim): value
        for scenario, claims in told.items()
        if scenario != UNGUARDED
        for claim, (value, is_kept) in claims.items()
        if not is_kept
    }


def test_no_claim_breaks_that_was_kept(told: Told) -> None:
    """Whatever a scenario claims is kept, but for what is known to fail."""
    known = {(scenario, claim) for scenario, claims in FAILS_TODAY.items() for claim in claims}
    assert {each: value for each, value in broken(told).items() if each not in known} == {}


def test_what_is_known_to_fail_does(told: Told) -> None:
    """A claim that is listed as failing and is kept, or made no more, is taken off the list."""
    fails = broken(told)
    known = [(scenario, claim) for scenario, claims in FAILS_TODAY.items() for claim in claims]
    assert [each for each in known if each not in fails] == []


def test_the_claims_can_fail(told: Told) -> None:
    """Without any layer what has waited drowns the callee once it is well, and a claim says so."""
    recovered_s, is_kept = told[UNGUARDED]["recovery s"]
    assert (recovered_s, is_kept) == (None, False)


def test_every_kind_of_client_is_there() -> None:
    """Each deadline with and without retries, for every shape and fault; some time in the suite."""
    kinds = set(itertools.product((0.3, 1.0, 5.0, None), (False, True)))
    found: dict[tuple[str, str, float], set[tuple[float | None, bool]]] = {}
    for each in everything():
        at = each.shape.name, each.fault, each.load
        found.setdefault(at, set()).add((each.deadline_s, each.is_retrying))
    for shape, fault in itertools.product(SHAPES, WHOLE):
        assert found[shape.name, fault, LOADS[0]] == kinds
    assert {(each.deadline_s, each.is_retrying) for each in few()} == kinds


def test_shares_are_what_is_drawn() -> None:
    """How often requests reach a service on average is what a thousand drawn requests do."""
    for shape in (CHAIN5, DIAMOND, FAN_OUT):
        plans = Plans(shape, random.Random(1))
        draws = [plans.draw() for _ in range(4000)]
        for name, share in shape.shares().items():
            visits = sum(plans.visits(plan, name) for plan in draws)
            assert visits / len(draws) == pytest.approx(share, abs=0.03)


def test_possible_is_what_the_places_can_do() -> None:
    """A healthy resource does places / mean; one with a quarter of the places does a quarter."""
    part = Part("a", places=8, mean_s=0.05)
    healthy = FAULTS["none"].possible_per_s(part, 60.0)
    assert healthy == pytest.approx(part.capacity_per_s, rel=0.05)
    assert FAULTS["25 % capacity"].possible_per_s(part, 60.0) == pytest.approx(healthy / 4)
    assert FAULTS["slow database"].possible_per_s(part, 60.0) == pytest.approx(healthy / 4)
    assert FAULTS["stall"].possible_per_s(part, 60.0) == 0
    assert FAULTS["slow 5 s"].possible_per_s(part, 4.9) == 0
    assert FAULTS["slow 5 s"].possible_per_s(part, 5.1) == pytest.approx(8 / 5)


def test_drawn_systems_are_sound() -> None:
    """In a drawn system every service is reached, only the culprit is tight, and time suffices."""
    for seed in range(200):
        scenario = drawn(seed)
        shape, shares = scenario.shape, scenario.shape.shares()
        assert 3 <= len(shape.parts) <= 9
        assert min(shares.values()) > 0
        for part in shape.parts:
            load = scenario.rate_per_s * shares[part.name] / part.capacity_per_s
            if part.name == scenario.culprit:
                assert load == pytest.approx(scenario.load)
            else:
                assert load <= 0.55
        if scenario.deadline_s is not None:
            assert scenario.deadline_s >= 4.9 * shape.longest_s
