"""What contract suites run on: each fixture is parametrised by the engines that have to pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import virtual_postgres
from postgres_server import empty_database, shared_server
from saga_fakes import open_store
from synchromesh.calls import Caller
from synchromesh.runtime import RealRuntime
from synchromesh.store import Schema, SqliteStore, Store
from synchromesh.store.postgres import PostgresStore
from synchromesh.testing import SimRuntime, run


class Stores:
    """Opens stores of one engine; the same service again is the same database."""

    engine = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runtime = RealRuntime()
        self._opened: list[Store] = []

    async def open(self, schemas: Sequence[Schema], *, service: str = "shop") -> Store:
        """Open the database of a service."""
        store = await self.opened(schemas, service)
        self._opened.append(store)
        return store

    async def opened(self, schemas: Sequence[Schema], service: str) -> Store:
        """Open it on this engine."""
        return await SqliteStore.open(
            str(self._folder / f"{service}.db"),
            service=service,
            schemas=schemas,
            runtime=self._runtime,
        )

    async def close(self) -> None:
        """Close all that were opened."""
        for store in self._opened:
            await store.close()


class PostgresStores(Stores):
    """Opens stores on the server of this process; a database is emptied when it is first used."""

    engine = "postgres"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._known: set[str] = set()

    async def opened(self, schemas: Sequence[Schema], service: str) -> Store:
        """Open it on this engine."""
        if service not in self._known:
            self._known.add(service)
            await empty_database(service)
        return await PostgresStore.open(
            shared_server().url(service), service=service, schemas=schemas, runtime=self._runtime
        )


@pytest.fixture(params=["sqlite", "postgres"])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[Stores]:
    """A factory of stores, on every engine."""
    made = Stores(tmp_path) if request.param == "sqlite" else PostgresStores(tmp_path)
    yield made
    await made.close()


@pytest.fixture(params=["fast", "slow"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every caller send its calls by one of the two ways."""
    make = Caller.__init__

    def made(self: Caller, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self.is_slow = request.param == "slow"

    monkeypatch.setattr(Caller, "__init__", made)


@pytest.fixture(params=["sqlite", "postgres"])
def each_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have simulations keep their data on each engine in turn, in virtual time on both."""
    if request.param == "sqlite":
        yield
    else:
        with virtual_postgres.turned_on():
            run(made)
            yield


async def made(runtime: SimRuntime) -> None:
    """Have the tables made, so that no life of a test's service takes longer than the others."""
    await (await open_store(runtime)).close()
