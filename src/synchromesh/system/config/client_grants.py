"""The clients from outside of a system: their grants, in a private file of the run directory.

Commands change it while the system runs, and every process sees that within half a second. What has
ended stays in it for a year, with who ended it and why.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec

from synchromesh.calls import operations_of
from synchromesh.clients import ClientGrant, GrantChange, GrantsFile, check_grant, read_grants
from synchromesh.errors import ConfigError
from synchromesh.runtime import Disk
from synchromesh.service import Service
from synchromesh.system.config.rundir import changing, refuse_shared, write_private
from synchromesh.system.config.schema import FILE_NAME

CLIENTS_MAX = 1000
DAYS_MAX = 3660
KEPT = dt.timedelta(days=365)

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class ClientsFile:
    """The file of grants, changed atomically and by one command at a time.

    Args:
        path: of the file.
        disk: locks it.
        now_us: the wall clock.
    """

    def __init__(self, path: Path, disk: Disk, now_us: int) -> None:
        self._path = path
        self._disk = disk
        self._now_us = now_us
        self._now = _moment(now_us)

    def read(self) -> list[ClientGrant]:
        """Return the grants, also those that have ended; none where there is no file.

        Raises:
            ConfigError: the file is wrong, or can be read by others.
        """
        try:
            refuse_shared(self._path)
        except FileNotFoundError:
            return []
        return list(read_grants(self._path).values())

    def add(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        serves: str,
        days: int,
        made: tuple[str, str],
        rng: Random,
    ) -> ClientGrant:
        """Add a grant and return it; `made` is who makes it, and why.

        Raises:
            ConfigError: the client has one that is active, the grant or the file is wrong, or
                another command changes the file.
        """
        grant = granted(name, scopes, serves, days, made, rng, now_us=self._now_us)
        with changing(self._path, self._disk):
            kept = [each for each in self.read() if ended_at(each) > self._now - KEPT]
            check_new(grant, kept, self._now_us)
            self._write((*kept, grant))
            return grant

    def revoke(self, name: str, *, who: str, why: str) -> ClientGrant:
        """Take back the active grant of a client and return it as it is now.

        Raises:
            ConfigError: it has none, or as for `add`.
        """
        with changing(self._path, self._disk):
            grants = self.read()
            found = revoked(grants, name, who=who, why=why, now_us=self._now_us)
            self._write(found if each.id == found.id else each for each in grants)
            return found

    def note_revoked(self, grants: Iterable[ClientGrant]) -> None:
        """Note here what was taken back elsewhere, of the grants that the file has.

        Raises:
            ConfigError: the file is wrong, or another command changes it.
        """
        over = {each.id: each for each in grants if each.revoked is not None}
        if not any(each.id in over and each.revoked is None for each in self.read()):
            return  # as where there is no file: none is made
        with changing(self._path, self._disk):
            grants = self.read()
            self._write(
                over.get(each.id, each) if each.revoked is None else each for each in grants
            )

    def _write(self, grants: Iterable[ClientGrant]) -> None:
        data = msgspec.json.format(msgspec.json.encode(GrantsFile(tuple(grants))), indent=2)
        write_private(self._path, data + b"\n")

    def __repr__(self) -> str:
        return f"<ClientsFile {self._path.name}>"


def ended_at(grant: ClientGrant) -> dt.datetime:
    """Return when a grant has ended, or will."""
    return grant.expires if grant.revoked is None else grant.revoked.at


def granted(
    name: str,
    scopes: Sequence[str],
    serves: str,
    days: int,
    made: tuple[str, str],
    rng: Random,
    *,
    now_us: int,
) -> ClientGrant:
    """Return a new grant; `made` is who makes it, and why.

    Raises:
        ConfigError: what it says is wrong.
    """
    now = _moment(now_us)
    grant = ClientGrant(
        "".join(rng.choice(_ALPHABET) for _ in range(12)),
        name,
        tuple(sorted(set(scopes))),
        GrantChange(now, *made),
        now + dt.timedelta(days=days),
        serves,
    )
    check_grant(grant, "clients.json")
    return grant


def check_new(grant: ClientGrant, kept: Sequence[ClientGrant], now_us: int) -> None:
    """Check that a grant may be added to those of the last year.

    Raises:
        ConfigError: the client has one that is active, or there are too many.
    """
    name = grant.name
    if any(each.name == name and each.state(now_us) == "active" for each in kept):
        raise ConfigError(
            f"client {name!r} has a credential that is active; take it back with: "
            f"synchromesh client revoke {name} --why TEXT, or use another name beside it"
        )
    if len(kept) >= CLIENTS_MAX:
        raise ConfigError(f"there are {len(kept)} clients of the last year; no more may be")


def revoked(
    grants: Iterable[ClientGrant], name: str, *, who: str, why: str, now_us: int
) -> ClientGrant:
    """Return the active grant of a client as it is once it has been taken back.

    Raises:
        ConfigError: it has none.
    """
    active = [each for each in grants if each.state(now_us) == "active"]
    found = next((each for each in active if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in active) or "none"
        raise ConfigError(f"no client {name[:40]!r} is active; those that are: {known}")
    return msgspec.structs.replace(found, revoked=GrantChange(_moment(now_us), who, why))


def _moment(now_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_us // 1_000_000, dt.UTC)


def check_scopes(
    scopes: Iterable[str], serves: str, services: Iterable[Service], joined: Sequence[str]
) -> None:
    """Check that a system has what a client is to call, and to serve.

    Raises:
        ConfigError: it does not; the message says what it has.
    """
    known: Mapping[str, Mapping[str, object] | None] = {
        **{each.name: operations_of(each.contract) if each.contract else {} for each in services},
        **dict.fromkeys(joined),
    }
    for scope in scopes:
        service, dot, operation = scope.partition(".")
        if service not in known:
            raise ConfigError(
                f"--scope {scope[:80]}: there is no service {service[:40]!r}; there are "
                f"{', '.join(known)}"
            )
        operations = known[service]
        # Those of what has joined are in no contract that is loaded here.
        if dot and operations is not None and operation not in operations:
            raise ConfigError(
                f"--scope {scope[:80]}: {service} has no operation {operation[:40]!r}; it has "
                f"{', '.join(operations)}"
            )
    if serves and serves not in joined:
        raise ConfigError(
            f"--serves {serves[:40]}: only what {FILE_NAME} names in [system] joined is served "
            f"from outside, and there is {', '.join(joined) or 'nothing'}; add it there, and start "
            "the system anew"
        )
