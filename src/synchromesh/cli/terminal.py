"""What `synchromesh dev` shows while the system runs: what failed in any of its processes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

import click

from synchromesh.cli.log_lines import is_for_terminal, shown
from synchromesh.cli.output import print_error
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.log_files import READ_BYTES, LogFollower

EVERY_S = 0.2
# How many records are shown of one look; a bug that strikes at each call must not fill the screen.
SHOWN_MAX = 20


class Migrations(logging.Handler):
    """Shows which migration takes long, at once: what starts shows nothing else before it is up."""

    _logger = logging.getLogger("synchromesh.migrations")

    def __enter__(self) -> None:
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line to standard error; a screen that has gone stops no migration."""
        with suppress(OSError):
            print_error(f"synchromesh: {record.getMessage()}")


class Terminal:
    """Shows errors of all processes, and what they print, on standard error, as it comes.

    Made before the system starts, it shows what comes from then on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # A process that prints without end is followed more slowly than it prints.
        self._follower = LogFollower(
            RunDir(folder).telemetry, wall_us=RealRuntime().wall_us, bytes_max=READ_BYTES
        )

    async def run(self, is_over: asyncio.Event) -> None:
        """Show what comes until that is over; what had come by then is shown, too."""
        try:
            is_last = False
            while not is_last:
                with suppress(TimeoutError):
                    await asyncio.wait_for(is_over.wait(), EVERY_S)
                is_last = is_over.is_set()
                # In a thread: megabytes of what somebody printed must not hold up calls.
                self._show(await asyncio.to_thread(self.look, is_last=is_last))
        finally:
            self.close()

    def close(self) -> None:
        """Close the files that it reads. May be repeated."""
        self._follower.close()

    def look(self, *, is_last: bool = False) -> list[str]:
        """Return what has come since, as it is shown.

        Args:
            is_last: nobody writes any more: what has no end of line is a line, too.
        """
        lines = [line for line in self._follower.poll(is_last=is_last) if is_for_terminal(line)]
        texts = [shown(line, self._folder) for line in lines[:SHOWN_MAX]]
        if len(lines) > SHOWN_MAX:
            texts.append(f"{len(lines) - SHOWN_MAX} more; see: synchromesh logs")
        return texts

    def _show(self, texts: list[str]) -> None:
        for text in texts:
            click.echo(text, err=True)
