"""`synchromesh advise`: what could be better about a system, with evidence, and how."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synchromesh.cli.config import settings_option
from synchromesh.cli.output import print_json, print_line, print_verbatim, visible

if TYPE_CHECKING:
    from synchromesh.advisor import Advice, Facts
    from synchromesh.gateway.compiled import CompiledRoute

FINDING = 1
# Between two looks at what a running system is behind with.
APART_S = 1.0


@click.command()
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def advise(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Say what could be better: what was seen, why it matters, and the smallest change.

    From code, configuration, kept traces and logs; from the state of the system where it runs.
    Exits 1 where there is advice. What a system has a reason for is left out by its code, in
    [advice] ignore of synchromesh.toml.
    """
    from synchromesh.advisor import advise as advice_for
    from synchromesh.system.config.reading import read_layers
    from synchromesh.system.config.rundir import RunDir

    config, _ = read_layers(folder, environment=os.environ, flags=settings)
    is_running = RunDir(folder).is_running()
    found = advice_for(_facts(folder, settings, is_running=is_running), config.advice.ignore)
    if is_json:
        print_json({"advice": found, "ignored": config.advice.ignore, "is_running": is_running})
    else:
        _show(found, config.advice.ignore, is_running=is_running)
    return FINDING if found else 0


def _facts(folder: Path, settings: tuple[str, ...], *, is_running: bool) -> Facts:
    import asyncio

    import msgspec

    from synchromesh.cli.status import ask
    from synchromesh.runtime import RealRuntime
    from synchromesh.system.config.advice_facts import known_facts
    from synchromesh.system.config.definitions import load_gateway, load_services
    from synchromesh.system.config.gateway_check import check_gateway
    from synchromesh.system.config.reading import read_layers
    from synchromesh.system.config.rundir import RunDir
    from synchromesh.system.control import advising

    config, layers = read_layers(folder, environment=os.environ, flags=settings)
    services, gateway = load_services(config, folder), load_gateway(config, folder)
    entries: Sequence[CompiledRoute] = ()
    if gateway is not None:
        entries = asyncio.run(check_gateway(gateway, config, RunDir(folder), RealRuntime()))
    facts = known_facts(config, folder, services, gateway, entries, layers.is_written)
    facts = msgspec.structs.replace(
        facts, traces=advising.kept_traces(folder), blocked=advising.blockers(folder)
    )
    if not is_running:
        return facts
    first = ask(folder)
    asyncio.run(asyncio.sleep(APART_S))
    then = ask(folder)
    return msgspec.structs.replace(
        facts,
        projections=advising.projections(first, then),
        set_aside=advising.set_aside(then, RealRuntime().wall_us()),
    )


def _show(found: list[Advice], ignored: dict[str, str], *, is_running: bool) -> None:
    for each in found:
        print_verbatim(f"{click.style(each.code, bold=True)}  {visible(each.what)}")
        print_line(f"    seen     {', '.join(each.evidence)}")
        print_line(f"    why      {each.why}")
        print_line(f"    pattern  {each.pattern} (docs/{each.page})")
        print_line(f"    change   {each.change}\n")
    if not is_running:
        print_line("no system by dev runs here: nothing is said of lag and of what is set aside")
    if ignored:
        print_line(f"ignored: {', '.join(sorted(ignored))}")
    pieces = "1 piece of advice" if len(found) == 1 else f"{len(found)} pieces of advice"
    print_line(pieces if found else "nothing to advise")
