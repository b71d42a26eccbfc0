"""The stream by which messages go between the services of a system, where `[engine]` has NATS."""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from synchromesh.errors import ConfigError, MissingExtra, SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.identity import Signer
from synchromesh.messaging import Stream
from synchromesh.runtime import Runtime
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.urls import shown, url_fault

_ASK_WITHIN_S = 2.0

_log = logging.getLogger("synchromesh.system")


class _Storage(msgspec.Struct):
    """What of the server's `/jsz?config=1` says when it writes to its disk."""

    class Config(msgspec.Struct):
        sync_always: bool = False

    config: Config = msgspec.field(default_factory=Config)


async def open_stream(
    config: SystemConfig,
    folder: Path,
    signer: Signer,
    runtime: Runtime,
    pool: HttpPool,
    until: AsyncExitStack,
) -> Stream | None:
    """Connect to the stream of the system until it ends; None where messages go by calls.

    Raises:
        ConfigError: the server cannot be used; the message says why.
        MissingExtra: the extra `nats` is not installed.
    """
    url = config.engine.url("nats", folder, os.environ)
    if not url:
        return None
    try:
        from synchromesh.messaging.jetstream import JetStream
    except ModuleNotFoundError as error:
        raise MissingExtra("nats", needed_for="[engine] nats") from error
    monitor = config.engine.nats_monitor
    if monitor and (fault := url_fault(monitor)):
        raise ConfigError(f"[engine] nats_monitor: {shown(monitor)}: {fault}")
    stream = await JetStream.connect(url, config.system.name, signer=signer, runtime=runtime)
    until.push_async_callback(stream.close)
    # What `dev` has started itself writes each message to its disk.
    is_own = config.engine.nats == RunDir(folder).own_nats
    if not is_own and (why := await _why_unsafe(monitor, pool)):
        _log.warning("a power cut may take messages that NATS has just acknowledged: %s", why)
    return stream


async def _why_unsafe(monitor: str, pool: HttpPool) -> str:
    """Return why it is not known that the server writes each message to its disk; "" if it does."""
    if not monitor:
        return (
            "whether its sync_interval is `always` cannot be seen by its clients; name its "
            "monitoring address in [engine] nats_monitor, and it is looked at"
        )
    place = urlsplit(monitor)
    try:
        answer = await pool.request(
            place.hostname or "",
            place.port or 80,
            "GET",
            f"{place.path.rstrip('/')}/jsz?config=1",
            [("host", place.netloc)],
            timeout_s=_ASK_WITHIN_S,
            is_idempotent=True,
        )
        found = msgspec.json.decode(answer.body, type=_Storage)
    except (SynchromeshError, msgspec.MsgspecError, OSError) as error:
        return f"{monitor} does not tell its sync_interval: {error}"
    return "" if found.config.sync_always else "its sync_interval is not `always`; set it"
