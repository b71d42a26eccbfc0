"""`synchromesh run`: one replica in the foreground, as a container or a systemd unit runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synchromesh.cli.config import settings_option
from synchromesh.cli.output import print_error

if TYPE_CHECKING:
    from synchromesh.system.config.schema import SystemConfig

FAILED = 3


@click.command()
@click.argument("name")
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what lasts as long as the process here, not in .synchromesh.",
)
@settings_option
@click.pass_obj
def run(folder: Path, name: str, run_dir: Path | None, settings: tuple[str, ...]) -> int:
    """Run one replica of a service, or of the gateway, in the foreground until SIGTERM.

    NAME is a service, such as orders, one of several on this host, such as quoting#2, or gateway.
    It needs [engine] nats, where replicas find each other, [system] key, and [engine] postgres for
    each service that has a database. Nobody starts it again: that is up to whoever runs it.

    Its log is on stdout, as JSON lines. SIGTERM drains it within 10 s, a second one ends it at
    once. Exits 2 with a mistake, and with on_failure = "stop" 3 where a part fails too often.
    """
    import asyncio

    from synchromesh.system import RunDir, loop_factory
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.host.replica import replica_spec, run_replica

    def reread() -> SystemConfig:
        return load_config(folder, environment=os.environ, flags=settings)

    config = reread()
    spec = replica_spec(config, folder, name)
    rundir = RunDir(folder, run_dir.resolve() if run_dir else None)
    with asyncio.Runner(loop_factory=loop_factory(config.system.loop)) as runner:
        failure = runner.run(run_replica(spec, folder, rundir, reread))
    if failure:
        print_error(f"synchromesh: {failure}")
        return FAILED
    return 0
