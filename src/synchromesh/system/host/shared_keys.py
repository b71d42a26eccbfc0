"""Opens the API keys that the gateway of a process shares with its other replicas."""

from __future__ import annotations

from contextlib import AsyncExitStack

from synchromesh.gateway import Gateway
from synchromesh.identity import Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.system.config.gateway_keys import keys_of_folder
from synchromesh.system.config.keys_on_nats import KeysOnNats, are_keys_shared, keys_on_nats
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig


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
    if not are_keys_shared(config, rundir):
        return None
    keys = keys_on_nats(config, rundir.folder, signer, runtime.wall_us)
    enter.push_async_callback(keys.close)
    await keys.open(keys_of_folder(gateway, rundir, runtime.disk))
    return keys
