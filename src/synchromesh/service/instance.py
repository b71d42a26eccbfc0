"""A running instance of a service: its database, handlers and background loops.

This is the order in which a service comes up: the database is owned and migrated, unfinished sagas
are recovered, relays and projections start, and only then does the dispatcher take calls. A service
of queries only has no database, and nothing of all that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from synchromesh.calls import Dispatcher, Incoming
from synchromesh.calls.contract import Operation
from synchromesh.clock import loop_clock, loop_now
from synchromesh.codec import decode, encode
from synchromesh.context import CallContext, new_span_id
from synchromesh.errors import BadRequest, ContractMismatch
from synchromesh.events import RELAY_PREFIX, EventTypes, count_after_checkpoint
from synchromesh.events import SCHEMA as EVENTS_SCHEMA
from synchromesh.messaging import (
    DELIVER,
    Consumer,
    Delivery,
    DirectDelivery,
    GoneSubscriber,
    Message,
    MessageHandler,
    Relay,
    SetAside,
    deliver_to,
    gone_subscribers,
    summarize,
)
from synchromesh.messaging import SCHEMA as MESSAGING_SCHEMA
from synchromesh.runtime import Runtime
from synchromesh.saga.deps import Clock
from synchromesh.saga.engine import Engine, EngineOptions
from synchromesh.saga.inspection import oldest_runs
from synchromesh.saga.schema import SCHEMA as SAGA_SCHEMA
from synchromesh.service.context import HandlerDeps
from synchromesh.service.definition import Service
from synchromesh.service.deps import Deps
from synchromesh.service.erasure import adopt_keys, keep_overwriting
from synchromesh.service.forgetting import Forgetting
from synchromesh.service.handlers import Operations
from synchromesh.service.no_store import NoStore
from synchromesh.service.projections import Projections
from synchromesh.service.readiness import Readiness
from synchromesh.service.relays import Relays
from synchromesh.service.scheduler import SCHEMA as SCHEDULE_SCHEMA
from synchromesh.service.scheduler import Scheduler, list_schedules
from synchromesh.service.supervisor import Child, ChildState, Supervisor
from synchromesh.service.transaction import Transaction, UnitScope
from synchromesh.store import Schema, Store, StoreFactory, Unit, inbox
from synchromesh.store.archive import Archive
from synchromesh.store.health import note_retention
from synchromesh.telemetry import Tracer

SWEEP_EVERY_S = 60.0
SWEEP_ROWS = 500
# So long after a unit was refused for want of room its database is told as full.
FULL_S = 60.0


@dataclass(frozen=True, slots=True)
class Health:
    """The health of an instance; `not_ready` says why its database cannot be used, "" if it can."""

    service: str
    is_healthy: bool
    is_draining: bool
    children: dict[str, ChildState]
    not_ready: str = ""


class ServiceInstance:
    """A running service; made by `start`, ended by `stop`.

    Attributes:
        forgetting: forgets what is kept long enough; there where it has a database.
        relays: deliver what it publishes; likewise.
    """

    forgetting: Forgetting
    relays: Relays

    def __init__(self, service: Service, store: Store, deps: Deps, tracer: Tracer) -> None:
        self.service = service
        self.store = store
        runtime, name = deps.runtime, service.name
        self._keep_s = deps.keep_s
        self.caller = deps.caller(name, tracer)
        self._units = UnitScope(_event_types(service, store))
        at_work = deps.saga_places(name)
        self.engine = Engine(
            store,
            self.caller,
            service=name,
            tracer=tracer,
            runtime=runtime,
            versions=service.sagas,
            run_unit=self._units.run,
            options=EngineOptions(at_work.in_flight_max, at_work.queue_max, deps.keep_s),
        )
        self.consumer = Consumer(
            store,
            self._message_handlers(runtime),
            ignored=frozenset(service.ignored),
            keep_s=deps.keep_s,
        )
        self.projections = Projections(service, store, self._units, runtime)
        wait_for = self.projections.wait_for
        handler_deps = HandlerDeps(
            store, self.caller, self.engine, self._units, wait_for, runtime, deps.keep_s
        )
        self.operations = Operations(service, handler_deps)
        places = deps.places(name)
        self.dispatcher = Dispatcher(
            name,
            self.operations.handlers() | ({DELIVER: self._deliver} if self.has_database else {}),
            signer=deps.signer,
            tracer=tracer,
            runtime=runtime,
            in_flight_max=places.in_flight_max,
            queue_max=places.queue_max,
            is_external=service.is_external or name in deps.externals,
        )
        self.readiness = Readiness(store)
        self._supervisor = Supervisor(
            name,
            rng=runtime.rng,
            gave_up=lambda child, error: deps.gave_up(name, child, error),
            gate=self.readiness.usable,
        )
        self._archive: Archive | None = None
        self._children = self._background(deps, tracer) if self.has_database else []
        self._is_draining = False

    @classmethod
    async def start(cls, service: Service, deps: Deps, *, name: str = "") -> ServiceInstance:
        """Open the database, recover sagas and start the background loops.

        When this returns, the dispatcher may be given calls.

        Args:
            name: what its spans call it, where it is one of several replicas.

        Raises:
            ContractError: the service does not fit its contract.
            StoreError: its database cannot be used.
        """
        service.check()
        tracer = deps.tracer(name or service.name)
        store: Store = NoStore(service.name)
        if service.state:
            store = await deps.stores.open(service.name, schemas_of(service), tracer=tracer)
        try:
            instance = cls(service, store, deps, tracer)
        except BaseException:
            await store.close()
            raise
        try:
            if instance.has_database:
                await adopt_keys(store, is_wanted=service.is_personal)
                await instance.projections.prepare()
                await instance.relays.prepare()
                await instance.engine.recover()
        except BaseException:
            await instance.stop()
            raise
        for child in instance._children:
            instance._supervisor.start(child)
        if instance.has_database:
            instance.relays.start()
        return instance

    @property
    def has_database(self) -> bool:
        """Whether it has a database; one of queries only has none."""
        return not isinstance(self.store, NoStore)

    @property
    def offered(self) -> list[Operation[..., Any]]:
        """The operations that this instance serves, including the internal delivery of messages."""
        own = [handled.operation for handled in self.service.operations.values()]
        return [*own, deliver_to(self.service.name)] if self.has_database else own

    async def sagas(self) -> dict[str, int]:
        """Return how many of its sagas have which status."""
        return await self.engine.statuses() if self.has_database else {}

    async def oldest_sagas(self) -> dict[str, int]:
        """Return when the oldest of its sagas that has not ended started, by status."""
        return await oldest_runs(self.store) if self.has_database else {}

    async def set_aside(self, now_us: int) -> SetAside:
        """Return the messages that were set aside, as far as they need a person or a release."""
        if not self.has_database:
            return SetAside()
        return await summarize(self.store, now_us=now_us)

    async def gone(self) -> list[GoneSubscriber]:
        """Return those for whom it keeps events, and who take nothing of it any more."""
        return await gone_subscribers(self.store) if self.has_database else []

    @property
    def keys_lost(self) -> str:
        """The id of the keys of personal data that are lost; "" where none are."""
        return self.store.vault.lost if self.has_database else ""

    @property
    def keys_left_over(self) -> str:
        """Why keys that were erased are still in bytes of their file; "" where none are."""
        return self.store.vault.left_over if self.has_database else ""

    @property
    def full(self) -> str:
        """Why its database took no unit that needs room, in the last minute; "" where it did."""
        refused = self.store.full
        return refused[1] if refused is not None and loop_now() < refused[0] + FULL_S else ""

    async def schedules_failed(self) -> dict[str, str]:
        """Return how each of its schedules failed last, as far as one did."""
        if not self.service.schedules:
            return {}
        found = await list_schedules(self.store)
        return {
            each.name: each.failed
            for each in found
            if each.failed and each.name in self.service.schedules
        }

    async def behind(self) -> dict[str, int]:
        """Return the lag of each relay and projection, in events."""
        relays = {
            child: await count_after_checkpoint(self.store, child, is_public=True)
            for child in self._supervisor.states
            if child.startswith(RELAY_PREFIX)
        }
        return relays | await self.projections.behind()

    def health(self) -> Health:
        """Return the health of the instance."""
        return Health(
            self.service.name,
            self._supervisor.is_healthy and self.readiness.is_ready,
            self._is_draining,
            dict(self._supervisor.states),
            self.readiness.why_not,
        )

    async def restart_child(self, name: str) -> None:
        """Start a background loop anew. Raises KeyError where there is no such child."""
        await self._supervisor.restart(name)

    async def drain(self, within_s: float) -> None:
        """Accept no more calls, and let running ones finish within the given time."""
        self._is_draining = True
        await self.dispatcher.drain(within_s)

    async def stop(self) -> None:
        """Stop the instance; unfinished sagas continue at the next start. May be repeated."""
        await self.drain(0.0)
        await self._supervisor.close()
        await self.engine.close()
        if self._archive is not None:
            await self._archive.close()
        await self.store.close()
        await self.consumer.close()

    def _background(self, deps: Deps, tracer: Tracer) -> list[Child]:
        self._archive = deps.archive(self.service.name)
        own = frozenset(event.full_name for event in self.service.published())
        personal = frozenset(
            event.full_name for event in self.service.published() if event.personal is not None
        )
        self.forgetting = Forgetting(
            self.store, deps.retention.of(own), Clock(deps.runtime), self._archive
        )
        children = [
            self._duty("inbox sweep", self._sweep),
            Child("saga recovery", self.engine.keep_going),
            self._duty("message replay", self.consumer.run),
            Child("saga timers", self.engine.keep_time),
            self._duty("forgetting", self.forgetting.run),
            Child("keys", lambda: keep_overwriting(self.store.vault)),
        ]
        if not self.store.owners.is_sole:
            children.append(Child("saga wishes", self.engine.keep_answering))
        stream, name = deps.stream, self.service.name

        def delivery_to(subscriber: str) -> Delivery:
            # Personal values are nowhere kept in the plain, and in a stream they would be.
            if stream is None or personal:
                return DirectDelivery(self.caller, subscriber)
            return stream.delivery(name, subscriber)

        self.relays = Relays(
            self.store,
            lambda subscriber, names: Relay(
                self.store,
                delivery_to(subscriber),
                subscriber=subscriber,
                names=names,
                tracer=tracer,
                runtime=deps.runtime,
                personal=personal,
            ),
            own=own,
            subscribers=deps.subscribers,
            listen=deps.declared.listen,
            supervisor=self._supervisor,
        )
        if own:
            children.append(Child("subscriptions", self.relays.run))
        if stream is not None:
            feed = partial(stream.feed, name, self.consumer, tracer)
            children.append(self._duty("stream", feed))
        for scheduled in self.service.schedules.values():
            scheduler = Scheduler(
                scheduled, self.store, self.caller, runtime=deps.runtime, keep_s=deps.keep_s
            )
            children.append(self._duty(scheduler.duty, scheduler.run))
        runners = self.projections.runners.values()
        children += [self._duty(each.checkpoint_name, each.run) for each in runners]
        return children

    def _duty(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> Child:
        """Return a loop that runs in one process at a time, of those that have the database."""
        return Child(name, lambda: self.store.owners.run(name, work))

    def _message_handlers(self, runtime: Runtime) -> dict[str, MessageHandler]:
        def handler_of(name: str) -> MessageHandler:
            event, function = self.service.subscriptions[name]

            async def handle(unit: Unit, message: Message) -> None:
                try:
                    payload = decode(bytes(message.payload), event.kind)
                except BadRequest as error:
                    raise ContractMismatch(
                        f"{message.name} does not fit this release's {event.kind.__name__}: "
                        f"{error.message}"
                    ) from error

                async def body(tx: Transaction) -> None:
                    await function(tx, payload)

                await self._units.run(unit, _context_of(message.trace_id, runtime), body)

            return handle

        return {name: handler_of(name) for name in self.service.subscriptions}

    async def _deliver(self, incoming: Incoming) -> bytes:
        message: Message = incoming.operation.parse(incoming.arguments)["message"]
        return encode(await self.consumer.take(incoming.context.caller, message))

    async def _sweep(self) -> None:
        time = loop_clock(asyncio.get_running_loop())
        swept_s = time()

        async def body(unit: Unit) -> int:
            gone = await inbox.sweep(
                unit, ran_s=now_s - swept_s, keep_s=self._keep_s, rows_max=SWEEP_ROWS,
                is_needed=self.consumer.is_needed,
            )  # fmt: skip
            if gone:
                await note_retention(
                    unit, "inbox", keep_s=self._keep_s, cursor=0, removed=gone, held_by="",
                    now_us=unit.now_us,
                )  # fmt: skip
            return gone

        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = time()
            while await self.store.write(body, name="sweep the inbox") == SWEEP_ROWS:
                pass
            swept_s = now_s

    def __repr__(self) -> str:
        return f"<ServiceInstance {self.service.name}{' draining' if self._is_draining else ''}>"


async def dry_run_migrations(
    service: Service, stores: StoreFactory, *, lacks: Callable[[], None]
) -> None:
    """Try the migrations on a copy of the schema, while another process owns the database.

    Of a service without migrations there is nothing to try. `lacks` is called before they are
    tried, where the database lacks some.

    Raises:
        ContractError, StoreTooNew, StoreError: a start would fail with them, too.
    """
    if service.migrations:
        await stores.dry_run(service.name, _own_schema(service), lacks)


def schemas_of(service: Service) -> tuple[Schema, ...]:
    """Return the tables of all rooms and of the service itself."""
    rooms = (EVENTS_SCHEMA, MESSAGING_SCHEMA, SAGA_SCHEMA, SCHEDULE_SCHEMA)
    return (*rooms, *_own_schema(service))


def _own_schema(service: Service) -> tuple[Schema, ...]:
    """Return the migrations of the service's own tables; it need not have any."""
    own = Schema(f"service.{service.name}", service.migrations)
    return (own,) if own.migrations else ()


def _event_types(service: Service, store: Store) -> EventTypes:
    vault = None if isinstance(store, NoStore) else store.vault
    types = EventTypes(service.name, vault=vault)
    for versions in service.projections.values():
        for projected in versions.values():
            for event in projected.events:
                types.add(event)
    return types


def _context_of(trace_id: str, runtime: Runtime) -> CallContext:
    """Return a context for background work: with a trace, without a deadline."""
    return CallContext(trace_id=trace_id, span_id=new_span_id(runtime.rng))
