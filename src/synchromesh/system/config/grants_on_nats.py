"""The clients from outside of a system on many hosts: their grants, in NATS KV.

Commands change them from any host, and each process asks for them twice a second: what is revoked
is refused everywhere within a second. What a process knows it keeps, whatever becomes of the
server. A grant that was taken back stays so: of two states of one the revoked holds.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec

from synchromesh.clients import ClientGrant, decode_grants
from synchromesh.discovery.nats_document import NatsDocument
from synchromesh.errors import ConfigError, DiscoveryError
from synchromesh.identity import Signer
from synchromesh.system.config.client_grants import (
    KEPT,
    ClientsFile,
    check_new,
    ended_at,
    granted,
    revoked,
)
from synchromesh.system.config.merged_document import ASK_EVERY_S, DocumentWords, MergedDocument
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import system_keys

T = TypeVar("T")

_WORDS = DocumentWords(
    what="the grants of clients",
    look="synchromesh client list",
    too_many="take back those that nobody uses: synchromesh client list; they are forgotten a year "
    "after their end, and not before they would have expired",
    log="synchromesh.clients",
)

_TOLD_AFTER, _FAILURES_MAX = 3, 100

_log = logging.getLogger("synchromesh.clients")


class SharedGrants(msgspec.Struct, frozen=True, omit_defaults=True):
    """The grants of a system, as its processes know them.

    Attributes:
        clients: by id; those that have ended are forgotten by `trimmed`.
    """

    clients: tuple[ClientGrant, ...] = ()

    def merged(self, other: SharedGrants) -> SharedGrants:
        """Return what both know together; of a grant that both have the one that is revoked."""
        found: dict[str, ClientGrant] = {}
        for each in sorted((*self.clients, *other.clients), key=_first):
            found.setdefault(each.id, each)
        return SharedGrants(tuple(found[each] for each in sorted(found)))

    def trimmed(self, now: dt.datetime) -> SharedGrants:
        """Return this without what ended a year ago, or before.

        What was taken back is kept until it would have expired, at least: in an old state, such as
        the folder of a host, it may be active yet.
        """
        return SharedGrants(
            tuple(
                each for each in self.clients if ended_at(each) > now - KEPT or each.expires > now
            )
        )


def _first(grant: ClientGrant) -> tuple[bool, bytes]:
    # Of two that were revoked at once any will do, as long as all take the same.
    return grant.revoked is None, msgspec.json.encode(grant)


class GrantsOnNats(MergedDocument[SharedGrants]):
    """The grants as one process knows them; `open`, then `run` or `change`, then `close`."""

    def __init__(self, document: NatsDocument, wall_us: Callable[[], int]) -> None:
        def read(data: bytes, where: str) -> SharedGrants:
            return SharedGrants(decode_grants(data, where))

        def trim(grants: SharedGrants) -> SharedGrants:
            return grants.trimmed(dt.datetime.fromtimestamp(wall_us() // 1_000_000, dt.UTC))

        super().__init__(document, SharedGrants(), read, trim, _WORDS)
        self._by_id: tuple[SharedGrants, dict[str, ClientGrant]] = self.known, {}

    async def open(self, brought: Iterable[ClientGrant] = ()) -> None:
        """Ask for the grants.

        Args:
            brought: those of a folder: taken along where the server has never had any, and later
                what they tell to be taken back of those that are known there.

        Raises:
            ConfigError: the server cannot be used, or what is there is another system's.
            DiscoveryError: it does not answer.
            MissingExtra: the extra `nats` is not installed.
        """
        brought = tuple(brought)
        if not await self.first():
            await self.change(lambda known: known.merged(SharedGrants(brought)))
            return
        known = self.by_id()
        late = [
            each
            for each in brought
            if each.revoked is not None and each.id in known and known[each.id].revoked is None
        ]
        if late:
            await self.change(lambda there: there.merged(SharedGrants(tuple(late))))
        left = {each.name for each in brought} - {each.name for each in self.known.clients}
        if left:
            _log.warning(
                "the clients %s are in the folder of this process alone, and are not let in: make "
                "them anew with: synchromesh client add",
                ", ".join(sorted(left)),
            )

    def by_id(self) -> Mapping[str, ClientGrant]:
        """Return the grants by id, as they are known now."""
        if self._by_id[0] is not self.known:
            self._by_id = self.known, {each.id: each for each in self.known.clients}
        return self._by_id[1]

    async def run(self) -> None:
        """Ask for them again and again; a supervised loop."""
        await self.follow(lambda _: None)

    async def note_revoked_in(self, file: ClientsFile) -> None:
        """Note in a folder what is revoked, wherever that was; a supervised loop.

        The file would bring the grant again where NATS lost its disk and all processes ended.
        """
        noted, failures = SharedGrants(), 0
        while True:
            known = self.known
            if known is not noted and known != noted:
                try:
                    file.note_revoked(known.clients)
                    noted, failures = known, 0
                except (ConfigError, OSError) as error:
                    # At first that may be another process of this host, which notes the same.
                    failures += 1
                    if failures == _TOLD_AFTER:
                        _log.error("what is revoked is not noted in the folder: %s", error)
            await asyncio.sleep(ASK_EVERY_S * min(1 + failures, _FAILURES_MAX))


class SharedClientsFile:
    """What commands change the shared grants by, as they do a `ClientsFile`.

    Args:
        brought: the grants of the folder, as `GrantsOnNats.open` takes them.
    """

    def __init__(
        self, config: SystemConfig, rundir: RunDir, wall_us: Callable[[], int], file: ClientsFile
    ) -> None:
        self._config, self._rundir, self._wall_us = config, rundir, wall_us
        self._file = file

    def read(self) -> list[ClientGrant]:
        """Return the grants, also those that have ended. Raises ConfigError."""

        async def reading(grants: GrantsOnNats) -> list[ClientGrant]:
            return list(grants.known.clients)

        return self._run(reading)

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
        """Add a grant and return it, as `ClientsFile.add` does."""
        now_us = self._wall_us()
        grant = granted(name, scopes, serves, days, made, rng, now_us=now_us)

        def adding(known: SharedGrants) -> SharedGrants:
            if grant not in known.clients:  # it is, where what was sent before has arrived
                check_new(grant, known.clients, now_us)
            return known.merged(SharedGrants((grant,)))

        self._change(adding)
        return grant

    def revoke(self, name: str, *, who: str, why: str) -> ClientGrant:
        """Take back the active grant of a client, as `ClientsFile.revoke` does.

        The folder is told, too: its file would bring the grant again where NATS has lost its disk.
        """
        now_us, found = self._wall_us(), list[ClientGrant]()

        def revoking(known: SharedGrants) -> SharedGrants:
            done = [each for each in known.clients if each.id in {one.id for one in found}]
            if done and done[0].revoked is not None:
                return known  # what was sent before has arrived
            found[:] = [revoked(known.clients, name, who=who, why=why, now_us=now_us)]
            return known.merged(SharedGrants(tuple(found)))

        self._change(revoking)
        try:
            self._file.note_revoked(found)
        except ConfigError as error:
            raise ConfigError(
                f"client {name!r} is revoked on NATS, and is active yet in the file of this "
                f"folder, from where it would come back if NATS lost its disk: {error.message}; "
                "NATS has what is in that file: remove it"
            ) from error
        return found[0]

    def _change(self, change: Callable[[SharedGrants], SharedGrants]) -> None:
        async def changing(grants: GrantsOnNats) -> None:
            await grants.change(change)

        self._run(changing)

    def _run(self, ask: Callable[[GrantsOnNats], Coroutine[Any, Any, T]]) -> T:
        config, rundir = self._config, self._rundir
        signer = Signer(*system_keys(config.system, rundir, rundir.folder, os.environ))

        async def asking() -> T:
            grants = grants_on_nats(config, rundir, signer, self._wall_us)
            try:
                await grants.open(self._file.read())
                return await ask(grants)
            finally:
                await grants.close()

        try:
            return asyncio.run(asking())
        except DiscoveryError as error:
            raise ConfigError(error.message) from error

    def __repr__(self) -> str:
        return f"<SharedClientsFile of {self._config.system.name}>"


def grants_on_nats(
    config: SystemConfig, rundir: RunDir, signer: Signer, wall_us: Callable[[], int]
) -> GrantsOnNats:
    """Return the grants of a system. Raises ConfigError where the URL is missing or none."""
    document = NatsDocument(
        config.engine.url("nats", rundir.folder, os.environ),
        bucket="clients",
        name="grants",
        system=config.system.name,
        signer=signer,
        wall_us=wall_us,
    )
    return GrantsOnNats(document, wall_us)
