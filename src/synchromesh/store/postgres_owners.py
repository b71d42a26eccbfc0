"""The rows of replicas and duties on PostgreSQL, by the server's clock alone.

One connection of its own keeps the lease, so that no backlog of units holds up a renewal. Its
statements are READ COMMITTED, each a transaction: the row of a duty is what a claim and a unit meet
at. A unit that writes under an epoch locks the row FOR SHARE; one whose snapshot is older than a
claim is run again by that lock and then sees who owns it. So a claim waits for the units of the
owner before, and none of it commits after the claim.

A process that stands still in a unit keeps its locks. The server ends a session that is idle in a
transaction, but does not take one for idle that waits after a statement was prepared; and another
of the same process, which had waited for the lock, has it then. So the others end every session of
a replica without a lease whose transaction is older than a lease.

A standby takes no renewals, so that none is granted twice over one, as an advisory lock would be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager

from synchromesh.store.owners import TOPIC
from synchromesh.store.ownership import View
from synchromesh.store.postgres_connection import SESSIONS_OF, Connection
from synchromesh.store.postgres_errors import PostgresFault, translate
from synchromesh.store.postgres_limits import TimeLimit
from synchromesh.store.postgres_wakeups import CHANNEL, told

TABLES = (
    "create table sm_replica(id text primary key, able text not null, until_us bigint not null)",
    "create table sm_duty(name text primary key, owner text not null, epoch bigint not null)",
)
"""The replicas and what each is able to do, a line each; and who owns what."""

_NOW = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
_RENEW = (
    f"insert into sm_replica(id, able, until_us) values ($1, $2, {_NOW} + $3) "
    "on conflict(id) do update set able = excluded.able, until_us = excluded.until_us"
)
_REPLICAS = f"select id, able from sm_replica where until_us > {_NOW}"
_OWNERS = "select name, owner, epoch from sm_duty"
_MAKE = (
    "insert into sm_duty(name, owner, epoch) select name, '', 0 from unnest($1::text[]) name "
    "on conflict(name) do nothing"
)
_CLAIM = f"""\
with free as (
    select name from sm_duty where name = any($2) and not exists(
        select from sm_replica r where r.id = sm_duty.owner and r.until_us > {_NOW}
    ) order by name for update skip locked
)
update sm_duty set owner = $1, epoch = epoch + 1 from free where free.name = sm_duty.name
returning sm_duty.name, epoch"""
_GIVE_BACK = (
    "update sm_duty set owner = '' from unnest($2::text[], $3::bigint[]) mine(name, epoch) "
    "where owner = $1 and sm_duty.name = mine.name and sm_duty.epoch = mine.epoch"
)
_LEAVE = (
    "with gone as (delete from sm_replica where id = $1) "
    "update sm_duty set owner = '' where owner = $1"
)
# Of processes that died long ago.
_FORGET = f"delete from sm_replica where until_us < {_NOW} - 3600000000"
_TELL = "select pg_notify($1, $2)"
_END_STOPPED = f"""\
select pg_terminate_backend(session.pid) from pg_stat_activity session join sm_replica r
on starts_with(session.application_name, '{SESSIONS_OF.format("' || r.id || '")}')
where r.until_us <= {_NOW} and session.datname = current_database()
and session.usename = current_user
and session.xact_start < clock_timestamp() - $1 * interval '1us'"""


class PostgresDutyBook:
    """Keeps the rows of one database on a connection of its own; a `DutyBook`.

    Args:
        connect: makes a connection that writes.
        path: where the database is, as messages show it.
        sender: tells this store from every other, in wake-ups.
        lease_s: how long a lease runs without a renewal.
    """

    fence_sql: str = (
        "select name, epoch from sm_duty where owner = ? "
        "and name = any(string_to_array(?, chr(10))) for share"
    )

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        path: str,
        sender: str,
        lease_s: float,
    ) -> None:
        self._connect = connect
        self._path = path
        self._told = told(sender, [TOPIC])
        self._lease_us = int(lease_s * 1e6)
        self._connection: Connection | None = None
        self._able: frozenset[str] | None = None

    async def renew(self, replica: str, able: Collection[str]) -> View:
        """Renew the lease of a replica, and return what is told of all of them."""
        async with self._connected() as connection:
            await connection.execute(_RENEW, replica, "\n".join(sorted(able)), self._lease_us)
            await connection.execute(_END_STOPPED, self._lease_us)
            if self._able != able:
                await connection.execute(_MAKE, list(able))
                await connection.execute(_FORGET)
                await self._tell(connection)
                self._able = frozenset(able)
            replicas = {
                name: frozenset(text.split("\n")) - {""}
                for name, text in await connection.fetch(_REPLICAS)
            }
            owners = {
                name: (owner, epoch) for name, owner, epoch in await connection.fetch(_OWNERS)
            }
        return View(replicas, owners)

    async def claim(self, replica: str, duties: Collection[str]) -> dict[str, int]:
        """Claim duties whose owners have no lease; return the epochs of those that were granted."""
        async with self._connected() as connection:
            return dict(await connection.fetch(_CLAIM, replica, list(duties)))

    async def give_back(self, replica: str, duties: Mapping[str, int]) -> None:
        """Give back what is this replica's under these epochs still, and tell the others."""
        async with self._connected() as connection:
            await connection.execute(_GIVE_BACK, replica, list(duties), list(duties.values()))
            await self._tell(connection)

    async def leave(self, replica: str) -> None:
        """End the lease of a replica, with all that it owns, and tell the others."""
        async with self._connected() as connection:
            await connection.execute(_LEAVE, replica)
            await self._tell(connection)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _tell(self, connection: Connection) -> None:
        await connection.execute(_TELL, CHANNEL, self._told)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        try:
            if self._connection is None:
                self._connection = await self._connect()
            with TimeLimit(self._connection, self._lease_us / 1e6):
                yield self._connection
        except BaseException as error:
            # Nobody knows what it is at: none is kept that ended so.
            await self.close()
            if isinstance(error, PostgresFault):
                raise translate(error, path=self._path) from error
            raise

    def __repr__(self) -> str:
        return f"<PostgresDutyBook {self._path}>"
