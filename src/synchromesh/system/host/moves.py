"""Which services of a split system have been taken to the PostgreSQL server while it runs.

The configuration says where each service is at its next start, and is written before: so a system
that is killed at any moment starts where it says, or is refused with what is missing. Until the
copy is committed and the file marked, a process of the service that starts is on its file; from
then on it is on the server. Nobody remembers that but the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from synchromesh.errors import BadRequest, ConfigError, MissingExtra, SynchromeshError
from synchromesh.service import Service
from synchromesh.store.taken_along import THERE, CopiedService, TakenTo, mark_of
from synchromesh.system.config.databases import check_engines
from synchromesh.system.config.engine_section import EngineSection
from synchromesh.system.config.schema import FILE_NAME, SystemConfig
from synchromesh.system.control.moving import CopyRequest
from synchromesh.system.control.remote import RemoteProcess
from synchromesh.system.host.host import Host
from synchromesh.system.supervise.messages import CopyOrder

_log = logging.getLogger("synchromesh.system")


class Moves:
    """Takes services to the server, one process after the other; `taken` says where each starts.

    Args:
        host: the supervisor's own.
        remotes: the processes of services, by name.
        reread: reads the configuration as it is now.
    """

    def __init__(
        self, host: Host, remotes: Mapping[str, RemoteProcess], reread: Callable[[], SystemConfig]
    ) -> None:
        self._host = host
        self._remotes = remotes
        self._reread = reread
        # Where those services start that were asked for, once they are there; and what is to do.
        self._engines: dict[str, EngineSection] = {}
        self._orders: dict[str, CopyOrder] = {}
        self._under_way: set[str] = set()

    def taken(self, name: str) -> tuple[EngineSection, CopyOrder | None]:
        """Return where the database of a service is that starts now, and whether it is to copy it.

        It is told to copy once: where that fails, the next process goes on with what is there.
        """
        order = self._orders.pop(name, None)
        if order is not None or self._mark(name) is not None:
            return self._engines[name], order
        return self._host.config.engine, None

    async def copy(
        self, name: str, wanted: CopyRequest, anew: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Have a service replaced by a process that takes its file to the server, and wait for it.

        What is begun is ended, whoever waits for it.

        Args:
            anew: replaces its process, and returns what is answered.

        Raises:
            BadRequest: the configuration does not say so, or it cannot be copied, or that is under
                way already; it serves on.
        """
        host = self._host
        service = host.deps.services.get(name)
        if service is None or not service.state:
            raise BadRequest(f"there is no service {name!r} with a database in the running system")
        if name in self._under_way:
            raise BadRequest(
                f"{name} is being copied to the server: wait until that has ended, and run this "
                "again to hear what came of it"
            )
        if name not in self._on_files():
            return self._there(name)
        try:
            self._engines[name] = self._wanted(service)
        except (ConfigError, MissingExtra) as error:
            raise BadRequest(error.message) from error
        self._orders[name] = CopyOrder(host.runtime.wall_us(), wanted.who, wanted.why)
        self._under_way.add(name)
        host.local.note("db copy", name, wanted.who, wanted.why)
        copying = asyncio.ensure_future(self._copy(name, anew))
        copying.add_done_callback(_note_failed)
        return await asyncio.shield(copying)

    async def _copy(
        self, name: str, anew: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        try:
            answer = await anew()
        except BadRequest as error:
            on = "the server, where its copy is" if self._mark(name) is not None else "its file"
            raise BadRequest(
                f"{error.message}; {name} goes on with {on}: run this again once that is mended"
            ) from error
        finally:
            self._orders.pop(name, None)
            self._under_way.discard(name)
        if answer["is_refused"]:
            return {**answer, "copied": None}
        if self._mark(name) is None:
            raise BadRequest(
                f"the process of {name} that was to copy it has ended, and {name} goes on with its "
                "file: see its log, then run this again"
            )
        engine = replace(self._engines[name], sqlite=tuple(self._on_files()))
        self._host.local.engines |= engine.shown(self._host.folder, os.environ)
        copied = self._remotes[name].child.copied
        # None where the process that copied it has been replaced since.
        return {**answer, "copied": copied} if copied is not None else self._there(name)

    def _there(self, name: str) -> dict[str, Any]:
        """Return what is answered of a service that is on the server already."""
        path = self._host.rundir.database(name)
        mark = mark_of(path, self._host.runtime.disk)
        if mark is None:
            raise BadRequest(f"{name} is on the server, and has no file that was copied there")
        return {"copied": CopiedService(name, THERE, path, mark.place), "is_refused": False}

    def _on_files(self) -> list[str]:
        """Return the services whose databases are files now."""
        host = self._host
        return [
            each.name
            for each in host.deps.services.values()
            if each.state
            and not host.config.engine.is_on_server(each.name)
            and self._mark(each.name) is None
        ]

    def _wanted(self, service: Service) -> EngineSection:
        """Return where the service is to be, by the configuration as it is now.

        Raises:
            ConfigError: that does not say that this service is to be on the server, and each other
                one where it is; or the server's URL cannot be read.
            MissingExtra: there is nothing installed to reach it.
        """
        host, name, now = self._host, service.name, self._reread()
        began, wanted = host.config.engine, now.engine
        keep = [each.name for each in host.deps.services.values() if each.state]
        stays = [each for each in self._on_files() if each != name]
        if any(wanted.is_on_server(each) is (each in stays) for each in keep):
            raise ConfigError(_lines(name, wanted, stays))
        if began.postgres and began.postgres != wanted.postgres:
            raise ConfigError(
                f"{FILE_NAME} names another server ([engine] postgres) than the one that the "
                "system runs on, and a system has one: take that back, or start the system anew"
            )
        stay = tuple(each for each in host.config.services if each != name)
        engine = replace(wanted, sqlite=stay)
        try:
            check_engines(replace(now, engine=engine), host.folder)
        except ConfigError as error:
            raise ConfigError(
                f"{error.message} (as the system that runs sees it, in its own environment; "
                '"file:PATH" is read anew)'
            ) from error
        return engine

    def _mark(self, name: str) -> TakenTo | None:
        """Return where a service was taken to since the system started; None for nowhere."""
        if name not in self._engines:
            return None
        mark = mark_of(self._host.rundir.database(name), self._host.runtime.disk)
        return mark if mark is not None and mark.is_there else None

    def __repr__(self) -> str:
        return f"<Moves of {', '.join(self._engines) or 'none'}>"


def _lines(name: str, wanted: EngineSection, stays: Sequence[str]) -> str:
    server = "" if wanted.postgres else 'postgres = "env:DATABASE_URL"\n'
    others = f"sqlite = {msgspec.json.encode(stays).decode()}" if stays else 'no key "sqlite"'
    return (
        f"{FILE_NAME} has to say where each service is once {name} is copied, so that no start "
        f"takes it for another: write this first, and run it again. Nothing was copied.\n"
        f"[engine]\n{server}{others}"
    )


def _note_failed(copying: asyncio.Task[dict[str, Any]]) -> None:
    if not copying.cancelled() and isinstance(error := copying.exception(), SynchromeshError):
        _log.warning("a service was not taken to the server: %s", error.message)
