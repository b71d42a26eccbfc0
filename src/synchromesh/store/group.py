"""The transaction of a group of units: one commit for all, and each of them can be undone alone.

A savepoint for each unit would do, at a price: two statements, and a copy of each page that the
unit changes. Hardly any is needed:

    the unit changed nothing (it refused first, or broke a constraint) ─▶ there is nothing to undo
    nothing in the transaction is another unit's                        ─▶ it is rolled back whole
    a later unit has changed something, and fails                       ─▶ `NeedsSavepoint`

On `NeedsSavepoint` the whole group is run again, with savepoints. Where units fail so, they do it
in one group as in the next: the writer keeps to savepoints for a while.
"""

from __future__ import annotations

import sqlite3

from synchromesh.store.sqlite_unit import SqliteUnit

BEGIN = "begin immediate"


class NeedsSavepoint(Exception):
    """Signal that a unit has to be rolled back alone and has no savepoint."""


class Group:
    """Manage the transaction that the units of a group share, one unit after the other.

    Attributes:
        is_shared: it holds what a unit has written that succeeded.
        has_gone_back: a savepoint was of use.
    """

    __slots__ = ("_changes", "_connection", "_has_savepoints", "has_gone_back", "is_shared")

    def __init__(self, connection: sqlite3.Connection, *, has_savepoints: bool) -> None:
        self._connection = connection
        self._has_savepoints = has_savepoints
        self._changes = 0
        self.is_shared = False
        self.has_gone_back = False

    def begin(self) -> None:
        """Begin a unit; begin the transaction if none is open, set a savepoint if it needs one."""
        connection = self._connection
        if self.is_shared:
            if self._has_savepoints:
                connection.execute("savepoint sm_unit")
        elif not connection.in_transaction:
            connection.execute(BEGIN)
        self._changes = connection.total_changes

    def undo(self, unit: SqliteUnit) -> None:
        """Roll back what the unit has changed, and nothing else.

        Raises:
            NeedsSavepoint: the transaction holds changes of other units, and there is no savepoint.
        """
        connection = self._connection
        if not connection.in_transaction:
            return
        # Of what changes the schema the engine keeps no count.
        if connection.total_changes == self._changes and not unit.is_uncounted:
            return
        if not self.is_shared:
            connection.execute("rollback")
        elif self._has_savepoints:
            connection.execute("rollback to sm_unit")
            self.has_gone_back = True
        else:
            raise NeedsSavepoint

    def resume(self) -> None:
        """Continue the unit that was rolled back, in a transaction."""
        if not self._connection.in_transaction:
            self._connection.execute(BEGIN)
        self._changes = self._connection.total_changes

    def end(self) -> None:
        """End the unit; release its savepoint."""
        if self.is_shared and self._has_savepoints and self._connection.in_transaction:
            self._connection.execute("release sm_unit")
