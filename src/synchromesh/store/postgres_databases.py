"""The databases of a system on one PostgreSQL server: a database and a role for each service.

Database and role have one name, of the system and the service. The role owns its database, nobody
else may connect to it, and its password follows from the system's key, so that none is kept. A
comment on both, the mark, says whose they are: of a system of the same name with another key they
are somebody else's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

from synchromesh.errors import StoreBroken
from synchromesh.store.postgres_connection import (
    Accepted,
    Connection,
    connect,
    place_of,
)
from synchromesh.store.postgres_errors import PostgresFault, translate

MARK = "synchromesh"
_NAME_BYTES_MAX = 63
_LOCK = "select pg_advisory_lock(hashtext('synchromesh.databases'))"
_ROLE = "select shobj_description(oid, 'pg_authid') from pg_roles where rolname = $1"
_DATABASE = (
    "select shobj_description(oid, 'pg_database'), pg_get_userbyid(datdba), "
    "has_database_privilege('public', oid, 'connect') from pg_database where datname = $1"
)
_OWN_MARK = (
    "select shobj_description(oid, 'pg_database') from pg_database "
    "where datname = current_database()"
)
_IS_SUPERUSER = "select rolsuper from pg_roles where rolname = current_user"
# What an address says in its query of its user, and would go before what stands before the host.
_OF_USER = frozenset({"user", "password", "dbname", "database"})
# As many as the server itself would take.
_ROUNDS = 4096


class PostgresDatabases:
    """The databases of one system's services: their names, addresses, and how they are made.

    Args:
        url: the address of the server; `create` connects as its user, and to its database.
        system: the name of the system.
        passwords: returns the passwords that a role may have, the first of them for a new one; of
            "" what tells the owner of the key.

    Example:
        >>> of = PostgresDatabases(
        ...     "postgresql://admin:secret@db:5432",
        ...     system="servo-works",
        ...     passwords=lambda role: ("p",),
        ... )
        >>> of.url("orders")
        'postgresql://servo_works_orders:p@db:5432/servo_works_orders'
    """

    def __init__(self, url: str, *, system: str, passwords: Callable[[str], Sequence[str]]) -> None:
        self._url = url
        self._system = system
        self._passwords = passwords

    @property
    def has_user(self) -> bool:
        """Whether the address of the server says whom `create` connects as."""
        parts = urlsplit(self._url)
        return parts.username is not None or "user" in dict(parse_qsl(parts.query))

    def name(self, service: str) -> str:
        """Return the name of a service's database, and of its role."""
        name = f"{re.sub('[^a-z0-9]+', '_', self._system.lower())}_{service}"
        if len(name) <= _NAME_BYTES_MAX:
            return name
        # Longer ones would be cut, and might then be the same.
        return f"{name[:54]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def url(self, service: str) -> Accepted:
        """Return the address of a service's database, with its role and password."""
        name, parts = self.name(service), urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        kept = [each for each in parse_qsl(parts.query) if each[0] not in _OF_USER]
        query = urlencode(kept, safe="/,:")
        places = (f"{name}:{each}@{host}" for each in self._passwords(name))
        return Accepted(
            *(parts._replace(netloc=at, path=f"/{name}", query=query).geturl() for at in places)
        )

    def mark(self, service: str) -> Accepted:
        """Return what is noted of a service's database and role: whose they are."""
        of = f"{MARK} {self._system} {service}"
        return Accepted(*(f"{of} {each[:16]}" for each in self._passwords("")))

    async def create(self, services: Sequence[str], *, is_new_key: bool = False) -> list[str]:
        """Make what is missing of the roles and databases of services; return what was done.

        Args:
            is_new_key: take over what a system of the same name has made under another key.

        Raises:
            StoreUnavailable: the server cannot be reached.
            StoreBroken: it refuses, is too old, or has somebody else's under such a name.
            StoreReadOnly: its user may make neither roles nor databases.
        """
        connection = await connect(self._server_url(), service="db create")
        try:
            await connection.execute(_LOCK)
            return [
                f"{service}: {done}"
                for service in services
                for done in await self._create(connection, service, is_new_key)
            ]
        except PostgresFault as error:
            raise translate(error, path=place_of(self._url)) from error
        finally:
            connection.terminate()

    async def _create(self, connection: Connection, service: str, is_new_key: bool) -> list[str]:
        name, mark, done = self.name(service), self.mark(service), []
        roles = await connection.fetch(_ROLE, name)
        databases = await connection.fetch(_DATABASE, name)
        marks = [roles[0][0]] if roles else []
        # One that was made, and not yet marked, belongs to its role.
        marks += [each for each, owner, _ in databases if each or not roles or owner != name]
        for found in marks:
            self._refuse(found, service, is_new_key)
        if not roles:
            await self._make_role(connection, name, mark)
            done.append(f"made the role {name}")
        elif marks[0] != mark:
            await connection.execute(
                f"alter role \"{name}\" password '{_verifier(self._passwords(name)[0], name)}'; "
                f'comment on role "{name}" is {_quoted(mark)}'
            )
            done.append(f"gave the role {name} the password of the new key")
        if not databases:
            await connection.execute(f'create database "{name}" owner "{name}"')
            done.append(f"made the database {name}")
        if not databases or databases[0][2]:
            await connection.execute(f'revoke all on database "{name}" from public')
            done.append(f"revoked CONNECT on {name} from PUBLIC")
        if not databases or databases[0][0] != mark:
            await connection.execute(f'comment on database "{name}" is {_quoted(mark)}')
        return done or [f"the role and the database {name} are there"]

    async def _make_role(self, connection: Connection, name: str, mark: str) -> None:
        """Make a role with its mark, both or neither; no password is in what is sent."""
        verifier = _verifier(self._passwords(name)[0], name)
        made = f"create role \"{name}\" login password '{verifier}'"
        # Whoever makes a database for another owner has to be a member of it.
        is_superuser = await connection.fetchval(_IS_SUPERUSER)
        member = "" if is_superuser else f'grant "{name}" to current_user; '
        await connection.execute(
            f'begin; {made}; {member}comment on role "{name}" is {_quoted(mark)}; commit'
        )

    def _refuse(self, found: str | None, service: str, is_new_key: bool) -> None:
        """Raise `StoreBroken` for a mark that is not this system's."""
        if found not in self.mark(service).every:
            refuse_mark(found, self.mark(service), self.name(service), is_new_key=is_new_key)

    def _server_url(self) -> str:
        """Return the address that `create` uses: without a database it is the one of all."""
        parts = urlsplit(self._url)
        return parts._replace(path=parts.path if len(parts.path) > 1 else "/postgres").geturl()

    def __repr__(self) -> str:
        return f"<PostgresDatabases of {self._system} at {place_of(self._url)}>"


async def check_mark(connection: Connection, mark: Accepted, name: str) -> None:
    """Raise `StoreBroken` where a database is marked as another system's; one without is anyone's.

    Args:
        name: what messages call the database.
    """
    found = await connection.fetchval(_OWN_MARK)
    if mark and found is not None and found not in mark.every:
        refuse_mark(found, mark, name)


def refuse_mark(found: str | None, mark: str, name: str, *, is_new_key: bool = False) -> None:
    """Raise `StoreBroken` for a mark of another system; for its key only where that is no new one.

    Raises:
        StoreBroken: it says whose it is, and the mend.
    """
    another = "give this system another name ([system] name), or the URL of another server"
    if found is None or not found.startswith(f"{MARK} "):
        raise StoreBroken(f"{name} is there already, and no system has made it: {another}")
    if found.rpartition(" ")[0] != mark.rpartition(" ")[0]:
        owner = " ".join(found.split(" ")[1:-1])
        raise StoreBroken(f"{name} is of another system or service, {owner!r}: {another}")
    if not is_new_key:
        raise StoreBroken(
            f"{name} was made by a system of the same name with another key: {another}; where the "
            "key of this one was changed: synchromesh db create --new-key"
        )


def _verifier(password: str, salt: str) -> str:
    """Return what the server keeps of a password (RFC 5803): its log never has the password."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), _ROUNDS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored, server = hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")
    salt64, *keys = (base64.b64encode(each).decode() for each in (salt.encode(), stored, server))
    return f"SCRAM-SHA-256${_ROUNDS}:{salt64}${':'.join(keys)}"


def _quoted(text: str) -> str:
    return f"'{text.replace(chr(39), chr(39) * 2)}'"
