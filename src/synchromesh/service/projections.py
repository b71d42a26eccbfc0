"""The projections of a running service: their runners, their lag, and reading one's own writes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from synchromesh.codec import decode
from synchromesh.context import CallContext, new_span_id
from synchromesh.errors import BadRequest, ContractError, ProjectionBehind
from synchromesh.events import (
    AppendReceipt,
    Generation,
    Projection,
    ProjectionRunner,
    StoredEvent,
    head,
    list_generations,
    position_of,
)
from synchromesh.events.generations import drop_unknown, mark_unknown
from synchromesh.events.types import event_place
from synchromesh.personal_types import personal_fields
from synchromesh.runtime import Runtime
from synchromesh.sealing import open_sealed
from synchromesh.service.definition import ProjectionDefinition, Service
from synchromesh.service.transaction import UnitScope
from synchromesh.store import Store, Unit


class Projections:
    """Holds the runners of a service's projections, by name."""

    def __init__(self, service: Service, store: Store, units: UnitScope, runtime: Runtime) -> None:
        self._service = service
        self._store = store
        self._units = units
        self._runtime = runtime
        self.runners: dict[str, ProjectionRunner] = {
            name: ProjectionRunner(store, [self._projection(each) for each in versions.values()])
            for name, versions in service.projections.items()
        }

    async def prepare(self) -> None:
        """Make the tables of what is new in this release, before anything reads them.

        Raises:
            ContractError: the tables of a version have changed.
        """
        for runner in self.runners.values():
            await runner.prepare()
        if any(each.name not in self.runners for each in await list_generations(self._store)):
            await self._store.write(
                lambda unit: mark_unknown(unit, self.runners), name="mark unknown projections"
            )

    async def list(self) -> list[Generation]:
        """Return the generations of all projections, the live one of each first."""
        return await list_generations(self._store) if self.runners else []

    async def behind(self) -> dict[str, int]:
        """Return the lag of each generation in positions, by what it is called in `status`."""
        found = await self.list()
        if not found:
            return {}
        end = (await head(self._store)).position
        return {lag_name(each): max(0, end - each.position) for each in found}

    def runner(self, name: str) -> ProjectionRunner:
        """Return a runner.

        Raises:
            BadRequest: the service has no such projection.
        """
        runner = self.runners.get(name)
        if runner is None:
            raise BadRequest(self._unknown(name))
        return runner

    async def drop(self, name: str, *, by: Mapping[str, str]) -> Generation | None:
        """Drop the standby of a projection, or all of one that no code names; None for neither.

        Raises:
            BadRequest: there is no standby.
        """
        if name in self.runners:
            return await self.runners[name].drop(by=by)
        if not await list_generations(self._store, name):
            return None
        return await self._store.write(
            lambda unit: drop_unknown(unit, name, by=by), name=f"drop projection {name}"
        )

    async def wait_for(self, name: str, receipt: AppendReceipt, within_s: float) -> None:
        """Return once a projection has passed what a receipt tells of.

        Raises:
            ProjectionBehind: it has not within the time, or it is parked.
            BadRequest: there is no such event.
            ContractError: there is no such projection.
        """
        if name not in self.runners:
            raise ContractError(self._unknown(name))
        position = await position_of(self._store, receipt)
        try:
            async with asyncio.timeout(within_s):
                await self.runners[name].wait_for(position)
        except TimeoutError:
            raise ProjectionBehind(
                f"projection {name!r} has not come to version {receipt.version} of "
                f"{receipt.stream!r} within {within_s:g} s; it is {self.runners[name].lag} "
                "positions behind: ask again"
            ) from None

    def _unknown(self, name: str) -> str:
        known = ", ".join(self.runners) or "none"
        return f"service {self._service.name!r} has no projection {name!r}; it has {known}"

    def _projection(self, projected: ProjectionDefinition) -> Projection:
        types = self._units.types
        # A class that the contract publishes is taken as it was published, any other as appended.
        wanted: dict[tuple[str, bool], type] = {
            (public.full_name, True): public.kind
            for public in self._service.published()
            if public.kind in projected.events
        }
        is_published = set(wanted.values())
        are_personal = {kind for kind in is_published if personal_fields(kind) is not None}
        for event in projected.events:
            if event not in is_published:
                wanted[(types.name_of(event), False)] = event

        async def apply(unit: Unit, stored: StoredEvent) -> None:
            kind = wanted.get((stored.name, stored.is_public))
            if kind is None:
                return
            if stored.is_public:
                body = stored.body
                if kind in are_personal:
                    body = open_sealed(body, event_place(stored.name), self._store.vault)
                event: object = decode(body, kind)
            else:
                event = types.decode(stored)
            # In the background: with a trace, without a deadline.
            context = CallContext(trace_id=stored.trace_id, span_id=new_span_id(self._runtime.rng))
            await self._units.project(unit, context, lambda tx: projected.function(tx, event))

        return Projection(projected.name, apply, projected.version, projected.tables)

    def __repr__(self) -> str:
        return f"<Projections of {self._service.name}: {', '.join(self.runners) or 'none'}>"


def lag_name(generation: Generation) -> str:
    """Return what a generation is called where lags are told.

    Example:
        >>> live = Generation("demand", 2, 1, "", (), True, False, 0, 0, None, 0, "", 0)
        >>> lag_name(live)
        'projection/demand'
    """
    name = f"projection/{generation.name}"
    return name if generation.is_live else f"{name} (standby)"
