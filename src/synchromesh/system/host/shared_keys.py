"""Opens what processes on several hosts share: API keys, and the grants of clients."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from synchromesh.clients import ClientBook, read_grants
from synchromesh.identity import Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Child, Supervisor
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway
    from synchromesh.system.config.keys_on_nats import KeysOnNats


async def open_shared_keys(
    gateway: Gateway,
    config: SystemConfig,
    rundir: RunDir,
    runtime: DiskRuntime,
    signer: Signer,
    enter: AsyncExitStack,
) -> KeysOnNats | None:
    """Return the API keys that a gateway shares; None where they are in its run directory.

    Args:
        enter: closes them when the process ends.

    Raises:
        ConfigError: the server cannot be used, or the keys there are another system's.
        DiscoveryError: it does not answer.
    """
    if not config.engine.is_shared(rundir.own_nats):
        return None
    from synchromesh.system.config.gateway_keys import keys_of_folder
    from synchromesh.system.config.keys_on_nats import keys_on_nats

    keys = keys_on_nats(config, rundir.folder, signer, runtime.wall_us)
    enter.push_async_callback(keys.close)
    await keys.open(keys_of_folder(gateway, rundir, runtime.disk))
    return keys


async def book_of_clients(
    config: SystemConfig,
    rundir: RunDir,
    runtime: DiskRuntime,
    signer: Signer,
    enter: AsyncExitStack,
    background: Supervisor,
) -> ClientBook:
    """Return what admits clients from outside: by the grants on NATS, where hosts share them.

    Args:
        enter: closes them when the process ends.

    Raises:
        ConfigError: the server cannot be used, or what is there is another system's.
        DiscoveryError: it does not answer.
    """
    book = ClientBook(rundir.clients, signer.client_keys)
    if not config.engine.is_shared(rundir.own_nats):
        return book
    from synchromesh.system.config.client_grants import ClientsFile
    from synchromesh.system.config.grants_on_nats import grants_on_nats

    grants = grants_on_nats(config, rundir, signer, runtime.wall_us)
    enter.push_async_callback(grants.close)
    await grants.open(read_grants(rundir.clients).values())
    book.shared, book.why_old = grants.by_id, lambda: grants.why_old
    file = ClientsFile(rundir.clients, runtime.disk, runtime.wall_us())
    background.start(Child("clients", grants.run))
    background.start(Child("clients/file", lambda: grants.note_revoked_in(file)))
    return book
