"""What opens the databases of services, whatever engine keeps them."""

from __future__ import annotations

from collections.abc import Sequence
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

    def dry_run(self, service: str, schemas: Sequence[Schema]) -> None:
        """Try migrations on empty copies of a service's tables; another may own its database.

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
