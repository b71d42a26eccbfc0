"""`synchromesh dev`: run a whole system, in one process or in one for each service."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synchromesh.cli.config import settings_option
from synchromesh.cli.main import IS_PROGRAM
from synchromesh.cli.output import print_error, print_json, print_line, print_verbatim

if TYPE_CHECKING:
    import asyncio

    from synchromesh.cli.reload import Reloader
    from synchromesh.cli.terminal import Terminal
    from synchromesh.system import System

FAILED = 3
CUT = 130


@click.command()
@settings_option
@click.option("--split", "is_split", is_flag=True, help="Run a process for each service.")
@click.option("--reload", "is_reload", is_flag=True, help="Take up code that changes.")
@click.option(
    "--engine",
    "engines",
    type=click.Choice(["postgres", "nats", "all"]),
    multiple=True,
    help="Start this server, or all, unless [engine] has its URL.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the URLs as one JSON object.")
@click.pass_obj
def dev(
    folder: Path,
    settings: tuple[str, ...],
    is_split: bool,
    is_reload: bool,
    engines: tuple[str, ...],
    is_json: bool,
) -> int:
    """Run the system of this folder in one process until Ctrl-C.

    Every service has a SQLite file in .synchromesh/data, and a URL. That of the console lets one
    browser in, once; `synchromesh console` prints another. With --split it has a process
    too, which is started again when it ends. Ctrl-C shuts down gracefully, a second one at once.

    With --engine postgres (extra `engines`) databases are on a PostgreSQL server, which is started
    and stopped with the system; its data is kept in .synchromesh/postgres. With --engine nats the
    service registry is on a NATS server, which carries messages, too, in .synchromesh/nats. With
    --engine all the system is on both.

    What raises is shown here, with its trace and your own frames; `synchromesh logs` has all of it.
    A part that fails too often is given up alone, see `synchromesh status`; with
    on_failure = "stop" it ends the system, and this exits 3.

    With --reload (extra `reload`) changed code is taken up once nothing has changed for 0.3 s: with
    --split by new processes of those services whose code it is, else by a new start of all. What
    is broken replaces nothing, and is shown.
    """
    from synchromesh.errors import SynchromeshError

    is_program = click.get_current_context().meta[IS_PROGRAM]
    if is_reload and not is_program:
        raise click.UsageError("--reload starts its program anew; run it as one of its own")
    try:
        return _dev(folder, settings, Ways(is_split, is_reload, is_json, engines), is_program)
    except SynchromeshError as error:
        if not is_reload:
            raise
        from synchromesh.cli import reload

        if reload.AGAIN not in os.environ:
            raise
        reload.try_again(folder, error)


@dataclass(frozen=True, slots=True)
class Ways:
    """How a system is run."""

    is_split: bool
    is_reload: bool
    is_json: bool
    engines: tuple[str, ...] = ()


def _dev(folder: Path, settings: tuple[str, ...], ways: Ways, is_program: bool) -> int:
    import asyncio

    from synchromesh.runtime import RealRuntime
    from synchromesh.system import System, loop_factory
    from synchromesh.system.config.definitions import load_gateway, load_services
    from synchromesh.system.config.parts import gateways_left_out
    from synchromesh.system.config.policy_check import contradictions
    from synchromesh.system.config.reading import read_layers

    config, layers = read_layers(folder, environment=os.environ, flags=settings)
    engines = []
    if ways.engines:
        from synchromesh.system.host.engines import engines_of

        engines = engines_of(ways.engines, config, folder)
        # As if they had been given: whoever reads the configuration again finds them there.
        settings = (*settings, *(f"engine.{each.name}={each.url}" for each in engines))
        config, layers = read_layers(folder, environment=os.environ, flags=settings)
    forks, reloader = None, None
    if ways.is_split and is_program:
        from synchromesh.system.host.fork_server import start_fork_server

        # Before anything of the system's own is imported: its processes import it for themselves.
        forks = start_fork_server(folder, config)
    # Before a loop takes the signals: Ctrl-C has to end code that blocks while it is imported.
    load_services(config, folder)
    for each in contradictions(config, load_gateway(config, folder), layers.is_written):
        print_error(f"synchromesh: warning: {each}")
    if not ways.is_split and (left_out := gateways_left_out(config)):
        print_error(f"synchromesh: warning: {left_out}")
    system = System(
        config, folder, RealRuntime(), is_split=ways.is_split, forks=forks, engines=engines
    )
    system.reread = lambda: read_layers(folder, environment=os.environ, flags=settings)[0]
    if ways.is_reload:
        from synchromesh.cli.reload import Reloader

        reloader = Reloader(system, config, folder, settings, is_split=ways.is_split)
    with asyncio.Runner(loop_factory=loop_factory(config.system.loop)) as runner:
        code = runner.run(_run(system, folder, ways, reloader))
    if reloader is not None and reloader.is_over:
        reloader.start_anew()
    return code


async def _run(system: System, folder: Path, ways: Ways, reloader: Reloader | None) -> int:
    import asyncio
    import signal

    from synchromesh.cli.terminal import Migrations, Terminal
    from synchromesh.system.host.waits import unless

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)

    def interrupted() -> None:
        if stop.is_set():
            system.cut()
            os._exit(CUT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    with closing(Terminal(folder)) as terminal, Migrations():
        if await unless(stop, system.start()):
            return await _until(stop, system, terminal, ways, reloader)
    click.echo("synchromesh: stopped before the system was up", err=True)
    return 0


async def _until(
    stop: asyncio.Event, system: System, terminal: Terminal, ways: Ways, reloader: Reloader | None
) -> int:
    """Show what a system that is up has to say until it is stopped, or fails."""
    import asyncio

    is_over = asyncio.Event()
    showing = asyncio.ensure_future(terminal.run(is_over))
    reloading = asyncio.ensure_future(reloader.run(stop)) if reloader is not None else None
    try:
        _announce(system, ways.is_split, ways.is_json)
        failure = await system.wait(stop)
    finally:
        if reloading is not None:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
        await system.stop()
        is_over.set()
        await asyncio.gather(showing, return_exceptions=True)  # its screen may have gone
    if failure:
        print_error(f"synchromesh: {failure}")
        return FAILED
    return 0


def _announce(system: System, is_split: bool, is_json: bool) -> None:
    from synchromesh.system.config.engine_section import FILES

    info = system.info
    if is_json:
        urls = {"control": info.control, "gateway": info.gateway, "services": info.services}
        more = {"admin": info.admin, "admin_of": info.admin_of, "console": system.console_url()}
        more |= {"engines": system.engines, "gateways": info.gateways}
        print_json({**urls, **more})
        return
    and_others = ", and one for each service" if is_split else ""
    name = click.style(info.system, bold=True)
    print_verbatim(f"{name} runs in process {info.pid}{and_others}; Ctrl-C stops it")
    if system.engines != FILES:
        for what, engine in system.engines.items():
            print_line(f"  {what:<18} {engine}")
    gateway = {"gateway": info.gateway} if info.gateway else {}
    urls = {**info.services, **(info.gateways or gateway)}
    own = {"control": info.control, "admin": info.admin, "console": system.console_url()}
    for part, url in {**urls, **own}.items():
        print_line(f"  {part:<18} {url}")
