"""The keys of a service's subjects, in a SQLite file of their own beside its database.

They are apart from what they encrypt: a backup of the database holds none, so that no restore gives
back what was erased. New keys are on the disk before the values that are sealed with them: the
writer flushes those of a group of units before it commits the group.

Erasing deletes a key; what is left is that it happened, who did it and why, under a keyed digest of
the subject's name. A subject who was erased gets no other key: what comes late, such as a message
that was on its way, is stored as erased.

A sealed value is base64 of: format (1), id of this file (8), nonce (12), AES-256-GCM. What
it belongs to is authenticated with it, so that it opens nowhere else.

Source: NIST SP 800-38D (GCM; random nonces of 96 bits, up to 2^32 values a key).
"""

from __future__ import annotations

import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import blake2b
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from synchromesh.errors import MissingExtra, PersonalUnreadable, StoreError
from synchromesh.runtime import DiskRuntime, RealThreads
from synchromesh.sealing import SubjectRecord
from synchromesh.store.sqlite_errors import SqliteFault, translate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT = b"\x01"
_ID_BYTES, _NONCE_BYTES, _KEY_BYTES = 8, 12, 32
# Keys in memory; beyond it they are read again.
_CACHED_MAX = 10_000
_THREADS = RealThreads()
_TABLES = (
    (
        "create table if not exists vault(one integer primary key check(one = 1), "
        "id text not null, pepper blob not null)"
    ),
    (
        "create table if not exists subject(tag blob primary key, name text, key blob, "
        "made_us integer not null, erased_us integer, who text, why text) without rowid"
    ),
    (
        "create table if not exists access(tag blob not null, at_us integer not null, "
        "who text not null, why text not null)"
    ),
    (
        "create table if not exists given_up(id text primary key, at_us integer not null, "
        "who text not null, why text not null) without rowid"
    ),
)
KNOWN_ID = "select value from sm_meta where name = 'keys_id'"
NOTE_ID = (
    "insert into sm_meta(name, value) values ('keys_id', ?) "
    "on conflict(name) do update set value = excluded.value"
)
"""Notes in a database which keys it is used with."""
_HAS_ERASED = "select 1 from subject where erased_us is not null limit 1"
FIND = "select name, key, made_us, erased_us, who, why from subject where tag = ?"
"""What is known of a subject, by its tag."""


class SqliteVault:
    """Seals and opens personal values; the process that owns the database uses it from any thread.

    Attributes:
        expected: the id of the file that the database was used with; "" where there was none yet.
        is_pending: keys were made that `flush` has to bring to the disk.
        left_over: why keys that were erased are still in bytes of the file; "" where none are.
        on_left_over: called when that begins, by whichever thread erases.
    """

    def __init__(self, path: str, *, service: str, runtime: DiskRuntime) -> None:
        self.path = path
        self._service = service
        self._runtime = runtime
        self.expected = ""
        self._lock: Any = _THREADS.lock()
        self._connection: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        self._id = b""
        self._pepper = b""
        self._given_up: frozenset[str] = frozenset()
        self._ciphers: dict[str, AESGCM | None] = {}
        self.is_pending = False
        self.left_over = ""
        self.on_left_over: Callable[[], None] = _nobody
        self._new: list[str] = []  # whose keys are pending
        # Keys that are pending are gone, and the writer does not know yet.
        self._is_spoiled = False

    @property
    def is_there(self) -> bool:
        """Whether there is a file."""
        return self._runtime.disk.file_id(self.path) is not None

    def prepare(self) -> str:
        """Open the file, or make it where there never was one, and return its id.

        Raises:
            PersonalUnreadable: it is lost.
            StoreError: it cannot be used.
        """
        with self._lock:
            self._open()
            return self._id.hex()

    def seal(self, subject: str, place: str, data: bytes) -> str | None:
        """Encrypt what belongs to a place under the subject's key; None for one who is erased.

        A key that is made for it has to be flushed before the value is kept.

        Raises:
            PersonalUnreadable: the file is lost.
            StoreError: a new key cannot be written; nothing was sealed.
        """
        with self._lock:
            cipher = self._cipher(subject, is_new_ok=True)
            if cipher is None:
                return None
            head = _FORMAT + self._id
        # From the kernel; in simulation from the seed.
        nonce = self._runtime.secret_rng.randbytes(_NONCE_BYTES)
        sealed = cipher.encrypt(nonce, data, self._bound(subject, place))
        return b64encode(head + nonce + sealed).decode()

    def flush(self, database: sqlite3.Connection | None = None) -> None:
        """Bring new keys to the disk, before the commit to which they belong.

        Args:
            database: notes in the same commit which keys it is used with, where it has none yet.

        Raises:
            sqlite3.OperationalError: it failed. It has no code: the database is not at fault.
        """
        with self._lock:
            try:
                self._bring()
            except SqliteFault as error:
                raise sqlite3.OperationalError(f"new keys, {self.path}: {error}") from error
        if database is not None and not self.expected:
            database.execute(NOTE_ID, (self._id.hex(),))

    def drop(self) -> None:
        """Forget new keys: nothing that was sealed with them is kept."""
        with self._lock:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("rollback")
            for subject in self._new:
                self._ciphers.pop(subject, None)
            self._new.clear()
            self.is_pending = self._is_spoiled = False

    def open(self, subject: str, place: str, sealed: str) -> bytes | None:
        """Decrypt what was sealed for this place; None for a subject who is erased.

        Raises:
            PersonalUnreadable: the key is not there, or it was sealed for another place.
            StoreError: the file cannot be read.
        """
        from cryptography.exceptions import InvalidTag

        try:
            raw = b64decode(sealed, validate=True)
        except ValueError:
            raw = b""
        head, nonce, body = raw[: 1 + _ID_BYTES], raw[9 : 9 + _NONCE_BYTES], raw[21:]
        with self._lock:
            cipher = self._cipher(subject, is_new_ok=False)
            if cipher is None:
                return None
            if head[:1] == _FORMAT and head[1:] != self._id:
                if head[1:].hex() in self._given_up:
                    return None
                lost = lost_keys(head[1:].hex(), self.path)
                raise PersonalUnreadable(lost, is_foreign=True)
        if isinstance(cipher, str):
            raise PersonalUnreadable(
                f"{self.path} has no key of subject {subject!r}, to whom a value of "
                f"{self._service} belongs: was an older copy of it put back? Put the newest one "
                "there, or erase the subject: synchromesh personal erase",
                is_foreign=head[:1] != _FORMAT,
            )
        try:
            plain: bytes = cipher.decrypt(nonce, body, self._bound(subject, place))
        except (InvalidTag, ValueError) as error:
            raise PersonalUnreadable(
                f"a personal value of subject {subject!r} in {self._service} is not one that was "
                f"sealed for {place.partition(chr(0))[0]}: the database was edited; restore a "
                "backup of it",
                is_foreign=True,
            ) from error
        return plain

    def is_erased(self, subject: str) -> bool:
        """Return whether a subject was erased.

        Raises:
            PersonalUnreadable, StoreError: the file is lost, or cannot be read.
        """
        with self._lock:
            if self._connection is None and not self.is_there and not self.expected:
                return False
            return self._cipher(subject, is_new_ok=False) is None

    def erase(self, subject: str, *, now_us: int, who: str, why: str) -> SubjectRecord | None:
        """Delete the key of a subject for good; return what was known of it, None for nothing.

        One who was erased before keeps the first record. Nobody who reads the file is waited for:
        until they end the bytes of the key are left over.

        Raises:
            PersonalUnreadable: the file is lost.
            StoreError: it cannot be written; the key is still there.
        """
        with self._lock:
            self._settle()
            found = self._record(subject)
            if found is None or found.erased_us is None:
                self._run(
                    "insert into subject(tag, made_us, erased_us, who, why) values (?, ?, ?, ?, ?) "
                    "on conflict(tag) do update set name = null, key = null, "
                    "erased_us = excluded.erased_us, who = excluded.who, why = excluded.why",
                    self._tag(subject), now_us, now_us, who, why,
                )  # fmt: skip
            self._ciphers[subject] = None
            assert self._connection is not None
            self.left_over = _overwrite(self._connection)
        if self.left_over:
            self.on_left_over()
        return found

    def overwrite(self) -> bool:
        """Try once to overwrite what is left over of erased keys; return whether nothing is."""
        with self._lock:
            if self._connection is not None and self.left_over and not self.is_pending:
                self.left_over = _overwrite(self._connection)
            return not self.left_over

    def find(self, subject: str) -> SubjectRecord | None:
        """Return what is known of a subject; None for nothing.

        Raises:
            PersonalUnreadable, StoreError: the file is lost, or cannot be read.
        """
        if not self.is_there and not self.expected:
            return None
        with self._lock:
            self._open()
            return self._record(subject)

    def note_access(self, subject: str, *, now_us: int, who: str, why: str) -> None:
        """Record that a subject's values were shown to somebody."""
        with self._lock:
            self._settle()
            self._run(
                "insert into access values (?, ?, ?, ?)", self._tag(subject), now_us, who, why
            )

    def give_up(self, *, now_us: int, who: str, why: str) -> str:
        """Take all that was sealed with a lost file as erased, begin another, and return its id."""
        with self._lock:
            lost, self.expected = self.expected, ""
            self._settle()
            self._run("insert into given_up values (?, ?, ?, ?)", lost, now_us, who, why)
            self._given_up |= {lost}
            return self._id.hex()

    @property
    def lost(self) -> str:
        """The id of the file that is lost; "" where none is."""
        if not self.expected:
            return ""
        try:
            self.prepare()
        except PersonalUnreadable:
            return self.expected
        return self.expected if self._is_gone() else ""

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
                self._ciphers.clear()
                self.is_pending = self._is_spoiled = False

    # -- under the lock --------------------------------------------------------------------------

    def _cipher(self, subject: str, *, is_new_ok: bool) -> Any:
        """Return the cipher of a subject; None for one who is erased, "" for one without a key."""
        try:
            return self._ciphers[subject]
        except KeyError:
            pass
        self._open()
        rows = self._run(FIND, self._tag(subject))
        if not rows and not is_new_ok:
            return ""
        if rows:
            key = rows[0][1]
        else:
            if self._is_gone():
                raise self._lost(self._id.hex())
            key = self._runtime.secret_rng.randbytes(_KEY_BYTES)
            self._keep(subject, key)
        if len(self._ciphers) >= _CACHED_MAX:
            self._ciphers.clear()
        cipher = self._ciphers[subject] = None if key is None else _aes_gcm(bytes(key))
        return cipher

    def _is_gone(self) -> bool:
        """Whether the file that is open is no longer at its path: what it gets would be lost."""
        return self._runtime.disk.file_id(self.path) != self._file_id

    def _settle(self) -> None:
        """Open the file, with nothing pending in it; a failure is the writer's to know, too."""
        self._open()
        try:
            self._bring()
        except SqliteFault as error:
            self._is_spoiled = self.is_pending = True
            raise translate(error, path=self.path) from error

    def _bring(self) -> None:
        """Commit what is pending; where it fails all of it is gone. Raises one of `SqliteFault`."""
        assert self._connection is not None
        if self._is_spoiled:
            raise sqlite3.OperationalError("new keys of personal data were not written")
        if self._connection.in_transaction:
            try:
                self._connection.execute("commit")
            except SqliteFault:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                raise
        self._new.clear()
        self.is_pending = False

    def _keep(self, subject: str, key: bytes) -> None:
        """Write a new key, in the transaction of those that are pending."""
        if not self.is_pending:
            self._run("begin immediate")
            self.is_pending = True
        self._new.append(subject)
        try:
            self._run(
                "insert into subject(tag, name, key, made_us) values (?, ?, ?, ?)",
                self._tag(subject), subject, key, self._runtime.wall_us(),
            )  # fmt: skip
        except StoreError:
            assert self._connection is not None
            # The engine may have rolled back those before it, which others in this group use.
            self._is_spoiled = not self._connection.in_transaction
            raise

    def _record(self, subject: str) -> SubjectRecord | None:
        rows = self._run(FIND, self._tag(subject))
        return record_of(rows[0]) if rows else None

    def _open(self) -> None:
        if self._connection is not None:
            return
        if self.expected and not self.is_there:
            raise self._lost(self.expected)
        try:
            connection = self._runtime.disk.connect(self.path, is_private=True)
        except SqliteFault as error:
            raise translate(error, path=self.path) from error
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            # What is deleted is overwritten, in the file and by the next checkpoint of its log.
            for pragma in ("journal_mode = wal", "synchronous = full", "secure_delete = on"):
                connection.execute(f"pragma {pragma}").fetchall()
            for table in _TABLES:
                connection.execute(table)
            rng = self._runtime.secret_rng
            connection.execute(
                "insert into vault values (1, ?, ?) on conflict(one) do nothing",
                (rng.randbytes(_ID_BYTES).hex(), rng.randbytes(_KEY_BYTES)),
            )
            ((said, pepper),) = connection.execute("select id, pepper from vault").fetchall()
            given_up = connection.execute("select id from given_up").fetchall()
            gone = {str(each) for (each,) in given_up}
            left_over = _overwrite(connection)  # by the process before
            if left_over and not connection.execute(_HAS_ERASED).fetchall():
                left_over = ""
            if self.expected and said != self.expected and self.expected not in gone:
                raise self._lost(self.expected)
        except BaseException as error:
            connection.close()
            if isinstance(error, SqliteFault):
                raise translate(error, path=self.path) from error
            raise
        self._id, self._pepper = bytes.fromhex(said), pepper
        self._given_up = frozenset(gone)
        self.left_over = left_over
        self._file_id = self._runtime.disk.file_id(self.path)
        self._connection = connection

    def _run(self, sql: str, *values: object) -> list[Any]:
        assert self._connection is not None
        try:
            return self._connection.execute(sql, values).fetchall()
        except SqliteFault as error:
            raise translate(error, path=self.path, sql=sql) from error

    def _tag(self, subject: str) -> bytes:
        return blake2b(subject.encode(), key=self._pepper, digest_size=16).digest()

    def _bound(self, subject: str, place: str) -> bytes:
        return f"{self._service}\0{subject}\0{place}".encode()

    def _lost(self, lost: str) -> PersonalUnreadable:
        return PersonalUnreadable(lost_keys(lost, self.path))

    def __repr__(self) -> str:
        return f"<SqliteVault {self.path}>"


def _overwrite(connection: sqlite3.Connection) -> str:
    """Overwrite what was deleted, without a wait; return why not, "" where it was.

    The log still has the page that a key was in, and so has the file: neither is changed under
    whoever reads them, as one who copies the file does.
    """
    ((patience_ms,),) = connection.execute("pragma busy_timeout").fetchall()
    try:
        connection.execute("pragma busy_timeout = 0").fetchall()
        ((is_held, _, _),) = connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    except SqliteFault as error:
        return str(error)
    finally:
        connection.execute(f"pragma busy_timeout = {patience_ms:d}").fetchall()
    return "another connection reads it" if is_held else ""


def _nobody() -> None:
    """Tell nobody."""


def vault_path(database: str) -> str:
    """Return where the keys are that belong to the database at a path.

    Example:
        >>> vault_path("/data/orders.db")
        '/data/orders.keys'
    """
    return f"{database.removesuffix('.db')}.keys"


def lost_keys(lost: str, path: str) -> str:
    """Say that keys are not where they should be, and what to do."""
    return (
        f"the keys {lost} of personal values are not in {path}: put that file back, with its -wal, "
        "and restart the service. If it is lost for good, take what was sealed with them as "
        f"erased: synchromesh personal give-up {PurePath(path).stem} --why TEXT"
    )


def record_of(row: tuple[Any, ...]) -> SubjectRecord:
    """Return what a row of `FIND` tells of a subject."""
    name, _, made_us, erased_us, who, why = row
    return SubjectRecord(name or "", made_us, erased_us, who or "", why or "")


def _aes_gcm(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingExtra("personal", needed_for="a personal value") from error
    return AESGCM(key)
