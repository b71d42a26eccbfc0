"""Where the databases of a system are, by its configuration: SQLite files, or a PostgreSQL server.

The engine's own modules are imported only where it is configured.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from synchromesh.errors import ConfigError, MissingExtra
from synchromesh.identity import Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.store import PlacedStores, SqliteStores, StoreFactory, StoreOptions
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import system_keys

if TYPE_CHECKING:
    from synchromesh.store.postgres import PostgresStores
    from synchromesh.store.postgres_databases import PostgresDatabases


@dataclass(frozen=True, slots=True)
class Server:
    """The databases of a system on a PostgreSQL server: what opens them, and what makes them.

    Attributes:
        sqlite: the services that keep their files beside it.
    """

    stores: PostgresStores
    databases: PostgresDatabases
    sqlite: frozenset[str] = frozenset()

    def has(self, service: str) -> bool:
        """Return whether a service's database is on it."""
        return service not in self.sqlite


@dataclass(frozen=True, slots=True)
class Databases:
    """The databases of a system.

    Attributes:
        stores: opens them.
        server: what they are on a server; None where they are SQLite files.
    """

    stores: StoreFactory
    server: Server | None = None


def databases_by(
    config: SystemConfig,
    folder: Path,
    runtime: DiskRuntime,
    signer: Signer | None = None,
    *,
    store: StoreOptions | None = None,
) -> Databases:
    """Return the databases that a configuration asks for; nothing is opened.

    Args:
        signer: has the system's key; None where it is read from the folder, if it is needed.
        store: the bounds of every SQLite file, None for the usual ones; `pages_max` of a service's
            section goes first.

    Raises:
        ConfigError: the URL of the server, or the key, is missing or none.
        MissingExtra: a server is named, and the extra `postgres` is not installed.
    """
    rundir = RunDir(folder)
    url = check_engines(config, folder)
    files = SqliteStores(runtime, rundir.database, _options(config, store or StoreOptions()))
    if not url:
        return Databases(files)
    from synchromesh.store.one_history import OneHistory
    from synchromesh.store.postgres import PostgresStores
    from synchromesh.store.postgres_databases import PostgresDatabases

    if signer is None:
        if not config.system.key:
            rundir.create()
        signer = Signer(*system_keys(config.system, rundir, folder, os.environ))
    of = PostgresDatabases(url, system=config.system.name, passwords=signer.database_passwords)
    stores = PostgresStores(runtime, of.url, mark=of.mark)
    server = Server(stores, of, frozenset(config.engine.sqlite))
    is_trial = "postgres" in rundir.engines()
    there = OneHistory(stores, rundir.database, runtime.disk, is_trial=is_trial)
    if not server.sqlite:
        return Databases(there, server)
    return Databases(PlacedStores(lambda name: there if server.has(name) else files), server)


def check_engines(config: SystemConfig, folder: Path) -> str:
    """Check what `[engine]` names, and that it can be used here; return PostgreSQL's URL, or "".

    No server is asked.

    Raises:
        ConfigError: a URL is missing or none, or something bounds files that are not there.
        MissingExtra: a server is named, and its extra is not installed.
    """
    config.engine.url("nats", folder, os.environ)
    url = config.engine.url("postgres", folder, os.environ)
    if not url:
        return ""
    for name, section in config.services.items():
        if section.pages_max and config.engine.is_on_server(name):
            raise ConfigError(
                f"[services.{name}] pages_max bounds a SQLite file, and [engine] postgres keeps "
                "databases on a server, which has bounds of its own; leave it out"
            )
    try:
        importlib.import_module("synchromesh.store.postgres")
    except ModuleNotFoundError as error:
        raise MissingExtra("postgres", needed_for="[engine] postgres") from error
    return url


def _options(config: SystemConfig, store: StoreOptions) -> Callable[[str], StoreOptions]:
    def of(service: str) -> StoreOptions:
        return replace(store, pages_max=config.services[service].pages_max or store.pages_max)

    return of
