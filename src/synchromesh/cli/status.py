"""`synchromesh status`: the whole system on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from synchromesh.cli.operating import control_of
from synchromesh.cli.output import print_json
from synchromesh.errors import SynchromeshError
from synchromesh.system.control.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from synchromesh.telemetry.metrics import Family

FINDING = 1
WATCH_EVERY_S = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Draw it anew once a second, until Ctrl-C.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(folder: Path, watch: bool, is_json: bool) -> int:
    """Show the health of the whole system on one screen.

    With --watch also what routes and operations did in the last second: how many ended and failed,
    and what half of them, and 99 in 100, took at most.

    Services with their instances, sagas, lag and messages set aside; the gateway; breakers by edge;
    the faults that are in force on purpose. Exits 1 when something needs a person: a saga that is
    stuck, a message that is parked, or that has waited for a release for more than a minute, a
    background child that does not run, contracts that were broken and do not fit yet. An open
    breaker closes by itself, and is none.
    """
    if watch and is_json:
        raise click.UsageError("--watch draws a screen; take --json without it, as often as needed")
    last = ask(folder)
    if is_json:
        print_json(last)
    elif watch:
        last = _watch(folder, last)
    else:
        _show(last)
    return FINDING if last.findings else 0


def ask(folder: Path) -> Status:
    """Return the status of the system that runs in a folder."""
    return msgspec.convert(control_of(folder).get("/status"), Status)


def read_metrics(folder: Path) -> list[Family]:
    """Return the metrics of the system that runs in a folder."""
    from synchromesh.telemetry.metrics import Family

    return msgspec.convert(control_of(folder).get("/metrics")["families"], list[Family])


def _show(last: Status) -> None:
    from synchromesh.cli.screen import screen
    from synchromesh.cli.show import console

    console().print(screen(last))


def _watch(folder: Path, last: Status) -> Status:
    """Redraw until Ctrl-C and return the last status; a system that is down is waited for.

    Where it is no terminal that shows it, screens follow each other.
    """
    import asyncio
    import time
    from contextlib import ExitStack
    from functools import partial

    from rich.console import RenderableType
    from rich.live import Live

    from synchromesh.cli.screen import screen
    from synchromesh.cli.show import console
    from synchromesh.system.control.rates import rates

    out = console()
    draw: Callable[[RenderableType], None] = out.print
    try:
        before, before_s = read_metrics(folder), time.monotonic()
        with ExitStack() as enter:
            if out.is_terminal:
                live = enter.enter_context(Live(console=out, auto_refresh=False))
                draw = partial(live.update, refresh=True)
            draw(screen(last))
            while True:
                asyncio.run(asyncio.sleep(WATCH_EVERY_S))
                try:
                    last = ask(folder)
                    after, after_s = read_metrics(folder), time.monotonic()
                except SynchromeshError as error:
                    draw(screen(last, error.message))
                else:
                    done = rates(before, after, after_s - before_s)
                    before, before_s = after, after_s
                    draw(screen(last, work=done))
    except KeyboardInterrupt:
        return last
