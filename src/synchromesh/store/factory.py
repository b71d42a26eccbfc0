"""What opens the databases of services, whatever engine keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from synchromesh.store.unit import Schema, Store, StoreReader
from synchromesh.telemetry import Tracer


class StoreFactory(Protocol):
    """Opens each service's own database; it says where that is, and within which bounds."""

    async def open(
        self, service: str, schemas: Sequence[Schema], *, tracer: Tracer | None = None
    ) -> Store:
        """Own the database of a service, bring its tables up to date and return its store.

        With a `tracer`, each unit of a trace gets a span.

        Raises:
            StoreError: the database cannot be used; StoreLocked: another process owns it.
            ContractError: a schema's migrations are not in order.
        """
        ...

    async def dry_run(
        self, service: str, schemas: Sequence[Schema], lacks: Callable[[], None]
    ) -> None:
        """Try migrations on empty copies of a service's tables; another may own its database.

        `lacks` is called before they are tried, where some are known to be missing.

        Raises:
            ContractError, StoreError: `open` would fail with them, too.
        """
        ...

    async def open_reader(self, service: str) -> StoreReader:
        """Open the database of a service to read it; another process may own it, or none.

        Raises:
            StoreError: there is none yet, or it cannot be read.
        """
        ...


class PlacedStores:
    """Is a `StoreFactory` of databases that different factories open.

    Args:
        of: returns the one that opens a service's database.
    """

    def __init__(self, of: Callable[[str], StoreFactory]) -> None:
        self._of = of

    async def open(
        self, service: str, schemas: Sequence[Schema], *, tracer: Tracer | None = None
    ) -> Store:
        """Open a service's database where it is, as `StoreFactory.open` says."""
        return await self._of(service).open(service, schemas, tracer=tracer)

    async def dry_run(
        self, service: str, schemas: Sequence[Schema], lacks: Callable[[], None]
    ) -> None:
        """Try migrations where a service's database is, as `StoreFactory.dry_run` says."""
        await self._of(service).dry_run(service, schemas, lacks)

    async def open_reader(self, service: str) -> StoreReader:
        """Open a service's database to read it, as `StoreFactory.open_reader` says."""
        return await self._of(service).open_reader(service)
