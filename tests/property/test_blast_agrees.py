"""`blast` says what a drill sees: on random systems of services, routes and fallbacks."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from blast_agreement import disagreements
from synchromesh.drill import Probe
from synchromesh.drill.course import Column, DrillClient, DrillPace, take_away
from synchromesh.drill.probes import Says
from synchromesh.http import HttpPool
from synchromesh.system import load_config
from synchromesh.system.control.blast import Effect, blast
from synchromesh.system.control.declaring import declared_of
from synchromesh.telemetry.observed import ObservedCall
from synchromesh.testing.sim_system import FAILING, KILLED, STALLED, SimSystem

SYSTEMS = 50
SERVICES = 4
HEAD = """
from typing import Protocol
from msgspec import Struct
from synchromesh import (
    Aggregate, Branch, Context, Contract, Gateway, Route, Service, Stale, Static, query,
)
from synchromesh.errors import CallError


class Answer(Struct):
    whole: bool
"""
SERVICE = """

class S{i}(Contract, Protocol, service="s{i}", version="1.0"):
    @query("GET /s{i}")
    async def ask(self) -> Answer: ...


s{i} = Service("s{i}", implements=S{i})
"""
HANDLER = """

@s{i}.handles(S{i}.ask)
async def ask{i}(ctx: Context) -> Answer:
    whole = True
"""
NEEDS = """    whole = whole and (await ctx.call(S{j}.ask())).whole
"""
SPARES = """    try:
        whole = (await ctx.call(S{j}.ask())).whole and whole
    except CallError:
        whole = False
"""
FALLBACKS = ("None", "None", 'Stale("10m")', 'Static({"whole": False})')
# The longest timeout is 2.56 s: what is asked once all has settled ends before the part is back.
PACE = DrillPace(off_s=14.0, answered_s=1.0, settled_s=10.5, ends_s=0.0)


def written(folder: Path, module: str, rng: random.Random) -> list[str]:
    """Write a random system into a folder; return its routes."""
    code = HEAD + "".join(SERVICE.format(i=i) for i in range(SERVICES))
    for i in range(SERVICES):
        code += HANDLER.format(i=i)
        for j in range(i + 1, SERVICES):
            code += rng.choice([NEEDS, SPARES, "", ""]).format(j=j)
        code += "    return Answer(whole)\n"
    routes, names = [], []
    for number in range(rng.randint(2, 4)):
        name = f"GET /r{number}"
        names.append(name)
        if rng.random() < 0.5:
            asked = f"S{rng.randrange(SERVICES)}.ask"
            routes.append(
                f'Route("{name}", {asked}, public=True, deadline="20s", '
                f"fallback={rng.choice(FALLBACKS)})"
            )
            continue
        is_whole = rng.random() < 0.2
        whole = ", all_or_nothing=True" if is_whole else ""
        branches = []
        for b in range(rng.randint(1, 3)):
            # One at least is required; and a page that is whole or none falls back to nothing.
            more = f", required={not b or rng.random() < 0.3}, fallback={rng.choice(FALLBACKS)}"
            asked = f"S{rng.randrange(SERVICES)}.ask"
            branches.append(f'"b{b}": Branch({asked}{"" if is_whole else more})')
        routes.append(
            f'Aggregate("{name}", public=True, deadline="20s"{whole}, '
            f"branches={{{', '.join(branches)}}})"
        )
    code += f"\n\ngateway = Gateway(routes=[{', '.join(routes)}])\n"
    (folder / f"{module}.py").write_text(code)
    lines = ['[system]\nname = "random"\n', f'[gateway]\napp = "{module}:gateway"\n']
    lines += [f'[services.s{i}]\napp = "{module}:s{i}"\n' for i in range(SERVICES)]
    for caller in ("gateway", *(f"s{i}" for i in range(SERVICES))):
        for j in range(SERVICES):
            # Each has the time for all that is below it, one after the other.
            took_ms = 40 * 4 ** (SERVICES - 1 - j)
            retry = "retry = { attempts = 1 }"
            lines.append(f'[policies."{caller}:s{j}"]\ntimeout = "{took_ms}ms"\n{retry}\n')
    (folder / "synchromesh.toml").write_text("\n".join(lines))
    return names


@pytest.mark.parametrize("seed", range(SYSTEMS))
def test_a_drill_sees_what_blast_says(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By declarations and the calls that were seen: what stops, degrades, goes on as always."""
    caplog.set_level(logging.CRITICAL, "synchromesh")
    monkeypatch.syspath_prepend(tmp_path)
    rng = random.Random(seed)
    routes = written(tmp_path, f"random_system_{seed}", rng)
    part = f"s{rng.randrange(SERVICES)}"
    way = rng.choice([KILLED, STALLED, FAILING])
    config = load_config(tmp_path)
    says = [Says("whole", "in part", False), Says("data.b0.whole", "in part", False)]
    probes = [Probe(route, says=says, every=2) for route in routes]
    system = SimSystem(config, tmp_path, seed=str(seed))
    calls: list[ObservedCall] = []

    async def main() -> Column:
        async def told(stage: str) -> None:
            if stage == "over":
                calls.extend(await system.observed())

        await system.start()
        async with HttpPool(network=system.world.network) as pool:
            client = DrillClient(pool, ("127.0.0.1", system.ports["gateway"]), lambda _: "")
            return await take_away(system, client, probes, part, way, pace=PACE, told=told)

    column = system.world.run(main())
    found = blast(part, declared_of(config, tmp_path), calls)
    assert disagreements(found, column) == [], (part, way)
    # All ways were seen failing, so that nothing is left open.
    assert Effect.DEPENDS.value not in {hit.effect for hit in found.hits}
