"""Log records of a running system: JSON lines in a bounded set of files of the run directory."""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from synchromesh.errors import ConfigError
from synchromesh.telemetry import JsonFormatter

FILE_BYTES_MAX = 10_000_000
FILES_MAX = 5


def log_to(path: Path) -> Callable[[], None]:
    """Write records of `synchromesh` and of users' loggers to a file; returns how to stop.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        handler = PrivateFile(
            path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_MAX - 1, encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            f"the log {path} cannot be written: {error.strerror}; make it writable"
        ) from error
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)

    def stop() -> None:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()

    return stop


class PrivateFile(logging.handlers.RotatingFileHandler):
    """Writes files that their user alone can read, for they may name customers.

    A record that cannot be written, as on a full disk, is lost: the log must neither stop the work
    nor fill the terminal. Once it can be written again, it says how many were lost.
    """

    lost = 0
    _told = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and after it how many could not be written before."""
        lost = self.lost
        super().emit(record)
        if self.lost == lost > self._told:
            missing, self._told = lost - self._told, lost
            told = logging.LogRecord(
                __name__, logging.WARNING, "", 0, f"{missing} log records were lost", None, None
            )
            super().emit(told)

    def close(self) -> None:
        """Close the file; what is still to be written, and cannot be, is lost."""
        with suppress(OSError):
            super().close()

    def _open(self) -> TextIOWrapper[Any]:
        handle = os.open(
            self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        return open(handle, "a", encoding=self.encoding)

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802  its name in logging
        """Count a record that could not be written."""
        self.lost += 1
