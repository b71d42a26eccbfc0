"""What `synchromesh dev` shows while the system runs: what failed in any of its processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from synchromesh.cli.log_lines import is_for_terminal, shown
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.log_files import LogFollower

EVERY_S = 0.2
# How many records are shown of one look; a bug that strikes at each call must not fill the screen.
SHOWN_MAX = 20


async def show_failures(folder: Path) -> None:
    """Show errors of all processes on standard error, as they are logged, until it is cancelled."""
    follower = LogFollower(RunDir(folder).telemetry, wall_us=RealRuntime().wall_us)
    try:
        while True:
            await asyncio.sleep(EVERY_S)
            _show(follower, folder)
    finally:
        _show(follower, folder)
        follower.close()


def _show(follower: LogFollower, folder: Path) -> None:
    lines = [line for line in follower.poll() if is_for_terminal(line)]
    for line in lines[:SHOWN_MAX]:
        click.echo(shown(line, folder), err=True)
    if len(lines) > SHOWN_MAX:
        click.echo(f"{len(lines) - SHOWN_MAX} more; see: synchromesh logs", err=True)
