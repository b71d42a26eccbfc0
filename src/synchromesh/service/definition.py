"""`Service`: the definition of a service. Importing a user's module defines and starts nothing."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from synchromesh.calls.contract import (
    Call,
    Command,
    Operation,
    PublicEvent,
    events_of,
    operations_of,
)
from synchromesh.durations import is_count
from synchromesh.errors import ContractError
from synchromesh.events import GenerationTables
from synchromesh.functions import with_arguments
from synchromesh.messaging import DELIVER
from synchromesh.personal_types import personal_fields
from synchromesh.saga import Saga as SagaSteps
from synchromesh.saga import SagaDefinition, SagaPolicy, SagaVersions
from synchromesh.service.context import Context
from synchromesh.service.schedule import Missed, Schedule, ScheduleDefinition
from synchromesh.service.transaction import Transaction
from synchromesh.store import Migration
from synchromesh.tuples import to_tuple

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E")
I = TypeVar("I")  # noqa: E741  the input of a saga


@dataclass(frozen=True, slots=True)
class HandlerDefinition:
    """An operation and its handler; `signature` is that of the function.

    Attributes:
        scopes: what the principal of a call has to hold, all of them.
    """

    operation: Operation[..., Any]
    function: Callable[..., Awaitable[Any]]
    is_unit: bool
    signature: inspect.Signature
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ProjectionDefinition:
    """One version of a projection: its event classes, its tables, and the function that writes."""

    name: str
    events: tuple[type, ...]
    function: Callable[[Transaction, Any], Awaitable[None]]
    version: int
    tables: GenerationTables


class Service:
    """Defines a service: its contract, handlers, subscriptions, sagas, and the tables it owns.

    Args:
        name: lower-case letters, digits and _; the name of its contract, its database and its
            edges.
        implements: the contract, every operation of which needs a handler when the service starts.
        migrations: the service's own tables, ascending from version 1.
        ignored: public events of others that it does not take and lets pass: what an earlier
            release held of them is let go of, and a release that no longer subscribes says so here.

    Example:
        >>> inventory = Service("inventory")
        >>> inventory
        <Service inventory: 0 operations, 0 subscriptions, 0 sagas>
    """

    def __init__(
        self,
        name: str,
        *,
        implements: type[object] | None = None,
        migrations: Sequence[Migration] = (),
        ignored: Sequence[PublicEvent[Any]] = (),
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
            raise ContractError(
                f"a service is named {name!r}; expected lower-case letters, digits and _, "
                'such as "inventory"'
            )
        self.name = name
        self.contract = implements
        self.migrations = _of_kind(migrations, Migration, f"migrations= of {name}")
        events = _of_kind(ignored, PublicEvent, f"ignored= of {name}")
        self.ignored = {event.full_name: event for event in events}
        self.operations: dict[str, HandlerDefinition] = {}
        self.subscriptions: dict[
            str, tuple[PublicEvent[Any], Callable[[Transaction, Any], Awaitable[None]]]
        ] = {}
        self.sagas = SagaVersions()
        self.projections: dict[str, dict[int, ProjectionDefinition]] = {}
        self.schedules: dict[str, ScheduleDefinition] = {}
        offered = {} if implements is None else operations_of(implements)
        wrong = next((op for op in offered.values() if op.service != name), None)
        if wrong is not None:
            raise ContractError(
                f"service {name!r} implements a contract of service {wrong.service!r}; "
                "give both the same name"
            )
        self._offered = offered

    @property
    def is_external(self) -> bool:
        """Whether the service is external: its contract says `external=True`."""
        return any(operation.is_external for operation in self._offered.values())

    @property
    def state(self) -> tuple[str, ...]:
        """What needs a database, in words; empty for a service of queries only, which has none."""
        commands = [each.name for each in self._offered.values() if each.is_command]
        events = [event.kind.__name__ for event in self.published()]
        named = {
            "commands": commands,
            "subscriptions": self.subscriptions,
            "ignored events": self.ignored,
            "sagas": list(dict.fromkeys(saga.name for saga in self.sagas)),
            "projections": self.projections,
            "schedules": self.schedules,
            "public events": events,
            "migrations": [str(each.version) for each in self.migrations],
        }
        return tuple(f"{what}: {', '.join(names)}" for what, names in named.items() if names)

    def writes(
        self, operation: Command[P, R], *, scopes: AbstractSet[str] = frozenset()
    ) -> Callable[
        [Callable[Concatenate[Transaction, P], Awaitable[R]]],
        Callable[Concatenate[Transaction, P], Awaitable[R]],
    ]:
        """Handle a command in one transaction: rows, events, messages and answer commit together.

        The function may await only its transaction, may be run again after a conflict, and takes
        effect once per idempotency key.

        Args:
            operation: of the contract.
            scopes: what the principal of a call has to hold, all of them; others are `Forbidden`,
                and so is a call for nobody.
        """
        self._check_operation(operation, "writes")
        if not operation.is_command:
            raise ContractError(
                f"{operation.full_name} is a query, and @{self.name}.writes handles commands; "
                f"write @{self.name}.handles, with a Context, which only reads"
            )

        def register(
            function: Callable[Concatenate[Transaction, P], Awaitable[R]],
        ) -> Callable[Concatenate[Transaction, P], Awaitable[R]]:
            self._handle(operation, function, scopes, is_unit=True)
            return function

        return register

    def handles(
        self, operation: Operation[P, R], *, scopes: AbstractSet[str] = frozenset()
    ) -> Callable[
        [Callable[Concatenate[Context, P], Awaitable[R]]],
        Callable[Concatenate[Context, P], Awaitable[R]],
    ]:
        """Handle an operation by a function that may read, call other services, and write.

        A `Rejection` that it raises says that nothing was done: it is recorded as that, and an undo
        of the call then does nothing. Refuse before the first effect; what needs undoing is a saga.

        Args:
            operation: of the contract.
            scopes: as for `writes`.
        """
        self._check_operation(operation, "handles")

        def register(
            function: Callable[Concatenate[Context, P], Awaitable[R]],
        ) -> Callable[Concatenate[Context, P], Awaitable[R]]:
            self._handle(operation, function, scopes, is_unit=False)
            return function

        return register

    def on(
        self, event: PublicEvent[E]
    ) -> Callable[
        [Callable[[Transaction, E], Awaitable[None]]], Callable[[Transaction, E], Awaitable[None]]
    ]:
        """Subscribe to a public event of another service; each is handled once, in a transaction.

        A failure is retried; after five the message is parked (O5). One that does not fit the
        event's type is held until a release of this service can read it.
        """
        given: object = event
        if not isinstance(given, PublicEvent):
            raise ContractError(
                f"@{self.name}.on is given {given!r:.80}; give it a public event of a contract, "
                "such as Inventory.stock_reserved"
            )

        def register(
            function: Callable[[Transaction, E], Awaitable[None]],
        ) -> Callable[[Transaction, E], Awaitable[None]]:
            if event.full_name in self.subscriptions:
                raise ContractError(f"{self.name} takes {event.full_name} twice; join the two")
            if event.full_name in self.ignored:
                raise ContractError(
                    f"{self.name} takes {event.full_name} and has it in ignored=; remove one"
                )
            what = f"the handler of {event.full_name}"
            _check_async(function, what)
            _check_first(function, what, Transaction, Context)
            self.subscriptions[event.full_name] = (event, function)
            return function

        return register

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
    ) -> Callable[[Callable[[SagaSteps, I], Coroutine[Any, Any, R]]], SagaDefinition[I, R]]:
        """Define a saga: a function of steps, each with its compensation.

        Args:
            _input: the type of the saga's input.
            name: what its runs are stored under; the function's name where empty.
            version: raised whenever the steps change. The function of an older version may stay
                beside it, under the same `name`: its runs end with it (S11).
            deadline: until its pivot is tried the saga turns past it; such as "10m".
            key: the semantic lock: one unfinished run per key; None takes no lock.
            owner: who is told of a stuck run; the service where empty.
            policy: time-outs and attempts of its steps.
        """
        return self.sagas.defining(
            name=name,
            version=version,
            deadline=deadline,
            key=key,
            owner=owner or self.name,
            policy=policy,
        )

    @with_arguments('"sold", events=(Sold,)')
    def projection(
        self, name: str, *, events: tuple[type, ...], tables: Sequence[str] = (), version: int = 1
    ) -> Callable[
        [Callable[[Transaction, Any], Awaitable[None]]],
        Callable[[Transaction, Any], Awaitable[None]],
    ]:
        """Build a read model from this service's own events; each is applied once (E5).

        A class that the contract publishes stands for the events that were published, any other for
        those that were appended or decided. An event that fails again and again parks this
        projection alone.

        Args:
            tables: `create table` and `create index` statements of tables that are its own, so that
                it can be built anew beside the running one. SQL everywhere has their plain names.
            version: raised when `tables` change. Keep the function of the version before until the
                new one is live, or it stands still meanwhile.
        """
        declared = GenerationTables(name, tables)
        kinds = _of_kind(events, type, f"events= of projection {name!r}")
        if not is_count(version) or version < 1 or (version > 1 and not tables):
            raise ContractError(
                f"projection {name!r} of {self.name} has version {version!r} and "
                f"{'tables' if tables else 'no tables'}; versions are 1, 2, 3, ..., and only one "
                "with tables= can be built beside another"
            )

        def register(
            function: Callable[[Transaction, Any], Awaitable[None]],
        ) -> Callable[[Transaction, Any], Awaitable[None]]:
            versions = self.projections.setdefault(name, {})
            if version in versions:
                raise ContractError(
                    f"{self.name} has two projections named {name!r} of version {version}; rename "
                    "one, or raise its version="
                )
            _check_async(function, f"projection {name!r}")
            _check_first(function, f"projection {name!r}", Transaction, Context)
            versions[version] = ProjectionDefinition(name, kinds, function, version, declared)
            return function

        return register

    @with_arguments('"0 9 * * mon-fri"')
    def schedule(
        self, expression: str, *, zone: str = "UTC", missed: str = "last"
    ) -> Callable[[Callable[[dt.datetime], Call[R]]], Callable[[dt.datetime], Call[R]]]:
        """Send a command at the times of a cron expression; each time has one effect.

        The function is given the time and returns the call, which is sent under a key made of the
        function's name and the time, until it is answered or the next time is due.

        Args:
            expression: minute, hour, day of the month, month, day of the week, as cron(8) reads
                them: a time that spring leaves out is due when it is over, one that autumn repeats
                is due once.
            zone: an IANA time zone.
            missed: what is done with times that passed while the service was off: the "last" of
                them is run, "all" are, or "skip".

        Raises:
            ContractError: one of these is wrong, or it is never due.
        """
        if missed not in [each.value for each in Missed]:
            raise ContractError(f"missed={missed!r}; use 'last', 'all' or 'skip'")
        schedule = Schedule(expression, zone)

        def register(
            function: Callable[[dt.datetime], Call[R]],
        ) -> Callable[[dt.datetime], Call[R]]:
            name = function.__name__
            if name in self.schedules:
                raise ContractError(f"{self.name} has two schedules named {name!r}; rename one")
            if inspect.iscoroutinefunction(function):
                raise ContractError(
                    f"schedule {name!r} is async; it only returns the call to send: write def"
                )
            self.schedules[name] = ScheduleDefinition(name, schedule, Missed(missed), function)
            return function

        return register

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Say what handles the kinds of operations that contracts declare."""
            if how := {"command": "writes", "query": "handles", "event": "on"}.get(name):
                raise AttributeError(
                    f"operations and events are declared in a contract, such as by @{name}, and "
                    f"handled by such as @{self.name}.{how}(Inventory.reserve)"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def published(self) -> list[PublicEvent[Any]]:
        """Return the public events that this service's contract declares."""
        return [] if self.contract is None else list(events_of(self.contract).values())

    @property
    def is_personal(self) -> bool:
        """Whether anything that it is declared to store has personal fields."""
        shapes = [each.operation.shape for each in self.operations.values()]
        kinds = [
            *(event.kind for event in self.published()),
            *(event.kind for event, _ in self.subscriptions.values()),
            *(e for each in self.projections.values() for one in each.values() for e in one.events),
        ]
        return (
            any(each.personal or each.personal_result for each in shapes)
            or any(each.shape.personal or each.shape.personal_result for each in self.sagas)
            or any(personal_fields(kind) for kind in kinds)
        )

    def check(self) -> None:
        """Check that every operation of the contract has a handler; called before it starts.

        Raises:
            ContractError: an operation has no handler or one with other parameters, or a type of
                the contract is wrong.
        """
        missing = [name for name in self._offered if name not in self.operations]
        if missing:
            raise ContractError(
                f"service {self.name!r} does not handle {', '.join(missing)} of its contract; "
                f"write @{self.name}.writes(...) or @{self.name}.handles(...) for each"
            )
        if DELIVER in self._offered:
            raise ContractError(
                f"{self.name}.{DELIVER} has the name by which messages are delivered; rename it"
            )
        for handled in self.operations.values():
            _check_parameters(handled)
        for event in self.published():
            event.personal  # noqa: B018 - it says what is wrong with them
            if event.key_of is not None and event.key_of not in _fields(event.kind):
                raise ContractError(
                    f"{event!r} is ordered by {event.key_of!r}, which {event.kind.__name__} lacks"
                )

    def _check_operation(self, operation: object, how: str) -> None:
        """Refuse what is no operation, before what it decorates is taken for its handler."""
        if not isinstance(operation, Operation):
            raise ContractError(
                f"@{self.name}.{how} is given {operation!r:.80}; give it an operation of the "
                f"contract, not called: @{self.name}.{how}(Inventory.reserve)"
            )

    def _handle(
        self,
        operation: Operation[..., Any],
        function: Callable[..., Any],
        scopes: AbstractSet[str],
        *,
        is_unit: bool,
    ) -> None:
        if self._offered.get(operation.name) is not operation:
            raise ContractError(
                f"service {self.name!r} handles {operation!r}, which its contract does not offer; "
                "name the contract in implements="
            )
        if operation.name in self.operations:
            raise ContractError(f"{operation.full_name} is handled twice; remove one handler")
        what = f"the handler of {operation.full_name}"
        _check_async(function, what)
        _check_first(function, what, *((Transaction, Context)[:: 1 if is_unit else -1]))
        given: object = scopes
        if isinstance(given, str):
            raise ContractError(
                f"the scopes of {operation.full_name} are a text; write a set, such as "
                f'{{"{scopes}"}}'
            )
        signature = inspect.signature(function)
        self.operations[operation.name] = HandlerDefinition(
            operation, function, is_unit, signature, frozenset(scopes)
        )

    def __repr__(self) -> str:
        return (
            f"<Service {self.name}: {len(self.operations)} operations, "
            f"{len(self.subscriptions)} subscriptions, {len(self.sagas)} sagas>"
        )


def _check_async(function: Callable[..., Any], what: str) -> None:
    if not inspect.iscoroutinefunction(function):
        raise ContractError(f"{what} is not async; write async def")


def _check_first(function: Callable[..., Any], what: str, right: type, wrong: type) -> None:
    """Refuse a handler that says that it is given a context where it is given a transaction."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    said = None if first is None else first.annotation
    if said is wrong or (isinstance(said, str) and said.rpartition(".")[2] == wrong.__name__):
        raise ContractError(
            f"{what} takes a {wrong.__name__} first, and is given a {right.__name__}; "
            "@writes, @on and @projection give a Transaction, @handles gives a Context"
        )


def _of_kind(given: object, kind: type[E], what: str) -> tuple[E, ...]:
    found = to_tuple(given, what)
    odd = [each for each in found if not isinstance(each, kind)]
    if odd:
        wanted = "classes" if kind is type else f"a {kind.__name__} for each"
        raise ContractError(f"{what} has {odd[0]!r:.60}; give {wanted}")
    return found


def _check_parameters(handled: HandlerDefinition) -> None:
    """Check that a handler's parameters fit its operation's, by name."""
    operation = handled.operation
    # Resolving the shape also says what is wrong with the contract's annotations.
    names = list(operation.shape.signature.parameters)
    try:
        handled.signature.bind(None, **dict.fromkeys(names))
    except TypeError as error:
        raise ContractError(
            f"the handler {handled.function.__name__} of {operation.full_name} does not take what "
            f"the contract gives ({', '.join(names) or 'nothing'}): {error}"
        ) from error


def _fields(kind: type) -> frozenset[str]:
    fields = getattr(kind, "__struct_fields__", None) or getattr(kind, "__dataclass_fields__", {})
    return frozenset(fields)
