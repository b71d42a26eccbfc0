"""The API keys of a gateway with replicas on many hosts: hashes, in NATS KV.

Commands change them from any host, and each replica asks for them twice a second. What a replica
knows it keeps, whatever becomes of the server: it writes down again what was lost there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from synchromesh.discovery.nats_document import NatsDocument
from synchromesh.errors import ConfigError, DiscoveryError
from synchromesh.gateway import ApiKey
from synchromesh.gateway.principal import taken_name
from synchromesh.gateway.shared_keys import SharedKeys, read_shared
from synchromesh.identity import Signer
from synchromesh.system.config.merged_document import DocumentWords, MergedDocument
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import system_keys

T = TypeVar("T")

_WORDS = DocumentWords(
    what="the API keys",
    look="synchromesh gateway key list",
    too_many="remove those that nobody uses (synchromesh gateway key list), or give clients tokens",
    log="synchromesh.gateway",
)

_log = logging.getLogger("synchromesh.gateway")


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


class KeysOnNats(MergedDocument[SharedKeys]):
    """The keys as one process knows them; `open`, then `run` or `change`, then `close`."""

    def __init__(self, document: NatsDocument) -> None:
        super().__init__(document, SharedKeys(), read_shared, lambda keys: keys, _WORDS)

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
        if not await self.first():
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

    async def run(self, changed: Callable[[Mapping[str, ApiKey]], None]) -> None:
        """Ask for them again and again, and tell what has changed; a supervised loop."""
        await self.follow(lambda known: changed(known.by_id()))


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
