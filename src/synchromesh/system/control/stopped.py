"""Reads the databases of a system that is stopped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from synchromesh.errors import BadRequest, ConfigError
from synchromesh.events.inspection import export_events
from synchromesh.runtime import RealRuntime
from synchromesh.store import SqliteStores, StoreFactory
from synchromesh.system.config.databases import Databases, Server, databases_by
from synchromesh.system.config.definitions import load_services
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.action_table import find_action
from synchromesh.system.control.actions import Answers, ReadAction, check_several, parse_request
from synchromesh.system.control.spans import LAST
from synchromesh.system.supervise.postgres_engine import PostgresEngine
from synchromesh.telemetry import ASKING, kept_calls, kept_spans
from synchromesh.telemetry.observed import ObservedCall, merged

POSTGRES = PostgresEngine.name
_NEVER_RAN = "no system has run in {} yet; start one there with: synchromesh dev"


def databases_of(folder: Path) -> list[str]:
    """Return the services whose databases are in the run directory of a folder.

    An external service may keep a file of its own beside them. Where the configuration cannot be
    read, all files count. On a server it is each service that keeps something.
    """
    found, config = sorted(path.stem for path in RunDir(folder).data.glob("*.db")), _config(folder)
    if config is None:
        return found
    if config.engine.postgres or POSTGRES in RunDir(folder).engines():
        keep = [each.name for each in load_services(config, folder) if each.state]
        return [name for name in keep if name not in config.engine.sqlite or name in found]
    return [name for name in found if name in config.services]


@contextlib.asynccontextmanager
async def stores_at(folder: Path) -> AsyncIterator[StoreFactory]:
    """Return what opens the databases of the system in a folder, whether or not it runs.

    Raises:
        ConfigError, MissingExtra: as `databases_by` does.
    """
    async with databases_at(folder) as databases:
        yield databases.stores


@contextlib.asynccontextmanager
async def server_at(folder: Path, *, starts: bool = False) -> AsyncIterator[Server | None]:
    """Return the server of the system in a folder, as `databases_at` does; None without one."""
    async with databases_at(folder, starts=starts) as databases:
        yield databases.server


@contextlib.asynccontextmanager
async def databases_at(folder: Path, *, starts: bool = False) -> AsyncIterator[Databases]:
    """Return the databases of the system in a folder, on their server or in files.

    A server that was started with the system, and stopped with it, is started meanwhile.

    Args:
        starts: start one as `dev --engine postgres` does, also where none has been.

    Raises:
        ConfigError, MissingExtra: as `databases_by` does.
    """
    rundir, config = RunDir(folder), _config(folder)
    if config is None:
        yield Databases(SqliteStores(RealRuntime(), rundir.database))
        return
    async with contextlib.AsyncExitStack() as stack:
        if not config.engine.postgres and (starts or POSTGRES in rundir.engines()):
            engine = PostgresEngine(rundir.path)
            if not engine.is_running:
                stack.push_async_callback(engine.stop)
                await engine.start()
            config = replace(config, engine=replace(config.engine, postgres=engine.url))
        yield databases_by(config, folder, RealRuntime())


def _config(folder: Path) -> SystemConfig | None:
    """Return the configuration of a folder; None where it cannot be read."""
    with contextlib.suppress(ConfigError):
        return load_config(folder, environment=os.environ)
    return None


async def read_stopped(folder: Path, name: str, body: bytes) -> Answers:
    """Run an action that reads over the databases of the system in a folder.

    Raises:
        ConfigError: the action needs a running system, or there is no such database.
        BadRequest: the request does not fit.
        StoreError: a database cannot be read.
    """
    action = find_action(name)
    if not isinstance(action, ReadAction):
        raise ConfigError(
            f"{name} changes something, so it needs the running system; start it with: "
            "synchromesh dev"
        )
    wanted = parse_request(action, body)
    known = databases_of(folder)
    if not known:
        raise ConfigError(_NEVER_RAN.format(folder))
    if wanted.service and wanted.service not in known:
        raise ConfigError(
            f"{wanted.service!r} has no database; there are those of {', '.join(known)}"
        )
    answers = {}
    async with stores_at(folder) as stores:
        for service in known:
            if wanted.service not in ("", service):
                continue
            reader = await stores.open_reader(service)
            try:
                answer = await action.run(reader, wanted)
            finally:
                await reader.close()
            if answer is not None:
                # As it would come from the running system.
                answers[service] = msgspec.json.decode(msgspec.json.encode(answer))
    if not answers and action.unknown is not None:
        raise action.unknown(wanted)
    check_several(action, wanted, answers)
    return Answers(answers)


def read_trace(folder: Path, trace_id: str) -> dict[str, Any]:
    """Return the spans of a trace, or of the `LAST`, as far as the processes had written them.

    Raises:
        ConfigError: no system has run in the folder.
        BadRequest: there are none.
    """
    files = sorted(RunDir(folder).telemetry.glob("spans*.db"))
    if not files:
        raise ConfigError(_NEVER_RAN.format(folder))
    disk = RealRuntime().disk
    if trace_id == LAST:
        newest = [span for file in files for span in kept_spans(str(file), disk, "")]
        asked = [span for span in newest if span.kind in ASKING]
        if not asked:
            raise BadRequest("nobody has asked for anything yet; try: synchromesh call")
        trace_id = max(asked, key=lambda span: span.started_us).trace_id
    spans = [span for file in files for span in kept_spans(str(file), disk, trace_id)]
    if not spans:
        raise BadRequest(
            f"no spans of trace {trace_id[:80]!r} are kept; the ring may have wrapped. The "
            "newest is: synchromesh trace last"
        )
    spans.sort(key=lambda span: span.started_us)
    # As it would come from the running system.
    return {"trace_id": trace_id, "spans": msgspec.to_builtins(spans)}


def read_observed(folder: Path) -> list[ObservedCall]:
    """Return what was called by whom in a system that is stopped; nothing where none has run."""
    files, disk = sorted(RunDir(folder).telemetry.glob("spans*.db")), RealRuntime().disk
    return merged([call for file in files for call in kept_calls(str(file), disk)])


async def export_to(
    folder: Path,
    service: str,
    write: Callable[[bytes], object],
    *,
    stream: str,
    name: str,
    after: int,
) -> int:
    """Write all events of a service as lines of JSON; return how many.

    They are read from its database, whether or not it runs, so that it has no work of it.

    Raises:
        ConfigError: there is no such database.
        StoreError: it cannot be read.
    """
    known = databases_of(folder)
    if service not in known:
        there = f"those of {', '.join(known)}" if known else "none"
        raise ConfigError(f"{service!r} has no database; there are {there}")
    count = 0
    async with stores_at(folder) as stores:
        reader = await stores.open_reader(service)
        try:
            async for lines in export_events(reader, stream=stream, name=name, after=after):
                write(lines)
                count += lines.count(b"\n")
        finally:
            await reader.close()
    return count
