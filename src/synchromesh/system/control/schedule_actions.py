"""What an operator reads of schedules."""

from __future__ import annotations

from typing import Any

from synchromesh.codec import to_datetime
from synchromesh.service.scheduler import list_schedules
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import Action, ReadAction, ReadRequest


class ListSchedules(ReadRequest, frozen=True):
    """Which schedules: those of a service, or all."""


async def _list(reader: StoreReader, _: ListSchedules) -> list[dict[str, Any]] | None:
    found = await list_schedules(reader)
    return [
        {
            "name": each.name,
            "expression": each.expression,
            "zone": each.zone,
            "last_at": to_datetime(each.last_us),
            "next_at": to_datetime(each.next_us),
            "failed": each.failed,
        }
        for each in found
    ] or None


ACTIONS: tuple[Action, ...] = (ReadAction("schedule.list", ListSchedules, _list),)
