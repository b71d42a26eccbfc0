"""Backs up a SQLite file while it is written, and puts one back.

A backup is a folder with the file and a manifest, which appears whole or not at all. The pages are
copied in small steps by SQLite's online backup. It begins anew whenever the source is written in
between, for ever beside a busy writer: so the steps are made within one read transaction, which
sees one state. The write-ahead log cannot be emptied meanwhile, and grows.

Putting one back makes another log of it: what comes after it is not what came after it before. The
checkpoints in the file are of the same moment as the file, so that they are carried over.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from synchromesh.errors import StoreBroken, StoreError, StoreFull, StoreReadOnly
from synchromesh.runtime import Disk, RealThreads, Threads
from synchromesh.store.backup import Manifest
from synchromesh.store.migrations import pending_migrations, read_applied
from synchromesh.store.sqlite_errors import FULL, SqliteFault, code_of, translate
from synchromesh.store.taken_along import FORGET
from synchromesh.store.unit import Schema

PAGES = 256
PAUSE_S = 0.005
MANIFEST = "manifest.json"
_FORMAT = 1
_CHUNK = 1 << 20
_THREADS = RealThreads()


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a database that was put back.

    Attributes:
        kept_as: where the file is that was replaced; "" where there was none.
        unknown_since: when the backup was taken: what was done after that is not in it.
    """

    service: str
    log_id: str
    before: str
    kept_as: str
    unknown_since: str


def back_up(
    path: str,
    folder: Path,
    *,
    system: str,
    service: str,
    now_us: int,
    disk: Disk,
    pages: int = PAGES,
    threads: Threads = _THREADS,
) -> tuple[Path, Manifest]:
    """Copy a file, which may be in use, to a new folder below `folder`; it blocks its thread.

    Raises:
        StoreFull: there is no room for it; nothing is kept.
        StoreError: the file cannot be read, or the folder not be written; nothing is kept.
    """
    at = dt.datetime.fromtimestamp(now_us / 1e6, dt.UTC)
    final = folder / f"{service}-{at:%Y%m%dT%H%M%S.%fZ}"
    partial = folder / f".{final.name}.partial"
    try:
        partial.mkdir(parents=True, mode=0o700)
        copy = partial / f"{service}.db"
        log_id, versions = _copy(path, copy, disk, pages, threads)
        manifest = Manifest(
            _FORMAT, system, service, log_id, at.isoformat(), versions,
            copy.stat().st_size, _sha256(copy),
        )  # fmt: skip
        (partial / MANIFEST).write_bytes(
            msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        )
        for each in (copy, partial / MANIFEST, partial):
            _flush(each)
        partial.rename(final)
        _flush(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(error, folder) from error
        raise
    return final, manifest


def _copy(
    path: str, copy: Path, disk: Disk, pages: int, threads: Threads
) -> tuple[str, dict[str, int]]:
    """Copy one state of a file, check the copy, and return its log id and versions."""
    try:
        with (
            contextlib.closing(disk.connect(path, read_only=True)) as source,
            contextlib.closing(disk.connect_copy(str(copy))) as target,
        ):
            source.execute("begin")
            log_id = source.execute("select value from sm_meta where name = 'log_id'").fetchone()[0]
            versions = {owner: each[-1].version for owner, each in read_applied(source).items()}
            size = source.execute(
                "select page_count * page_size from pragma_page_count, pragma_page_size"
            ).fetchone()[0]
            _check_room(copy.parent, int(size))
            source.backup(
                target, pages=pages, progress=lambda *_: threads.sleep(PAUSE_S), sleep=0.0
            )
            # One file alone, wherever it is taken to.
            target.execute("pragma journal_mode = delete")
            said = target.execute("pragma quick_check(1)").fetchone()[0]
    except SqliteFault as error:
        if code_of(error) == FULL:
            raise StoreFull(f"the backup does not fit beside {copy.parent}: {error}") from error
        raise translate(error, path=path) from error
    if said != "ok":
        raise StoreBroken(
            f"{path} is damaged: {said}; no backup was made of it, see synchromesh db verify"
        )
    return str(log_id), versions


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StoreFull(
            f"the backup needs {size} bytes, and the disk of {folder.parent} has {free} left; make "
            "room, or take another folder. Nothing was written"
        )


def read_manifest(backup: Path) -> Manifest:
    """Read the manifest of a backup.

    Raises:
        StoreBroken: it is no backup, or of a newer release.
    """
    try:
        manifest = msgspec.json.decode((backup / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreBroken(
            f"{backup} is no backup: {MANIFEST} cannot be read ({error}); name a folder that "
            "synchromesh db backup has made"
        ) from error
    if manifest.format != _FORMAT:
        raise StoreBroken(
            f"{backup} was made by a newer release (format {manifest.format}); restore it with that"
        )
    return manifest


def restore(
    path: str,
    backup: Path,
    *,
    schemas: Sequence[Schema],
    adopt: Sequence[str],
    log_id: str,
    change: tuple[int, str, str],
    disk: Disk,
) -> Restored:
    """Put a backup in the place of a service's file, of which the caller holds the lock.

    The file that was there is kept beside it. Until the last step, which is one rename, it is the
    one that a start finds.

    Args:
        schemas: those of the code that is to use it.
        adopt: statements that carry over what is of one log to another, given as (new, old).
        log_id: the new log's.
        change: when, who and why, as it is recorded.

    Raises:
        StoreTooNew, ContractError: this code may not use it.
        StoreBroken: the backup is damaged.
        StoreFull, StoreError: it cannot be written; nothing was changed.
    """
    manifest = read_manifest(backup)
    source, made = backup / f"{manifest.service}.db", Path(f"{path}.restoring")
    at = dt.datetime.fromtimestamp(change[0] / 1e6, dt.UTC)
    kept_as = f"{path}.before-restore-{at:%Y%m%dT%H%M%S.%fZ}" if Path(path).exists() else ""
    try:
        made.unlink(missing_ok=True)
        shutil.copyfile(source, made)
        made.chmod(0o600)
        if _sha256(made) != manifest.sha256:
            raise StoreBroken(
                f"{source} is not what was backed up: its checksum differs; take another backup"
            )
        _adapt(made, manifest, schemas, adopt, log_id, change, disk)
        _flush(made)
        if kept_as:
            _keep(path, kept_as, disk)
        os.replace(made, path)
        _flush(Path(path).parent)
    except BaseException as error:
        if kept_as and made.exists():
            _keep_no_more(path, kept_as)
        made.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(error, Path(path).parent) from error
        raise
    return Restored(manifest.service, log_id, manifest.log_id, kept_as, manifest.taken_at)


def _adapt(
    made: Path,
    manifest: Manifest,
    schemas: Sequence[Schema],
    adopt: Sequence[str],
    log_id: str,
    change: tuple[int, str, str],
    disk: Disk,
) -> None:
    """Make another log of a copy, in one transaction, once it is known that code may use it."""
    at_us, who, why = change
    try:
        with contextlib.closing(disk.connect(str(made))) as connection:
            pending_migrations(connection, schemas, path=str(made).removesuffix(".restoring"))
            connection.execute("begin immediate")
            connection.execute("update sm_meta set value = ? where name = 'log_id'", (log_id,))
            connection.execute(FORGET)
            for statement in adopt:
                connection.execute(statement, (log_id, manifest.log_id))
            what = f"restored from the backup of {manifest.taken_at}, log {manifest.log_id}"
            connection.execute("insert into sm_change values (?, ?, ?, ?)", (at_us, what, who, why))
            connection.execute("commit")
    except SqliteFault as error:
        raise translate(error, path=str(made)) from error


def _keep(path: str, kept: str, disk: Disk) -> None:
    """Keep the file that is to be replaced beside it, whole."""
    # Its write-ahead log would be taken for the other file's. One that is whole is emptied into it.
    with contextlib.suppress(*SqliteFault), contextlib.closing(disk.connect(path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    os.link(path, kept)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{kept}{suffix}")


def _keep_no_more(path: str, kept: str) -> None:
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.rename(f"{kept}{suffix}", f"{path}{suffix}")
    with contextlib.suppress(OSError):
        os.unlink(kept)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(error: OSError, folder: Path) -> StoreError:
    place = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"the disk of {folder} is full: nothing was kept; make room and try again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StoreReadOnly(f"{place} cannot be written ({error.strerror}); nothing was changed")
    return StoreBroken(f"{place}: {error.strerror}; nothing was changed")
