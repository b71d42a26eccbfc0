"""`synchromesh dev`: run a whole system in one process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from synchromesh.cli.show import console, print_json
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config


@click.command()
@click.option("--json", "is_json", is_flag=True, help="Print the URLs as one JSON object.")
@click.pass_obj
def dev(folder: Path, is_json: bool) -> int:
    """Run the system of this folder in one process until Ctrl-C.

    Every service has a SQLite file in .synchromesh/data, and a URL. Exits 3 when something of it
    failed too often.
    """
    config = load_config(folder)
    return asyncio.run(_run(System(config, folder, RealRuntime()), is_json))


async def _run(system: System, is_json: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await system.start()
    try:
        _announce(system, is_json)
        failure = await system.wait(stop)
    finally:
        await system.stop()
    if failure:
        click.echo(f"synchromesh: {failure}", err=True)
        return 3
    return 0


def _announce(system: System, is_json: bool) -> None:
    info = system.info
    if is_json:
        print_json({"control": info.control, "services": info.services})
        return
    out = console()
    out.print(f"[bold]{info.system}[/bold] runs in process {info.pid}; Ctrl-C stops it")
    for name, url in info.services.items():
        out.print(f"  {name:<18} {url}")
    out.print(f"  {'control':<18} {info.control}")
