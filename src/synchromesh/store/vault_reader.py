"""Reads the file of a service's keys beside the process that owns it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from synchromesh.errors import StoreError
from synchromesh.runtime import Disk
from synchromesh.sealing import SubjectRecord
from synchromesh.store.sqlite_errors import SqliteFault, translate
from synchromesh.store.vault import FIND, lost_keys, record_of, vault_path


class VaultReader:
    """Reads what is known of subjects, from the file of a service that runs or not."""

    def __init__(self, database: str, disk: Disk) -> None:
        self.path = vault_path(database)
        self._disk = disk

    def subjects(self, *, is_erased: bool, limit: int) -> list[SubjectRecord]:
        """Return subjects, those that came or were erased last first; none where no file is.

        Raises:
            StoreError: it cannot be read.
        """
        which, at = ("not null", "erased_us") if is_erased else ("null", "made_us")
        rows = self._ask(
            "select name, key, made_us, erased_us, who, why from subject "
            f"where erased_us is {which} order by {at} desc, tag limit ?",
            limit,
        )
        return [record_of(row) for row in rows]

    def find(self, subject: str) -> SubjectRecord | None:
        """Return what is known of a subject; None for nothing.

        Raises:
            StoreError: it cannot be read.
        """
        for (pepper,) in self._ask("select pepper from vault"):
            tag = blake2b(subject.encode(), key=pepper, digest_size=16).digest()
            for row in self._ask(FIND, tag):
                return record_of(row)
        return None

    def accesses(self, subject: str, limit: int = 100) -> list[tuple[int, str, str]]:
        """Return when, to whom and why the values of a subject were shown, the last first."""
        for (pepper,) in self._ask("select pepper from vault"):
            tag = blake2b(subject.encode(), key=pepper, digest_size=16).digest()
            return self._ask(
                "select at_us, who, why from access where tag = ? order by at_us desc limit ?",
                tag, limit,
            )  # fmt: skip
        return []

    def faults(self, expected: str) -> list[str]:
        """Return what is wrong with the file, of which the database knows the id."""
        try:
            ids = [str(each) for (each,) in self._ask("select id from vault")]
            given_up = [str(each) for (each,) in self._ask("select id from given_up")]
        except StoreError as error:
            return [f"the keys of its personal values cannot be read: {error.message}"]
        if expected and expected not in (*ids, *given_up):
            return [lost_keys(expected, self.path)]
        return []

    def _ask(self, sql: str, *values: object) -> list[Any]:
        if self._disk.file_id(self.path) is None:
            return []
        try:
            connection = self._disk.connect(self.path, read_only=True)
            try:
                return connection.execute(sql, values).fetchall()
            finally:
                connection.close()
        except SqliteFault as error:
            raise translate(error, path=self.path) from error
