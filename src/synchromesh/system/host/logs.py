"""The log of a running system: JSON lines in a bounded set of files, or on stdout."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from synchromesh.errors import ConfigError
from synchromesh.telemetry import JsonFormatter

FILE_BYTES_MAX = 10_000_000
FILES_MAX = 5


def log_to(path: Path | None) -> Callable[[], None]:
    """Log `synchromesh` and users' loggers to a file, None for stdout; returns what stops it.

    Raises:
        ConfigError: the file cannot be written.
    """
    handler = logging.StreamHandler(sys.stdout) if path is None else _file(path)
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


def _file(path: Path) -> PrivateFile:
    try:
        return PrivateFile(
            path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_MAX - 1, encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            f"the log {path} cannot be written: {error.strerror}; make it writable"
        ) from error


class PrivateFile(logging.handlers.RotatingFileHandler):
    """A rotating log in private files, since records may name customers.

    A record that cannot be written, as on a full disk, is lost: the log must neither stop the work
    nor fill the terminal. Once it can be written again, it says how many were lost.
    """

    lost = 0
    _reported = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, followed by the number of records lost before it, if any."""
        lost = self.lost
        super().emit(record)
        if self.lost == lost > self._reported:
            missing, self._reported = lost - self._reported, lost
            notice = logging.LogRecord(
                __name__, logging.WARNING, "", 0, f"{missing} log records were lost", None, None
            )
            super().emit(notice)

    def close(self) -> None:
        """Close the file; what cannot be flushed is lost."""
        with suppress(OSError):
            super().close()

    def _open(self) -> TextIOWrapper[Any]:
        handle = os.open(
            self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        return open(handle, "a", encoding=self.encoding)

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802  its name in logging
        """Count a record as lost."""
        self.lost += 1
