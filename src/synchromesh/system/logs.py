"""Log records of a running system: JSON lines in a bounded set of files of the run directory."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Callable
from pathlib import Path

from synchromesh.telemetry import JsonFormatter

FILE_BYTES_MAX = 10_000_000
FILES_MAX = 5


def log_to(path: Path) -> Callable[[], None]:
    """Write records of `synchromesh` and of users' loggers to a file; returns how to stop."""
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_MAX - 1, encoding="utf-8", delay=True
    )
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # The file may name customers: it is for this user alone.
    path.touch(mode=0o600, exist_ok=True)

    def stop() -> None:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()

    return stop
