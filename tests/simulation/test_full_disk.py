"""A disk without room needs a person, and `status` says so."""

from __future__ import annotations

import asyncio

import pytest

from synchromesh.errors import StoreFull
from synchromesh.service import Service
from synchromesh.service.instance import ServiceInstance
from synchromesh.store import Migration, Schema, Unit
from synchromesh.store.sqlite import SqliteStore
from synchromesh.system.control.findings import of_services
from synchromesh.system.control.status_parts import HealthStatus, ServiceStatus
from synchromesh.testing import SimRuntime, run

TABLES = Schema("shop", (Migration(1, ("create table shelf(sku text)",), 1),))


def test_a_database_without_room_is_a_finding_until_it_is_refused_no_more() -> None:
    """It is told for a minute after the last unit that found no room, with the mend."""

    async def fill(unit: Unit) -> None:
        await unit.execute("insert into shelf values ('SX90')")

    class Instance(ServiceInstance):
        def __init__(self, store: SqliteStore) -> None:
            self.service, self.store = Service("shop"), store

        def findings(self) -> list[str]:
            health = HealthStatus("shop", True, False, {})
            return list(of_services({"shop": ServiceStatus(1, health, full=self.full)}, {}))

    async def main(runtime: SimRuntime) -> None:
        store = await SqliteStore.open(
            "/shop.db", service="shop", schemas=[TABLES], runtime=runtime
        )
        instance = Instance(store)
        await store.write(fill, name="fill")
        assert instance.findings() == []
        runtime.disk.fill("/shop.db")
        with pytest.raises(StoreFull):
            await store.write(fill, name="fill")
        (told,) = instance.findings()
        assert told.startswith("shop has no room to write: /shop.db: ")
        assert "make room on the disk or raise the page limit" in told
        runtime.disk.mend("/shop.db")
        await asyncio.sleep(61.0)
        assert instance.findings() == []
        await store.close()

    run(main)
