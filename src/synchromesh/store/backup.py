"""What a backup of a database is, whatever engine keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is of.

    Attributes:
        versions: of the tables, by their owner.
        sha256: of the file.
    """

    format: int
    system: str
    service: str
    log_id: str
    taken_at: str
    versions: dict[str, int]
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made: its folder, what it is of, and where the keys are that it lacks.

    Attributes:
        keys: "" where there are none.
    """

    folder: Path
    manifest: Manifest
    keys: str
