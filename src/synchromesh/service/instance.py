"""One running instance of a service: its database, its handlers and its background children.

This is the order in which a service comes up: the database is owned and migrated, unfinished sagas
are recovered, relays and projections start, and only then does the dispatcher take calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from synchromesh.calls import Caller, Dispatcher, FaultTable, Incoming, Policies, Transport
from synchromesh.calls.contract import Operation
from synchromesh.codec import decode, encode
from synchromesh.context import CallContext, new_span_id
from synchromesh.discovery import Resolver
from synchromesh.events import SCHEMA as EVENTS_SCHEMA
from synchromesh.events import EventTypes, Projection, ProjectionRunner, StoredEvent
from synchromesh.identity import Signer
from synchromesh.messaging import DELIVER, Consumer, Message, MessageHandler, Relay, deliver_to
from synchromesh.messaging import SCHEMA as MESSAGING_SCHEMA
from synchromesh.runtime import Runtime
from synchromesh.saga.engine import Engine
from synchromesh.saga.journal import Clock
from synchromesh.saga.tables import SCHEMA as SAGA_SCHEMA
from synchromesh.service.context import Home
from synchromesh.service.definition import ProjectionDefinition, Service
from synchromesh.service.handlers import Operations
from synchromesh.service.supervisor import Child, ChildState, Supervisor
from synchromesh.service.transaction import Transaction, UnitScope
from synchromesh.store import Schema, SqliteStore, StoreOptions, Unit, inbox
from synchromesh.store.migrations import dry_run_migrations as rehearse_on
from synchromesh.telemetry import Sink, Tracer

SWEEP_EVERY_S = 60.0
ADOPT_EVERY_S = 30.0
# How long inboxes remember; longer than any saga may still ask (S6).
KEEP_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the system hands to each of its instances.

    Attributes:
        policies: how the calls of a service are guarded, by its name.
        subscribers: for each service, the public events it takes, by stored name.
        escalate: told service, child and error where a background child is beyond restarting.
        keep_s: how long inboxes remember; longer than any saga may still ask.
        faults: those that people put in force on purpose.
    """

    runtime: Runtime
    signer: Signer
    sink: Sink
    resolver: Resolver
    transports: Mapping[str, Transport]
    policies: Callable[[str], Policies]
    subscribers: Mapping[str, frozenset[str]]
    escalate: Callable[[str, str, BaseException], None]
    keep_s: float = KEEP_S
    store: StoreOptions = field(default_factory=StoreOptions)
    faults: FaultTable | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What one instance says of itself."""

    service: str
    is_healthy: bool
    is_draining: bool
    children: dict[str, ChildState]


class ServiceInstance:
    """One service that runs; made by `start`, ended by `stop`."""

    def __init__(self, service: Service, store: SqliteStore, around: Surroundings) -> None:
        self.service = service
        self.store = store
        runtime, name = around.runtime, service.name
        self._clock = Clock(runtime)
        tracer = Tracer(name, runtime, around.sink)
        self.caller = Caller(
            name,
            resolver=around.resolver,
            transports=around.transports,
            signer=around.signer,
            tracer=tracer,
            runtime=runtime,
            policies=around.policies(name),
            faults=around.faults,
        )
        self._units = UnitScope(_event_types(service), runtime)
        self.engine = Engine(
            store,
            self.caller,
            service=name,
            tracer=tracer,
            runtime=runtime,
            definitions=service.sagas,
            run_unit=self._units.run,
        )
        self.consumer = Consumer(store, self._message_handlers(runtime), keep_s=around.keep_s)
        home = Home(store, self.caller, self.engine, self._units, runtime, around.keep_s)
        self.operations = Operations(service, home)
        self.dispatcher = Dispatcher(
            name,
            {**self.operations.handlers(), DELIVER: self._deliver},
            signer=around.signer,
            tracer=tracer,
            runtime=runtime,
            is_external=service.is_external,
        )
        self._supervisor = Supervisor(
            name, escalate=lambda child, error: around.escalate(name, child, error)
        )
        self._children = self._background(around, tracer)
        self._is_draining = False

    @classmethod
    async def start(cls, service: Service, path: str, around: Surroundings) -> ServiceInstance:
        """Bring a service up; when this returns, its dispatcher may be given calls.

        Raises:
            ContractError: the service does not fit its contract.
            StoreError: its database cannot be used.
        """
        service.check()
        store = await SqliteStore.open(
            path,
            service=service.name,
            schemas=(EVENTS_SCHEMA, MESSAGING_SCHEMA, SAGA_SCHEMA, *_own_schema(service)),
            runtime=around.runtime,
            options=around.store,
            tracer=Tracer(service.name, around.runtime, around.sink),
        )
        try:
            instance = cls(service, store, around)
        except BaseException:
            await store.close()
            raise
        try:
            await instance.engine.recover()
        except BaseException:
            await instance.stop()
            raise
        for child in instance._children:
            instance._supervisor.start(child)
        return instance

    @property
    def offered(self) -> list[Operation[..., Any]]:
        """The operations that this instance answers, the internal one of messages among them."""
        own = [handled.operation for handled in self.service.operations.values()]
        return [*own, deliver_to(self.service.name)]

    def health(self) -> Health:
        """Return how the instance is."""
        return Health(
            self.service.name,
            self._supervisor.is_healthy,
            self._is_draining,
            dict(self._supervisor.states),
        )

    async def drain(self, within_s: float) -> None:
        """Take no more calls, and let those that run come to their end in the given time."""
        self._is_draining = True
        await self.dispatcher.drain(within_s)

    async def stop(self) -> None:
        """End everything; what was not finished continues at the next start. May be repeated."""
        await self.drain(0.0)
        await self._supervisor.close()
        await self.engine.close()
        await self.store.close()

    def _background(self, around: Surroundings, tracer: Tracer) -> list[Child]:
        children = [Child("inbox sweep", self._sweep), Child("saga recovery", self._adopt)]
        own = frozenset(event.full_name for event in self.service.published())
        for subscriber, wanted in sorted(around.subscribers.items()):
            if names := wanted & own:
                relay = Relay(
                    self.store,
                    self.caller,
                    subscriber=subscriber,
                    names=names,
                    tracer=tracer,
                    runtime=around.runtime,
                )
                children.append(Child(relay.checkpoint_name, relay.run))
        for projected in self.service.projections.values():
            runner = ProjectionRunner(self.store, self._projection(projected, around.runtime))
            children.append(Child(f"projection/{projected.name}", runner.run))
        return children

    def _projection(self, projected: ProjectionDefinition, runtime: Runtime) -> Projection:
        types = self._units.types
        # A class that the contract publishes is taken as it was published, any other as appended.
        wanted: dict[tuple[str, bool], type] = {
            (public.full_name, True): public.kind
            for public in self.service.published()
            if public.kind in projected.events
        }
        is_published = set(wanted.values())
        for event in projected.events:
            if event not in is_published:
                wanted[(types.name_of(event), False)] = event

        async def apply(unit: Unit, stored: StoredEvent) -> None:
            kind = wanted.get((stored.name, stored.is_public))
            if kind is None:
                return
            event = decode(stored.body, kind) if stored.is_public else types.decode(stored)
            context = _context_of(stored.trace_id, runtime)
            await self._units.run(unit, context, lambda tx: projected.function(tx, event))

        return Projection(projected.name, apply)

    def _message_handlers(self, runtime: Runtime) -> dict[str, MessageHandler]:
        def handler_of(name: str) -> MessageHandler:
            event, function = self.service.subscriptions[name]

            async def handle(unit: Unit, message: Message) -> None:
                payload = decode(bytes(message.payload), event.kind)

                async def body(tx: Transaction) -> None:
                    await function(tx, payload)

                await self._units.run(unit, _context_of(message.trace_id, runtime), body)

            return handle

        return {name: handler_of(name) for name in self.service.subscriptions}

    async def _deliver(self, incoming: Incoming) -> bytes:
        message: Message = incoming.operation.parse(incoming.arguments)["message"]
        return encode(await self.consumer.take(incoming.context.caller, message))

    async def _adopt(self) -> None:
        while True:
            await asyncio.sleep(ADOPT_EVERY_S)
            await self.engine.adopt()

    async def _sweep(self) -> None:
        async def body(unit: Unit) -> int:
            return await inbox.sweep(unit, now_us=self._clock.now_us())

        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            while await self.store.write(body, name="sweep the inbox"):
                pass

    def __repr__(self) -> str:
        return f"<ServiceInstance {self.service.name}{' draining' if self._is_draining else ''}>"


def dry_run_migrations(service: Service, path: str, runtime: Runtime) -> None:
    """Try the service's migrations on empty copies of its tables; another may own its database.

    Raises:
        ContractError, StoreTooNew, StoreError: a start would fail with them, too.
    """
    rehearse_on(path, _own_schema(service), runtime.disk)


def _own_schema(service: Service) -> tuple[Schema, ...]:
    """Return the service's own tables, which it need not have."""
    own = Schema(f"service.{service.name}", service.migrations)
    return (own,) if own.migrations else ()


def _event_types(service: Service) -> EventTypes:
    types = EventTypes(service.name)
    for projected in service.projections.values():
        for event in projected.events:
            types.add(event)
    return types


def _context_of(trace_id: str, runtime: Runtime) -> CallContext:
    """Return the context of work that nobody waits for: it has a trace, and no deadline."""
    return CallContext(trace_id=trace_id, span_id=new_span_id(runtime.rng))
