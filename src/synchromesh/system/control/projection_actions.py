"""What an operator does with projections."""

from __future__ import annotations

from typing import Any

from synchromesh.errors import BadRequest
from synchromesh.events.inspection import ProjectionSummary, list_projections
from synchromesh.service import ServiceInstance
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import (
    Action,
    ReadAction,
    ReadRequest,
    RepairAction,
    RepairRequest,
)


class ProjectionRequest(RepairRequest, frozen=True, kw_only=True):
    """Which projection."""

    name: str


class ParkedRequest(ProjectionRequest, frozen=True, kw_only=True):
    """Which parked event: of a generation, 0 for the one that is parked."""

    generation: int = 0


class SkipRequest(ParkedRequest, frozen=True, kw_only=True):
    """Which parked event, and at which position it was looked at; 0 for any."""

    position: int = 0


class RebuildRequest(ProjectionRequest, frozen=True, kw_only=True):
    """Which projection, and how it is rebuilt."""

    retry_skipped: bool = False
    without_removed: bool = False


async def _list(reader: StoreReader, _: ReadRequest) -> list[ProjectionSummary]:
    return await list_projections(reader)


async def _retry(instance: ServiceInstance, wanted: ParkedRequest) -> dict[str, Any] | None:
    runner = instance.projections.runners.get(wanted.name)
    if runner is None:
        return None
    parked = await runner.retry(by=_by(wanted), number=wanted.generation)
    return {"name": wanted.name, "parked": parked}


async def _skip(instance: ServiceInstance, wanted: SkipRequest) -> dict[str, Any] | None:
    runner = instance.projections.runners.get(wanted.name)
    if runner is None:
        return None
    skipped = await runner.skip(by=_by(wanted), number=wanted.generation, at=wanted.position)
    return {"name": wanted.name, "skipped": skipped}


async def _rebuild(instance: ServiceInstance, wanted: RebuildRequest) -> dict[str, Any] | None:
    runner = instance.projections.runners.get(wanted.name)
    if runner is None:
        return None
    made = await runner.rebuild(
        by=_by(wanted), takes_skipped=wanted.retry_skipped, is_lossy=wanted.without_removed
    )
    return {"name": wanted.name, "generation": made.number, "skipped": made.skipped}


async def _switch(instance: ServiceInstance, wanted: ProjectionRequest) -> dict[str, Any] | None:
    runner = instance.projections.runners.get(wanted.name)
    if runner is None:
        return None
    live = await runner.switch(by=_by(wanted))
    return {"name": wanted.name, "generation": live.number}


async def _drop(instance: ServiceInstance, wanted: ProjectionRequest) -> dict[str, Any] | None:
    dropped = await instance.projections.drop(wanted.name, by=_by(wanted))
    return None if dropped is None else {"name": wanted.name, "generation": dropped.number}


def _by(wanted: RepairRequest) -> dict[str, str]:
    return {"who": wanted.who, "why": wanted.why}


def _unknown(wanted: ProjectionRequest) -> BadRequest:
    return BadRequest(
        f"no projection is called {wanted.name!r}; synchromesh projection list shows them"
    )


ACTIONS: tuple[Action, ...] = (
    ReadAction("projection.list", ReadRequest, _list),
    RepairAction("projection.retry", ParkedRequest, _retry, _unknown),
    RepairAction("projection.skip", SkipRequest, _skip, _unknown),
    RepairAction("projection.rebuild", RebuildRequest, _rebuild, _unknown),
    RepairAction("projection.switch", ProjectionRequest, _switch, _unknown),
    RepairAction("projection.drop", ProjectionRequest, _drop, _unknown),
)
