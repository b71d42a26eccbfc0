"""What contract suites run on: each fixture is parametrised by the engines that have to pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from synchromesh.calls import Caller
from synchromesh.runtime import RealRuntime
from synchromesh.store import Schema, SqliteStore, Store


class Stores:
    """Opens stores of one engine; the same service again is the same database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runtime = RealRuntime()
        self._opened: list[Store] = []

    async def open(self, schemas: Sequence[Schema], *, service: str = "shop") -> Store:
        """Open the database of a service."""
        store = await SqliteStore.open(
            str(self._folder / f"{service}.db"),
            service=service,
            schemas=schemas,
            runtime=self._runtime,
        )
        self._opened.append(store)
        return store

    async def close(self) -> None:
        """Close all that were opened."""
        for store in self._opened:
            await store.close()


@pytest.fixture(params=["sqlite"])
async def stores(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Stores]:
    """A factory of stores, on every engine."""
    made = Stores(tmp_path)
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
