"""The API keys of a gateway with replicas on many hosts: hashes, in NATS KV.

Commands change them from any host, and each replica asks for them twice a second. What a replica
knows it keeps, whatever becomes of the server: it writes down again what was lost there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from synchromesh.discovery.nats_document import NatsDocument
from synchromesh.discovery.nats_requests import Conflict
from synchromesh.errors import ConfigError, DiscoveryError
from synchromesh.gateway import ApiKey
from synchromesh.gateway.principal import taken_name
from synchromesh.gateway.shared_keys import SharedKeys, read_shared
from synchromesh.identity import Signer
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import system_keys

T = TypeVar("T")

ASK_EVERY_S = 0.4
# Every so many times the whole is asked for, and not only whether it has changed.
WHOLE_EVERY = 20
CHANGE_WITHIN_S = 10.0
PAUSE_S = 0.1

_log = logging.getLogger("synchromesh.gateway")


def are_keys_shared(config: SystemConfig, rundir: RunDir) -> bool:
    """Return whether the API keys of a system are on NATS, and not in its run directory.

    They stay there where `dev` has brought the server along: that system is in one folder.
    """
    return config.engine.nats not in ("", rundir.own_nats)


def keys_on_nats(
    config: SystemConfig, folder: Path, signer: Signer, wall_us: Callable[[], int]
) -> KeysOnNats:
    """Return the keys of a system. Raises ConfigError where the URL is missing or none."""
    return KeysOnNats(
        NatsDocument(
            config.engine.url("nats", folder, os.environ),
            bucket="gateway",
            name="keys",
            system=config.system.name,
            signer=signer,
            wall_us=wall_us,
        )
    )


class KeysOnNats:
    """The keys as one replica or command knows them; `open`, then `run` or `change`, then `close`.

    Attributes:
        known: what was last seen, with all that was ever seen before.
        why_old: why it may be old, in words; "" where it is not.
    """

    def __init__(self, document: NatsDocument) -> None:
        self._document = document
        self.known = SharedKeys()
        self.why_old = ""
        self._revision: int | None = None
        self._asked = 0

    async def open(self, brought: Iterable[ApiKey] = ()) -> None:
        """Ask for the keys.

        Args:
            brought: those of a folder: taken along where the server has never had any.

        Raises:
            ConfigError: the server cannot be used, or the keys there are another system's.
            DiscoveryError: it does not answer.
            MissingExtra: the extra `nats` is not installed.
        """
        brought = tuple(brought)
        if await self._patiently(self._first) == 0:
            await self.change(lambda known: known.with_keys(brought))
            if brought:
                _log.info("%d API keys of this folder are on NATS now", len(brought))
            return
        left = {key.id for key in brought} - self.known.by_id().keys() - {*self.known.removed}
        if left:
            _log.warning(
                "the API keys %s are in this folder alone, and no gateway takes them: bring them "
                "to the others by: synchromesh gateway key import",
                ", ".join(sorted(left)),
            )

    async def close(self) -> None:
        """End the connection. May be repeated."""
        await self._document.close()

    async def change(self, change: Callable[[SharedKeys], SharedKeys]) -> SharedKeys:
        """Change the keys on the server, and return them.

        Args:
            change: returns what is wanted of what is there; asked again where others change it
                meanwhile, or the server was slow.

        Raises:
            ConfigError: as it raises; or there are too many keys.
            DiscoveryError: the server does not answer; what was wanted may be done yet.
        """

        async def changing() -> SharedKeys:
            revision = await self._look()
            wanted = change(self.known)
            if wanted != self.known or not revision:
                await self._write(wanted, revision)
            return wanted

        try:
            return await self._patiently(changing)
        except DiscoveryError as error:
            raise DiscoveryError(
                f"{error.message}; it is not known whether the API keys were changed: look at "
                "synchromesh gateway key list once the server answers"
            ) from error

    async def run(self, changed: Callable[[Mapping[str, ApiKey]], None]) -> None:
        """Ask for them again and again, and tell what has changed; a supervised loop."""
        while True:
            before = self.known
            try:
                self._asked += 1
                if self._asked % WHOLE_EVERY == 0 or self._revision is None or self.why_old:
                    await self._look()
                else:
                    found = await self._document.read(self._revision)
                    if found is not None:
                        await self._look()
            except Conflict:
                pass  # another replica writes it down again
            except (ConfigError, DiscoveryError) as error:
                if not self.why_old:
                    _log.error("the API keys stay as they were: %s", error.message)
                self.why_old = error.message
            else:
                if self.why_old:
                    _log.info("the API keys are asked for again")
                self.why_old = ""
            if self.known != before:
                changed(self.known.by_id())
            await asyncio.sleep(ASK_EVERY_S)

    async def _first(self) -> int:
        await self._document.open()
        return await self._look(is_renewed=True)

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do something again while others change the keys, and for a while where nobody answers."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + CHANGE_WITHIN_S
        while True:
            try:
                return await act()
            except Conflict:
                pass
            except DiscoveryError:
                if loop.time() >= end_s:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def _look(self, *, is_renewed: bool = False) -> int:
        """Read the keys, write down again what was lost; return the revision, 0 for none ever.

        Args:
            is_renewed: writes down again also what an older key has sealed. By starts alone: while
                the key is changed those with either would else do it in turn.

        Raises:
            Conflict: they have changed meanwhile.
            ConfigError, DiscoveryError: they cannot be read or written.
        """
        found = await self._document.read()
        assert found is not None, "no revision was named"
        there = SharedKeys()
        if found.data is not None:
            there = read_shared(found.data, self._document.there)
        self.known = self.known.merged(there)
        self._revision = found.revision
        if self.known != there or (is_renewed and found.is_old):
            return await self._write(self.known, found.revision)
        return found.revision

    async def _write(self, wanted: SharedKeys, expected: int) -> int:
        data = msgspec.json.encode(wanted)
        self._revision = await self._document.write(data, expected=expected)
        self.known = wanted
        return self._revision

    def __repr__(self) -> str:
        return f"<KeysOnNats {len(self.known.keys)} of {self._document!r}>"


class SharedKeysFile:
    """What commands change the shared keys by, as they do an `ApiKeysFile`.

    Args:
        brought: the keys of the folder, as `KeysOnNats.open` takes them.
        reserved: what the names of principals begin with that others give, and who does.

    Attributes:
        brought: the keys of the folder.
    """

    def __init__(
        self,
        config: SystemConfig,
        rundir: RunDir,
        wall_us: Callable[[], int],
        brought: Iterable[ApiKey] = (),
        reserved: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.brought = tuple(brought)
        self._config = config
        self._rundir = rundir
        self._wall_us = wall_us
        self._reserved = reserved

    def read(self) -> tuple[ApiKey, ...]:
        """Return the keys. Raises ConfigError."""

        async def reading(keys: KeysOnNats) -> tuple[ApiKey, ...]:
            return keys.known.keys

        return self._run(reading)

    def add(self, *made: ApiKey) -> None:
        """Add keys.

        Raises:
            ConfigError: a principal has a name that others give, or the server cannot be used.
        """
        for key in made:
            if taken := taken_name(key.principal, self._reserved):
                raise ConfigError(taken)

        async def adding(keys: KeysOnNats) -> None:
            await keys.change(lambda known: known.with_keys(made))

        self._run(adding)

    def remove(self, key_id: str) -> ApiKey:
        """Remove a key by its id and return it.

        Raises:
            ConfigError: there is no such key, or the server cannot be used.
        """

        async def removing(keys: KeysOnNats) -> ApiKey:
            there = keys.known.by_id()
            if key_id not in there:
                known = ", ".join(there) or "none"
                raise ConfigError(f"there is no API key {key_id[:40]!r}; the ids are: {known}")
            await keys.change(lambda known: known.without(key_id))
            return there[key_id]

        return self._run(removing)

    def _run(self, ask: Callable[[KeysOnNats], Coroutine[Any, Any, T]]) -> T:
        config, folder = self._config, self._rundir.folder
        signer = Signer(*system_keys(config.system, self._rundir, folder, os.environ))

        async def asking() -> T:
            keys = keys_on_nats(config, folder, signer, self._wall_us)
            try:
                await keys.open(self.brought)
                return await ask(keys)
            finally:
                await keys.close()

        try:
            return asyncio.run(asking())
        except DiscoveryError as error:
            raise ConfigError(error.message) from error

    def __repr__(self) -> str:
        return f"<SharedKeysFile of {self._config.system.name}>"
