"""What an operator reads of the databases themselves, and how one is backed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from synchromesh.errors import BadRequest
from synchromesh.events.verification import log_faults
from synchromesh.messaging import gone_subscribers
from synchromesh.store import StoreReader
from synchromesh.store.health import contents_of, faults_of, isolation_faults
from synchromesh.system.control.actions import Action, ReadAction, ReadRequest
from synchromesh.system.control.beside import ask_beside
from synchromesh.system.control.personal_actions import keys_faults

# Each goes through a whole file.
COUNT_WITHIN_S = 120.0
VERIFY_WITHIN_S = 1800.0
BACKUP_WITHIN_S = 3600.0


class DbStatus(ReadRequest, frozen=True):
    """Whose database."""


class DbVerify(ReadRequest, frozen=True):
    """Whose database."""


class DbBackup(ReadRequest, frozen=True, kw_only=True):
    """Whose database, the absolute path of the folder for it, and the name of the system."""

    to: str
    system: str


async def _status(reader: StoreReader, _: DbStatus) -> dict[str, Any]:
    now_us = reader.beside.now_us()
    contents = await ask_beside(reader, lambda own: contents_of(own, now_us=now_us))
    gone = await ask_beside(reader, gone_subscribers)
    return {
        "service": reader.service,
        "path": reader.place,
        "wal_bytes": _size(f"{reader.place}-wal"),
        **asdict(contents),
        "gone": [asdict(each) for each in gone],
    }


async def _verify(reader: StoreReader, _: DbVerify) -> dict[str, Any]:
    async def ask(own: StoreReader) -> list[str]:
        faults = await faults_of(own)
        return [
            *faults,
            *await log_faults(own),
            *await keys_faults(own),
            *await isolation_faults(own),
        ]

    # By the connection that serves, too.
    faults = dict.fromkeys([*await isolation_faults(reader), *await ask_beside(reader, ask)])
    return {"service": reader.service, "path": reader.place, "faults": list(faults)}


async def _backup(reader: StoreReader, wanted: DbBackup) -> dict[str, Any]:
    folder = Path(wanted.to)
    if not folder.is_absolute():
        raise BadRequest(f"the folder {wanted.to!r} of a backup is not absolute; name it from /")
    made = await reader.beside.back_up(folder, system=wanted.system)
    return {
        "service": reader.service,
        "folder": str(made.folder),
        **asdict(made.manifest),
        "keys": made.keys,
    }


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


ACTIONS: tuple[Action, ...] = (
    ReadAction("db.status", DbStatus, _status, within_s=COUNT_WITHIN_S),
    ReadAction("db.verify", DbVerify, _verify, within_s=VERIFY_WITHIN_S),
    ReadAction("db.backup", DbBackup, _backup, within_s=BACKUP_WITHIN_S),
)
