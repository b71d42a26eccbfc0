"""`Alone`: one application's outbox, inbox, event log and sagas, in its own database."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode
from weakref import WeakKeyDictionary, WeakSet

from synchromesh.alone.borrowing import borrow
from synchromesh.alone.function_delivery import Delivered, DeliverOptions, FunctionDelivery
from synchromesh.alone.logged import LoggedEvent, logged
from synchromesh.alone.projecting import LogProjection
from synchromesh.alone.queue_bound import QueueBound
from synchromesh.alone.runs import AloneRuns
from synchromesh.alone.saga_work import RunSagasOptions, SagaWork
from synchromesh.alone.session_steps import SessionSteps
from synchromesh.alone.set_aside import ParkedMessage, drop_set_aside, list_set_aside
from synchromesh.alone.sweeping import forget, sweep_for_ever
from synchromesh.alone.tables import SCHEMAS, VERSION, check_name
from synchromesh.alone.unit import WEEK_S, AloneUnit
from synchromesh.durations import ABOVE_0, refuse_wrong_number, refuse_wrong_numbers
from synchromesh.errors import (
    ContractError,
    LogGap,
    LogReplaced,
    MissingExtra,
    StoreBroken,
    StoreError,
)
from synchromesh.events import EventTypes
from synchromesh.events.appending import TOPIC
from synchromesh.functions import with_arguments
from synchromesh.messaging import Relay, RelayOptions
from synchromesh.runtime import RealRuntime, Runtime
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, SagaVersions, timetable
from synchromesh.saga.tables import HANDED_OVER
from synchromesh.store import Store
from synchromesh.store.postgres_dialect import Translations
from synchromesh.telemetry import MemoryRing, Tracer, current_span

if TYPE_CHECKING:
    from synchromesh.store.postgres import PostgresStore

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
S = TypeVar("S")

# As SQLAlchemy writes it, with the driver.
_DRIVER = re.compile(r"^(postgres(?:ql)?)\+\w+(?=://)")
# Arguments of SQLAlchemy's dialect, and of asyncpg's function: the server knows nothing of them.
_ARGUMENTS = frozenset(
    {
        "async_creator_fn", "async_fallback", "command_timeout", "max_cacheable_statement_size",
        "max_cached_statement_lifetime", "prepared_statement_cache_size",
        "prepared_statement_name_func", "statement_cache_size", "timeout",
    }
)  # fmt: skip
# Where the log is of no use before a person has looked at it.
_FINAL = (LogReplaced, LogGap, StoreBroken)
_PAUSE_S = 1.0
_DELIVER = DeliverOptions()
_RUN_SAGAS = RunSagasOptions()
# What the others listen to.
_TOPICS = frozenset({TOPIC, HANDED_OVER, timetable.TOPIC})
_log = logging.getLogger("synchromesh.alone")


@dataclass(frozen=True, slots=True)
class AloneOptions:
    """Bounds what is kept and how often is looked; times in seconds.

    Attributes:
        look_every_s: how often it is looked for what others have committed.
        keep_s: how long keys are kept, messages that all functions have got, and runs of sagas that
            have ended.

    Example:
        >>> AloneOptions().keep_s
        604800.0
    """

    look_every_s: float = 0.25
    keep_s: float = WEEK_S

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (ABOVE_0, "look_every_s keep_s"))


class _Opened(NamedTuple):
    loop: asyncio.AbstractEventLoop
    options: AloneOptions


class Alone:
    """Has outbox, inbox, event log and sagas in an application's own PostgreSQL database.

    `unit` writes, in a transaction that the application has begun; `open`, `deliver`, `project` and
    `run_sagas` do what comes after the commit, in any number of processes: each thing is one's at a
    time.

    Args:
        name: that of the application; stored names of events begin with it, so that it stays.
        events: the classes of what is published or appended, structs or dataclasses.
        runtime: clock and ids; those of the machine by default.
        queue_max: runs of sagas that may wait for a place before `AloneUnit.start` refuses one.

    Example:
        >>> import msgspec
        >>> class OrderPlaced(msgspec.Struct, frozen=True):
        ...     order_id: str
        >>> shop = Alone("shop", OrderPlaced)
        >>> async def place(session: object, order_id: str) -> None:
        ...     async with shop.unit(session) as unit:  # in a transaction of the session
        ...         await unit.publish(OrderPlaced(order_id), key=order_id)
        >>> shop.names
        ('shop.order_placed',)
    """

    def __init__(
        self, name: str, *events: type, runtime: Runtime | None = None, queue_max: int = 10_000
    ) -> None:
        check_name(name)
        self.name = name
        self._types = EventTypes(name, *events)
        self._runtime = runtime or RealRuntime()
        self._plans = Translations(("sm_event",))
        self._events = events
        self._sagas = SagaVersions()
        self._queue = QueueBound(queue_max)
        self._opened: WeakKeyDictionary[Any, _Opened] = WeakKeyDictionary()
        self._at_sagas: WeakSet[Any] = WeakSet()

    @property
    def names(self) -> tuple[str, ...]:
        """The stored names of its events."""
        return tuple(self._types.name_of(each) for each in self._events)

    @property
    def types(self) -> EventTypes:
        """What decodes its stored events."""
        return self._types

    @asynccontextmanager
    async def unit(self, session: Any, *, trace_id: str = "") -> AsyncIterator[AloneUnit]:
        """Open a unit in the transaction that a session is in; the session's owner commits it.

        At the end of the block the session is flushed, and it is checked that the transaction still
        stands. Where an error leaves the block, the transaction is rolled back, so that nobody
        commits a part of the unit; within a savepoint of the session only that is.

        READ COMMITTED is enough for all that a unit does by itself: it takes the locks that it
        needs. What your own statements read and write is protected as your transaction has it.

        Args:
            session: a `sqlalchemy.ext.asyncio.AsyncSession`, an asyncpg connection, or a psycopg
                `AsyncConnection`. Of a driver's connection the transaction is not rolled back after
                an error, but fails, so that it commits nothing and refuses what comes.
            trace_id: what events and messages carry; by default the trace that goes on here.

        Raises:
            ContractError: the session is in no transaction, or in autocommit, or is none.
            StoreReadOnly: the transaction is read only.
            StatementFailed: a statement of it was refused before, so that it can commit nothing.
            StoreBroken: the tables are not there.
        """
        borrowed = borrow(session)
        await borrowed.begin()
        around = current_span.get()
        unit = AloneUnit(
            borrowed, self._types, self._sagas, service=self.name, runtime=self._runtime,
            plans=self._plans,
            trace_id=trace_id or (around.trace_id if around is not None else ""),
            queue=self._queue,
        )  # fmt: skip
        try:
            yield unit
            await borrowed.end()
        except BaseException:
            unit.close()
            try:
                await borrowed.undo()
            except Exception as error:  # noqa: BLE001 - the block's own error is what is told
                _log.warning("a unit could not be rolled back, its connection is lost: %r", error)
            raise
        unit.close()
        if unit.topics:
            borrowed.after_commit(partial(self._look, unit.topics))

    @asynccontextmanager
    async def open(
        self, url: str, *, options: AloneOptions = AloneOptions()
    ) -> AsyncIterator[Store]:
        """Open the database beside its sessions: what is committed gets its place in the log.

        At least one process has it open at a time; else nothing is delivered, or seen by readers
        of the log. It sweeps what was kept long enough, and makes no tables.

        Args:
            url: the database's, as SQLAlchemy or asyncpg writes it; not that of a
                PgBouncer that pools transactions.

        Raises:
            StoreBroken: the tables are not there, or are another application's.
            StoreUnavailable: the server cannot be reached.
            MissingExtra: asyncpg is not installed.
        """
        store = await self._open(_plain(url), options)
        self._opened[store] = _Opened(asyncio.get_running_loop(), options)
        sweeping = asyncio.get_running_loop().create_task(
            store.owners.run("sweep", partial(sweep_for_ever, store, keep_s=options.keep_s)),
            name=f"sweep of {self.name}",
        )
        try:
            yield store
        finally:
            del self._opened[store]
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            await store.close()

    async def deliver(
        self,
        store: Store,
        name: str,
        function: Callable[[Delivered], Awaitable[None]],
        *,
        events: tuple[type, ...] = (),
        options: DeliverOptions = _DELIVER,
    ) -> None:
        """Deliver all committed messages to a function, until cancelled; outages are waited for.

        At least once, in order for each key; of all processes that deliver under a name one does,
        and another goes on where it ended. A function that raises gets the message again, and later
        ones of its key wait behind it. What it does once, it does by `AloneUnit.once`.

        Args:
            name: what the place in the log is kept under; it stays. A new one begins with the log.
            events: the classes that it wants; by default all.

        Raises:
            ContractError: the name is none, or a class was not given to `Alone`.
            LogReplaced, LogGap, StoreBroken: a person has to look at the log first.
        """
        check_name(name)
        relay = Relay(
            store,
            FunctionDelivery(name, function, self._types, options),
            subscriber=name,
            names=self._wanted(events),
            tracer=Tracer(self.name, self._runtime, MemoryRing(1)),
            runtime=self._runtime,
            options=RelayOptions(in_flight_max=options.in_flight_max, poll_s=options.poll_s),
        )
        await self._keep(store, relay.checkpoint_name, relay.run)

    async def set_aside(self, store: Store, *, limit: int = 100) -> list[ParkedMessage]:
        """Return the messages that were set aside, or wait behind one of their key, oldest first.

        Each is tried again every few seconds: what mends the function delivers them.
        """
        return await list_set_aside(store, limit)

    async def drop(self, store: Store, number: int, *, who: str, why: str) -> ParkedMessage:
        """Discard a message that was set aside; the next one of its key is delivered.

        Who did it and why is an event of the log, in the same commit.

        Raises:
            BadRequest: nothing is set aside under that number, or it is not said who, or why.
        """
        return await drop_set_aside(store, number, who=who, why=why)

    async def forget(self, store: Store, name: str, *, who: str, why: str) -> None:
        """Forget a name under which nobody delivers, or projects, any more.

        What it had not got is kept for it no longer, and what it had set aside is gone. Who did it
        and why is an event of the log, in the same commit. A name that is used again is a new one.

        Raises:
            BadRequest: somebody delivers under it, or nothing is kept for it, or it is not said
                who, or why.
        """
        await forget(store, name, who=who, why=why)

    async def project(
        self,
        store: Store,
        name: str,
        begin: Callable[[], AbstractAsyncContextManager[S]],
        function: Callable[[S, LoggedEvent], Awaitable[None]],
        *,
        events: tuple[type, ...] = (),
        poll_s: float = 0.25,
    ) -> None:
        """Hand events of the log to a function, in their order, until cancelled.

        The function writes in the transaction that it is given, which commits the place in the log
        with what it wrote: each event has its effect once (E5). One process at a time does it. An
        event at which it raises is tried again, with pauses, and all others wait behind it.

        Args:
            name: what the place is kept under; a new one begins with the log.
            begin: begins a transaction, as `async_sessionmaker.begin` does.
            function: is given the session, or connection, and the event.
            events: the classes that it wants, published ones too; by default all of this `Alone`.

        Raises:
            ContractError: the name is none, or a class was not given to `Alone`.
            ConfigError: `poll_s` is no time.
            LogReplaced, LogGap, StoreBroken: a person has to look at the log first.
        """
        check_name(name)
        refuse_wrong_number("poll_s", poll_s, ABOVE_0)
        projection = LogProjection(
            store,
            name,
            begin=begin,
            opens=self.unit,
            names=self._wanted(events),
            take=lambda session, stored: function(session, logged(self._types, stored)),
            poll_s=poll_s,
        )
        await self._keep(store, projection.checkpoint_name, projection.run)

    @with_arguments('PlaceOrder, deadline="10m"')
    def saga(
        self,
        _input: type[I],
        *,
        name: str = "",
        version: int = 1,
        deadline: str,
        key: Callable[[I], str | None] | None = None,
        owner: str = "",
        policy: SagaPolicy | None = None,
    ) -> Callable[[Callable[[Saga, I], Coroutine[Any, Any, R]]], SagaDefinition[I, R]]:
        """Define a saga: a function of steps, each with its compensation.

        Args:
            _input: the type of the saga's input.
            name: what its runs are stored under; the function's name where empty.
            version: raised whenever the steps change. The function of an older version may stay
                beside it, under the same `name`: its runs end with it (S11).
            deadline: until its pivot is tried the saga turns past it; such as "10m".
            key: the semantic lock: one unfinished run per key; None takes no lock.
            owner: who looks after a stuck run; the application where empty.
            policy: time-outs and attempts of its steps.

        Raises:
            ContractError: the function is no `async def`, or this version is there already.
            ConfigError: an option is outside its range.

        Example:
            >>> shop = Alone("shop")
            >>> async def charge(key: str, cents: int) -> str:
            ...     return f"receipt of {key}"  # the bank's client, which is given the key
            >>> @shop.saga(int, deadline="10m")
            ... async def checkout(s: Saga, cents: int) -> str:
            ...     return await s.step(charge, cents, pivot=True)
            >>> async def pay(session: object, order_id: str, cents: int) -> None:
            ...     async with shop.unit(session) as unit:  # in a transaction of the session
            ...         await unit.start(checkout, cents, id=order_id)
        """
        return self._sagas.defining(
            name=name,
            version=version,
            deadline=deadline,
            key=key,
            owner=owner or self.name,
            policy=policy,
        )

    async def run_sagas(
        self,
        store: Store,
        begin: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
        *,
        options: RunSagasOptions = _RUN_SAGAS,
    ) -> None:
        """Run the sagas that units have started, until cancelled; outages are waited for.

        Of all processes that do, each has a part of the runs, and another goes on with those of one
        that died. A function of `s.write` is given what `begin` gives: what it writes there is
        committed with the run's record of the step, or not at all.

        Args:
            begin: begins a transaction, as `async_sessionmaker.begin` does; None where no saga
                has an `s.write`.

        Raises:
            ContractError: the store is not open by this `Alone`, or its sagas are run already.
        """
        opened = self._opened.get(store)
        if opened is None or store in self._at_sagas:
            what = "is not open here" if opened is None else "has its sagas run already"
            raise ContractError(
                f"run_sagas was given {store!r}, which {what}: call it once for each "
                "`async with alone.open(url) as store`, within the block"
            )
        steps = SessionSteps(
            store, begin, self.unit, limit_s=options.session_limit_s,
            at_once_max=options.sessions_max,
        )  # fmt: skip
        work = SagaWork(
            store, self._sagas, steps, runtime=self._runtime, options=options,
            keep_s=opened.options.keep_s, look_every_s=opened.options.look_every_s,
        )  # fmt: skip
        self._at_sagas.add(store)
        try:
            await work.run()
        finally:
            self._at_sagas.discard(store)

    def runs(self, store: Store) -> AloneRuns:
        """Return what tells of the runs of its sagas, and what a person does with one."""
        return AloneRuns(store)

    def look(self) -> None:
        """Have what was committed in this process delivered, and begun, at once: a hint.

        A session of SQLAlchemy tells of its commit by itself. With a driver's connection it may be
        called after the commit; else it is found at the next look.
        """
        self._look(_TOPICS)

    def _look(self, topics: AbstractSet[str]) -> None:
        with suppress(RuntimeError):
            here = asyncio.get_running_loop()
            for store, opened in [*self._opened.items()]:
                if opened.loop is here:
                    store.look({*topics})

    def _wanted(self, events: tuple[type, ...]) -> frozenset[str]:
        names = frozenset(self._types.name_of(each) for each in events or self._events)
        if not names:
            raise ContractError(f"{self!r} has no events to hand out: give it their classes")
        return names

    async def _keep(
        self, store: Store, duty: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Do a duty whenever it is this process's; an outage is waited for."""
        while True:
            try:
                await store.owners.run(duty, work)
            except _FINAL:
                raise
            except StoreError as error:
                _log.warning("%s of %s waits: %s", duty, self.name, error.message)
            await asyncio.sleep(_PAUSE_S)

    async def _open(self, url: str, options: AloneOptions) -> PostgresStore:
        try:
            from synchromesh.store.postgres import PostgresOptions, PostgresStore, PostgresStores
        except ImportError as error:
            raise MissingExtra("postgres", needed_for="a pattern alone") from error
        missing = await PostgresStores(self._runtime, lambda _: url).plan(self.name, SCHEMAS)
        if missing:
            raise StoreBroken(
                f"the tables of Synchromesh are not there, or not those of this release: run "
                f"upgrade_statements({self.name!r}, {VERSION}) in a migration before the process "
                "starts"
            )
        return await PostgresStore.open(
            url, service=self.name, schemas=SCHEMAS, runtime=self._runtime,
            options=PostgresOptions(look_every_s=options.look_every_s),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Alone {self.name}: {', '.join(self.names) or 'no events'}>"


def _plain(url: str) -> str:
    """Return the address that SQLAlchemy writes as the server's own."""
    plain, had_driver = _DRIVER.subn(r"\1", url)
    if not had_driver:
        return url
    place, _, query = plain.partition("?")
    kept = [
        ("sslmode" if name == "ssl" else name, value)
        for name, value in parse_qsl(query)
        if name not in _ARGUMENTS
    ]
    return f"{place}?{urlencode(kept)}" if kept else place
