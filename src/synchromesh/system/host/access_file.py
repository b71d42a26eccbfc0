"""Writes the access log of a gateway: JSON lines in a bounded set of private files.

Lines are gathered for a moment and written by another thread, so that a slow disk slows no request.
Each of those that cannot be written, as on a full disk, is lost and counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from synchromesh.errors import ConfigError
from synchromesh.gateway.access_log import AccessLog, Served
from synchromesh.system.host.logs import FILE_BYTES_MAX, FILES_MAX

EVERY_S = 0.25

_log = logging.getLogger("synchromesh.system")


class AccessFile:
    """Writes what an access log has taken, again and again; `run` is a supervised loop.

    Attributes:
        log: what is written.
        lost: how many lines could not be written.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, log: AccessLog, path: Path) -> None:
        self.log = log
        self.lost = 0
        self._told = 0
        self._path = path
        self._handle = -1
        # Whether the last line was not written to its end.
        self._is_torn = False
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"the access log {path} cannot be written: {error.strerror}; make it writable, or "
                'set [gateway] access_log = "off"'
            ) from error

    async def run(self) -> None:
        """Write what has come, four times a second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(EVERY_S)
            if waiting := self.log.take():
                # Awaited to its end: two threads would write into each other's lines.
                await asyncio.shield(loop.run_in_executor(None, self._write, waiting))
            self._tell()

    def close(self) -> None:
        """Write what is left, and close the file. May be repeated."""
        if waiting := self.log.take():
            self._write(waiting)
        self._tell()
        self._close()

    def _write(self, served: Sequence[Served]) -> None:
        data = b"".join(b"%b\n" % each.line for each in served)
        if self._is_torn:
            data = b"\n" + data
        try:
            if self._handle < 0:
                self._open()
            self._turn(len(data))
            while data:
                data = data[os.write(self._handle, data) :]
                self._is_torn = bool(data)
        except OSError:
            self.lost += data.count(b"\n")

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o600)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _turn(self, more: int) -> None:
        """Go on in another file where this one would become too long with `more` bytes."""
        own = os.fstat(self._handle)
        if own.st_size + more <= FILE_BYTES_MAX:
            return
        # The process before may still write, and have turned it already.
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == own.st_ino:
                names = [self._path, *(self._named(number) for number in range(1, FILES_MAX))]
                for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                    with suppress(FileNotFoundError):
                        os.replace(newer, older)
        self._close()
        self._open()

    def _named(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _tell(self) -> None:
        """Say in the log of the process how many lines are missing, once for all that are new."""
        missing = self.log.dropped + self.lost
        if missing > self._told:
            count, self._told = missing - self._told, missing
            _log.warning("%d lines of the access log are missing: %s", count, self._path)

    def __repr__(self) -> str:
        return f"<AccessFile {self._path.name}, {self.lost} lost>"
