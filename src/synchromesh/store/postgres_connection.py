"""Connections to a PostgreSQL database: its address, what is set on them, why one is refused."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from synchromesh.errors import StoreBroken, StoreError, StoreUnavailable
from synchromesh.store.postgres_dialect import Translation
from synchromesh.store.postgres_errors import PostgresFault, argument_of, state_of
from synchromesh.store.postgres_limits import TimeLimit, keep_alive
from synchromesh.store.postgres_pooled import PooledConnection, is_direct, prove
from synchromesh.store.unit import Fetched, Row, SqlValue

Connection: TypeAlias = Any
"""An `asyncpg.Connection`; the driver comes without types."""

VERSION_MIN = 16
"""The oldest server: `json_array` of the standard is there from it on."""

SESSIONS_OF = "synchromesh {} "
"""What the names of a replica's sessions begin with, with its id; they end with its service."""

_STATEMENTS_CACHED = 512
# As `discard all` does it, but for the statements that the driver has prepared.
_CLEAR = (
    "set session authorization default; reset all; select pg_advisory_unlock_all(); discard temp"
)
_CONNECT_S = 10.0
# The same for each of several servers: one that is silent holds up what the next would answer.
_CONNECT_EACH_S = 3.0
# A unit has no pauses: its process stands still, and others wait for what it holds.
_IDLE_S = 2.0
# These come as texts: no value of another type than `SqlValue` leaves a store.
_AS_TEXTS = ("uuid", "date", "time", "timetz", "timestamp", "timestamptz", "interval")
# What a pooler says of it, which has one state for everything.
_NO_DATABASE = re.compile('database ".*" does not exist|no such database')
_WHOLE = re.compile(r"-?\d+")
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError)
_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_NO_FILE = frozenset({"NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE", "KEY_VALUES_MISMATCH"})


class Accepted(str):
    """A text, and what is accepted in its place while the key that both follow from is changed.

    Attributes:
        every: all of them, the text itself first.

    Example:
        >>> url = Accepted("postgresql://shop:new@db/shop", "postgresql://shop:old@db/shop")
        >>> url == url.every[0], len(url.every)
        (True, 2)
    """

    __slots__ = ("every",)

    every: tuple[str, ...]

    def __new__(cls, text: str, *others: str) -> Self:
        """Make one."""
        made = super().__new__(cls, text)
        made.every = (text, *others)
        return made


NO_MARK = Accepted("")


def place_of(url: str) -> str:
    """Return where a database is, without passwords, as messages show it.

    Example:
        >>> place_of("postgresql://shop:secret@db.example:5432/shop?sslpassword=s&sslmode=require")
        'postgresql://shop@db.example:5432/shop?sslmode=require'
    """
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    user = user.partition(":")[0]
    shown = [(name, value) for name, value in parse_qsl(parts.query) if "password" not in name]
    netloc = f"{user}@{host}" if user else host
    query = f"?{urlencode(shown, safe='/,:')}" if shown else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"


def places_of(url: str) -> tuple[str, ...]:
    """Return an address for each server that an address names, in its order.

    Example:
        >>> places_of("postgresql://shop@a:5432,b/shop")
        ('postgresql://shop@a:5432/shop', 'postgresql://shop@b/shop')
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        every = hosts.split(",")
        return tuple(parts._replace(netloc=f"{user}{at}{each}").geturl() for each in every)
    query = dict(parse_qsl(parts.query))
    every, ports = query.get("host", "").split(","), query.get("port", "").split(",")
    if len(every) == 1 or len(ports) not in (1, len(every)):
        return (url,)
    ports *= len(every) if len(ports) == 1 else 1
    found = []
    for host, port in zip(every, ports, strict=True):
        of_it = query | {"host": host} | ({"port": port} if port else {})
        found.append(parts._replace(query=urlencode(of_it, safe="/,:")).geturl())
    return tuple(found)


async def connect(
    url: str,
    *,
    service: str,
    replica: str = "",
    limit_s: float | None = None,
    is_read_only: bool = False,
    isolation: str = "read committed",
    database: str | None = None,
) -> Connection:
    """Connect to a database, and set what a store relies on.

    Args:
        database: another one than the address has, on the same server.
        replica: whose sessions others may end once its lease is over, by `SESSIONS_OF`.
        isolation: of statements outside of a transaction.
        limit_s: how long a statement may run; a transaction may be idle for 2 s at most.

    Of several servers each is dialed in turn, so that one that is silent, or whose TLS is not in
    order, does not keep the next from answering. What only reads then reads of the one that takes
    writes, too: a standby may be behind.

    Raises:
        StoreUnavailable: no server can be reached, or takes writes, or has room, or begins TLS.
        StoreBroken: it refuses the role or has no such database, or is too old, or none of them
            has a certificate that is believed.
    """
    settings = {
        "application_name": (SESSIONS_OF.format(replica) if replica else "synchromesh ") + service,
        "TimeZone": "UTC",
        "synchronous_commit": "on",
        "jit": "off",
        "default_transaction_isolation": isolation,
        "default_transaction_read_only": "on" if is_read_only else "off",
    }
    if limit_s is not None:
        settings["statement_timeout"] = str(max(1, int(limit_s * 1000)))
        settings["idle_in_transaction_session_timeout"] = str(
            max(1, int(min(2 * limit_s, _IDLE_S) * 1000))
        )
    connection = await _dial(url, settings, database=database, is_read_only=is_read_only)
    try:
        version = connection.get_server_version().major
        if version < VERSION_MIN:
            raise StoreBroken(
                f"{place_of(url)} is PostgreSQL {version}; {VERSION_MIN} or newer is needed: "
                "upgrade the server, or give the address of another one"
            )
        with TimeLimit(connection, _CONNECT_S / 2):
            await _set_codecs(connection)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, PostgresFault):
            raise _unconnected(error, url) from error
        raise
    return connection


async def run(
    connection: Connection,
    plan: Translation,
    values: Sequence[SqlValue],
    *,
    has_columns: bool = False,
) -> list[Row] | Fetched:
    """Run a statement and return its rows; raises the driver's errors as they are."""
    while True:
        text = plan.text(values)
        try:
            if not has_columns:
                return [tuple(row) for row in await connection.fetch(text, *values)]
            statement = await connection.prepare(text)
            rows = [tuple(row) for row in await statement.fetch(*values)]
            return Fetched(tuple(each.name for each in statement.get_attributes()), rows)
        except asyncpg.DataError as error:
            # The driver's, before anything was sent: a transaction is as it was.
            place = argument_of(error)
            if place is None or not plan.learn(values, place):
                raise


async def clear(connection: Connection, limit_s: float) -> Connection | None:
    """Take off what statements have left in a session; return it, or None where that failed.

    A connection of which that is not known is of no use any more, and is closed.
    """
    try:
        with TimeLimit(connection, limit_s):
            await connection.execute(_CLEAR)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, PostgresFault):
            return None
        raise
    return connection


async def _dial(
    url: str, settings: dict[str, str], *, database: str | None, is_read_only: bool
) -> Connection:
    """Connect to the first server of an address that can be used."""
    every = [places_of(each) for each in (url.every if isinstance(url, Accepted) else (url,))]
    places = every[0]
    refused: list[StoreError] = []
    session = "read-write" if not is_read_only else "primary" if len(places) > 1 else "any"
    for number in range(len(places)):
        try:
            return await _dial_one(
                [each[number] for each in every], settings, database=database,
                timeout=_CONNECT_EACH_S if len(places) > 1 else _CONNECT_S,
                target_session_attrs=session,
            )  # fmt: skip
        except (*PostgresFault, ValueError, OverflowError) as error:
            why = _unconnected(error, places[number])
            refused.append(why)
            insecure = _insecure(error, places[number]) is not None
            if len(places) == 1 or not (insecure or isinstance(why, StoreUnavailable)):
                raise why from error
    if not any(isinstance(why, StoreUnavailable) for why in refused):
        raise refused[0]
    told = "; ".join(why.message for why in refused)
    raise StoreUnavailable(f"{place_of(url)}: none of these servers can be used now: {told}")


async def _dial_one(urls: Sequence[str], settings: dict[str, str], **options: Any) -> Connection:
    """Connect to a server by the first of the addresses whose password it takes."""
    options["statement_cache_size"] = _STATEMENTS_CACHED
    for url in urls:
        try:
            connection = await asyncpg.connect(url, server_settings=settings, **options)
            with _ending(connection, options["timeout"]):
                if await is_direct(connection):
                    keep_alive(connection._transport)
                    return connection
            connection.terminate()
        except asyncpg.InvalidPasswordError:
            if url == urls[-1]:
                raise
            continue
        except asyncpg.ProtocolViolationError as error:
            # A pooler's: of a password, too.
            if "authentication failed" in str(error) and url != urls[-1]:
                continue
            if "unsupported startup parameter" not in str(error):
                raise
        return await _dial_pooled(url, settings, **options)
    raise AssertionError("there is an address")


async def _dial_pooled(url: str, settings: dict[str, str], **options: Any) -> PooledConnection:
    """Connect by a pooler, and set what it has not passed; it has to keep a session."""
    attributes = options.pop("target_session_attrs")

    async def dial() -> PooledConnection:
        # What it says of the server may be old: it is asked below.
        made: PooledConnection = await asyncpg.connect(
            url, connection_class=PooledConnection, target_session_attrs="any", **options
        )
        with _ending(made, options["timeout"]):
            keep_alive(made._transport)
            await made.begin(f"{url} {options['database']}", settings)
        return made

    connection = await dial()
    with _ending(connection, options["timeout"]):
        await prove(connection, dial, place_of(url))
        if attributes != "any" and await connection.fetchval("select pg_is_in_recovery()"):
            raise asyncpg.TargetServerAttributeNotMatched("a standby")
    return connection


@contextmanager
def _ending(connection: Connection, within_s: float) -> Iterator[None]:
    """End a connection that has no answer in time, or of which something fails."""
    try:
        with TimeLimit(connection, within_s / 2):
            yield
    except BaseException:
        connection.terminate()
        raise


async def _set_codecs(connection: Connection) -> None:
    await connection.set_type_codec(
        "numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text"
    )
    for name in _AS_TEXTS:
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=str, format="text"
        )


def _number(text: str) -> int | float:
    """Return a number as the other engine has it: whole, or a float. `sum` makes it a numeric."""
    return int(text) if _WHOLE.fullmatch(text) else float(text)


def _unconnected(error: BaseException, url: str) -> StoreError:
    """Return why a connection could not be made; a password is never in it."""
    place, state = place_of(url), state_of(error)
    if state.startswith("28"):
        return StoreBroken(
            f"{place} refuses the role: {getattr(error, 'message', '')}; have it made (synchromesh "
            "db create), or give a user and password that the server knows, and check its "
            "pg_hba.conf"
        )
    if state == "3D000" or (state == "08P01" and _NO_DATABASE.search(str(error))):
        return StoreBroken(
            f"{place}: there is no such database; create it (synchromesh db create), or give the "
            "address of another one"
        )
    if state == "42501":
        return StoreBroken(
            f"{place}: the role may not connect to it: grant connect on database, or give another "
            "role"
        )
    if state == "08P01":
        return StoreUnavailable(
            f"{place}: the pooler there gives no session ({getattr(error, 'message', '')}): see "
            "its log, whether it knows the role and the database, and its max_client_conn, "
            "pool_size and query_wait_timeout"
        )
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StoreUnavailable(
            f"{place} takes no writes, as a standby does: give the address of the one that does"
        )
    if (insecure := _insecure(error, url)) is not None:
        return insecure
    if isinstance(error, (ValueError, OverflowError, asyncpg.ClientConfigurationError)):
        return StoreBroken(
            f"{place} is no address of a database: write postgresql://user:password@host:5432/name"
        )
    reason = getattr(error, "strerror", None) or str(error) or "it does not answer"
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or reason
    return StoreUnavailable(
        f"{place} cannot be reached ({reason}): start the server, or give its address"
    )


def _insecure(error: BaseException, url: str) -> StoreError | None:
    """Return what of TLS is wrong, and what to do; None where that is not why.

    Some of these are errors of values to the driver, or of an address, or of a server that is away.
    What a server, or a proxy before it, answers while it fails over mends itself.
    """
    place = place_of(url)
    if why := _mistaken(error, url):
        return StoreBroken(f"{place}: {why}")
    if "rejected SSL upgrade" in str(error):
        if "sslmode=" not in url:
            # A PostgreSQL server says yes or no, and the driver goes on by either.
            return StoreUnavailable(
                f"{place}: what answers there is no PostgreSQL server; give its address and port "
                "(or PGSSLMODE asks for TLS, and it has none)"
            )
        return StoreUnavailable(
            f"{place}: it has no TLS, and sslmode in the address asks for it; set ssl = on at the "
            "server, with ssl_cert_file and ssl_key_file, or see who answers in its place"
        )
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        return StoreUnavailable(
            f"{place}: TLS fails ({reason}); does the server ask for a certificate, by sslcert and "
            "sslkey?"
        )
    return None


def _mistaken(error: BaseException, url: str) -> str:
    """Return what of certificates, or of the address, a person has to mend; "" for nothing."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        # 62, 64: X509_V_ERR_HOSTNAME_MISMATCH and that of addresses.
        if error.verify_code in (62, 64):
            return (
                f"its certificate is of another host ({error.verify_message}); connect by a name "
                "that is in it, or have one issued for this"
            )
        return (
            f"its certificate is not believed ({error.verify_message}); name its authority, as in "
            "?sslmode=verify-full&sslrootcert=PATH"
        )
    if isinstance(error, ssl.SSLError) and error.reason in _NO_FILE:
        return (
            f"a file in the address is no PEM of what it is named for ({error.reason}): "
            "sslrootcert and sslcert have certificates, and sslkey the private key of sslcert"
        )
    named = ((name, value) for name, value in parse_qsl(urlsplit(url).query) if name in _FILES)
    unread = next((each for each in named if not os.access(each[1], os.R_OK)), None)
    if isinstance(error, _UNREADABLE) and unread is not None:
        reason = error.strerror or text
        return f"the file of {unread[0]}, {unread[1]}, cannot be read: {reason}; name another one"
    if isinstance(error, asyncpg.ClientConfigurationError) and ("ssl" in text or "root" in text):
        return f"{text}; write ?sslmode=verify-full&sslrootcert=PATH"
    return ""
