"""Contracts: all that other services may know about a service, typed end to end.

An operation is called like the function it describes and makes a `Call`, which is a value: nothing
is sent until a handler or a saga sends it. The canonical form of a call's arguments is one JSON
object by parameter name; HTTP spreads the same object over path, query and body.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from inspect import cleandoc
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Optional,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
)
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

import msgspec
from msgspec.structs import asdict

from synchromesh.calls.http_arguments import read_arguments
from synchromesh.calls.signature import BODILESS, Signature, misfit, read_signature, rejections_of
from synchromesh.calls.texts import to_text
from synchromesh.codec import NO_FIT, NO_JSON, digest, encode, unfit
from synchromesh.errors import BadRequest, ContractError, Rejection
from synchromesh.functions import with_arguments
from synchromesh.personal_types import PersonalFields, personal_fields

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
E = TypeVar("E")

_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9_.~/{}-]*)")
# Of contracts, whose members they are not: each of those has to be implemented.
_VERSIONS: WeakKeyDictionary[type[object], str] = WeakKeyDictionary()
_PLACE = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_SEGMENT = re.compile(r"[A-Za-z0-9_.~-]*|\{[a-z_][a-z0-9_]*\}")


class Call(msgspec.Struct, Generic[R_co], frozen=True, eq=False):
    """Describes a call that is not sent yet; a value, equal where operation and arguments are.

    Its arguments are encoded when it is made, so that what is sent cannot change afterwards (C1).

    Example:
        >>> class Clock(Contract, Protocol, service="clock", version="1.0"):
        ...     @query("GET /now/{zone}")
        ...     async def now(self, zone: str) -> str: ...
        >>> Clock.now("UTC") == Clock.now(zone="UTC")
        True
    """

    operation: Operation[..., R_co]
    arguments: bytes

    @property
    def digest(self) -> str:
        """Distinguishes this input from another under the same idempotency key."""
        return self.operation.digest(self.arguments)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Call)
            and self.operation is other.operation
            and self.arguments == other.arguments
        )

    if not TYPE_CHECKING:  # type checkers say by themselves that it cannot be awaited

        def __await__(self):
            """Say how it is sent."""
            raise ContractError(
                f"{self.operation.full_name} is awaited, and a call is a value that is not sent "
                f"yet; send it: await ctx.call({self.operation.full_name}(...))"
            )

    def __hash__(self) -> int:
        return hash((self.operation.full_name, self.arguments))

    def __repr__(self) -> str:
        return f"<Call {self.operation.full_name} {self.arguments.decode()[:80]}>"


class Operation(Generic[P, R_co]):
    """One operation of a contract. Calling it makes a `Call` and sends nothing.

    Attributes:
        service: the service that offers it; `name`: its name in the contract.
        full_name: `service.name`, as it is written in keys, traces and on the command line.
        method, path: its HTTP route; `{sku}` in the path is a parameter.
        raises: the business rejections that it may answer with (C2).
        is_command: commands change state and carry an idempotency key; queries only read.
        stub: the method of the contract that declares it.
    """

    is_command = False

    def __init__(
        self,
        stub: Callable[Concatenate[Any, P], Awaitable[R_co]],
        route: str,
        raises: tuple[type[Rejection], ...],
    ) -> None:
        matched = _ROUTE.fullmatch(route)
        if matched is None or not all(map(_SEGMENT.fullmatch, matched[2].split("/"))):
            raise ContractError(
                f"operation {stub.__name__!r} has the route {route!r}; expected a method and a "
                'path, such as "POST /reservations" or "GET /stock/{sku}"; a {place} is a whole '
                "segment of the path"
            )
        self.method, self.path = matched[1], matched[2]
        self.places: tuple[str, ...] = tuple(_PLACE.findall(self.path))
        if len(set(self.places)) < len(self.places):
            raise ContractError(f"operation {stub.__name__!r} names a place twice: {route!r}")
        self.raises = rejections_of(raises, stub.__name__)
        self.name = stub.__name__
        self.service = ""
        self.full_name = f".{self.name}"
        self.is_external = False
        self.stub = stub
        self._shape: Signature | None = None

    def belong_to(self, service: str, name: str) -> None:
        """Make it part of the contract of a service, under a name of that contract."""
        self.service, self.name, self.full_name = service, name, f"{service}.{name}"

    @property
    def doc(self) -> str:
        """What its docstring says; "" without one."""
        return cleandoc(self.stub.__doc__ or "")

    @property
    def blank_path(self) -> str:
        """The path with `{}` for each place: what callers of any release see of it."""
        return _PLACE.sub("{}", self.path)

    @property
    def shape(self) -> Signature:
        """The types of the arguments and of the answer.

        Raises:
            ContractError: an annotation is missing or cannot be resolved.
        """
        if self._shape is None:
            self._shape = read_signature(
                self.stub, service=self.service, method=self.method, places=self.places
            )
            self._check_personal(self._shape)
        return self._shape

    def or_null(self) -> Self:
        """Return the same operation for who takes null, or no content, for an answer, too.

        Raises:
            ContractError: an annotation is missing or cannot be resolved.
        """
        shape, taking = self.shape, copy(self)
        taking._shape = replace(shape, result=Optional[shape.result])  # noqa: UP045
        return taking

    def _check_personal(self, shape: Signature) -> None:
        """Refuse what could not be stored, or would be where it is not sealed."""
        for personal in (shape.personal, shape.personal_result):
            if personal is not None and self.is_command:
                personal.check_subject(self.full_name)
        if shape.personal is None:
            return
        is_bodiless = self.method in BODILESS
        for name in shape.hints:
            if shape.personal.has(name) and (is_bodiless or name in self.places):
                raise ContractError(
                    f"{self.full_name} takes {name!r}, which is Personal, in its URL, and URLs are "
                    "logged; make it part of a body, as of a POST"
                )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Describe a call; nothing is sent.

        Raises:
            BadRequest: the arguments do not fit the signature or cannot be encoded.
        """
        shape = self._shape or self.shape
        try:
            # The struct takes arguments as the function does, with no frame of Python's.
            struct = shape.arguments(*args, **kwargs) if kwargs else shape.arguments(*args)
        except TypeError:
            raise BadRequest(f"{self.full_name}: {misfit(shape, args, kwargs)}") from None
        try:
            checked = shape.decode(shape.encode(struct))
        except NO_JSON as error:
            unsendable = unfit(struct, error)
            if isinstance(unsendable, BadRequest):
                raise unsendable from error
            raise BadRequest(f"{self.full_name}: the data does not fit: {error}") from error
        return Call(self, shape.write(checked))

    if not TYPE_CHECKING:

        @property
        def operation(self):
            """Say that it is to be called: whoever sends it asks it for this first, as a `Call`."""
            raise ContractError(
                f"{self.full_name} is sent as it is; call it with its arguments: "
                f"{self.full_name}(...)"
            )

    def digest(self, arguments: bytes) -> str:
        """Return what tells canonical arguments from others, without what is personal in them."""
        personal = (self._shape or self.shape).personal
        told = arguments if personal is None else personal.mask(arguments)
        return digest(self.full_name.encode() + b"\0" + told)

    def parse(self, arguments: bytes) -> dict[str, Any]:
        """Return the arguments of the canonical form as values of the contract's types.

        Raises:
            BadRequest: they do not fit; the message names where.
        """
        return asdict(self._decode(arguments))

    def canonical(self, arguments: bytes) -> bytes:
        """Return arguments in the one form that digests are made of, checked throughout.

        Raises:
            BadRequest: they do not fit; the message names where.
        """
        return encode(self._decode(arguments))

    def _decode(self, arguments: bytes) -> msgspec.Struct:
        try:
            return (self._shape or self.shape).decode(arguments)
        except NO_FIT as error:
            raise BadRequest(f"{self.full_name}: the data does not fit: {error}") from error

    def to_http(self, arguments: bytes) -> tuple[str, bytes]:
        """Return the target and the body that carry canonical arguments over HTTP."""
        shape = self._shape or self.shape
        if shape.decode_body is not None:
            # The canonical form has the body in it: nothing is decoded.
            before = len(shape.before_body)
            return self.path, arguments[before:-1] if before else arguments
        raw: dict[str, msgspec.Raw] = msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
        target = self.path
        for place in self.places:
            text = to_text(raw.pop(place), shape.hints[place])
            # A dot by itself would be a step in the path to whoever normalises it.
            segment = quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")
            target = target.replace(f"{{{place}}}", segment)
        if self.method in BODILESS:
            pairs = {
                name: to_text(value, shape.hints[name])
                for name, value in raw.items()
                if name not in shape.omitted or bytes(value) != b"null"
            }
            return (f"{target}?{urlencode(pairs)}" if pairs else target), b""
        return target, bytes(raw[shape.body]) if shape.body else encode(raw)

    def from_http(self, places: Mapping[str, str], query: str, body: bytes) -> bytes:
        """Return the canonical arguments of an HTTP request; `places` are still percent-encoded.

        Texts of path and query become numbers where the contract says so; the body is strict.

        Raises:
            BadRequest: path, query or body do not fit the contract; its `mistakes` say where.
        """
        shape = self._shape or self.shape
        if shape.decode_body is not None and body and not query:
            try:
                value = shape.decode_body(body)
                return shape.write({shape.body: value} if shape.body else value)
            except NO_FIT:
                pass  # below it is said where
        return read_arguments(self, shape, places, query, body)

    def __repr__(self) -> str:
        kind = "command" if self.is_command else "query"
        return f"<{kind} {self.full_name} {self.method} {self.path}>"


class Command(Operation[P, R_co]):
    """An operation that changes state: it carries an idempotency key, and may be undone."""

    is_command = True


class Query(Operation[P, R_co]):
    """An operation that only reads: it may be retried, hedged, cached and served stale."""


class PublicEvent(Generic[E]):
    """An event of a contract that other services may subscribe to; `event` declares one.

    Attributes:
        full_name: the stored name, such as `inventory.stock_reserved`.
        kind: the payload's type.
        key_of: the payload's attribute that orders it: events of one key arrive one after the
            other (O3). Without one, all events of this name are one key.

    Example:
        >>> class Sold(msgspec.Struct):
        ...     sku: str
        >>> class Sales(Contract, Protocol, service="sales", version="1.0"):
        ...     sold: PublicEvent[Sold] = event(Sold, key="sku")
        >>> Sales.sold
        <event sales.sold>
    """

    def __init__(self, kind: type[E], key: str | None) -> None:
        self.kind = kind
        self.key_of = key
        self.service = ""
        self.name = ""
        self.full_name = "."

    def belong_to(self, service: str, name: str) -> None:
        """Make it part of the contract of a service, under a name of that contract."""
        self.service, self.name, self.full_name = service, name, f"{service}.{name}"

    @cached_property
    def personal(self) -> PersonalFields | None:
        """The personal fields of its payload.

        Raises:
            ContractError: they belong to nobody, or one of them orders the events.
        """
        personal = personal_fields(self.kind)
        if personal is not None:
            personal.check_subject(self.full_name)
            if self.key_of is not None and personal.has(self.key_of):
                raise ContractError(
                    f"{self!r} has the key {self.key_of!r}, which is Personal: keys are stored as "
                    "they are; take the subject, or another id"
                )
        return personal

    def partition_key(self, payload: object) -> str:
        """Return the key within which payloads keep their order."""
        return "" if self.key_of is None else str(getattr(payload, self.key_of))

    def __repr__(self) -> str:
        return f"<event {self.full_name}>"


class Contract(Protocol):
    """Declares the interface of a service: the operations and public events others may use.

    Example:
        >>> class Greeter(Contract, Protocol, service="greeter", version="1.0"):
        ...     @query("GET /greetings/{name}")
        ...     async def greet(self, name: str) -> str: ...
        >>> Greeter.greet("Ada")
        <Call greeter.greet {"name":"Ada"}>
    """

    def __init_subclass__(
        cls, *, service: str = "", version: str = "", external: bool = False, **more: Any
    ) -> None:
        super().__init_subclass__(**more)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(service)):
            raise ContractError(
                f"contract {cls.__name__} names the service {service!r}; expected lower-case "
                'letters, digits and _, such as service="inventory"'
            )
        given: object = version
        if not isinstance(given, str) or not re.fullmatch(r"\d+\.\d+", given):
            raise ContractError(
                f'contract {cls.__name__} has version {version!r}; expected "major.minor"'
            )
        _VERSIONS[cls] = version
        routes: dict[tuple[str, str], str] = {}
        for name, member in list(vars(cls).items()):
            if isinstance(member, Operation | PublicEvent):
                if member.service:
                    raise ContractError(f"{member!r} is already part of another contract")
                member.belong_to(service, name)
            if isinstance(member, Operation):
                member.is_external = external
                route = (member.method, member.blank_path)
                if route in routes:
                    raise ContractError(
                        f"{cls.__name__}.{name} and .{routes[route]} have the same route "
                        f"{member.method} {member.path}"
                    )
                routes[route] = name


def version_of(contract: type[object]) -> str:
    """Return the version of a contract, such as "1.0"; "" of what is none."""
    return _VERSIONS.get(contract, "")


def operations_of(contract: type[object]) -> dict[str, Operation[..., Any]]:
    """Return the operations of a contract by name.

    The parameter is no `type[Contract]`, for type checkers take no Protocol where a class of that
    kind is expected.

    Raises:
        ContractError: it is no contract.
    """
    return {n: m for n, m in _members(contract).items() if isinstance(m, Operation)}


def events_of(contract: type[object]) -> dict[str, PublicEvent[Any]]:
    """Return the public events of a contract by name.

    Raises:
        ContractError: it is no contract.
    """
    return {n: m for n, m in _members(contract).items() if isinstance(m, PublicEvent)}


def _members(contract: type[object]) -> Mapping[str, object]:
    if Contract not in contract.__mro__:
        raise ContractError(
            f"{contract.__name__} is not a contract; declare it as "
            'class Inventory(Contract, Protocol, service="inventory", version="1.0")'
        )
    return vars(contract)


@with_arguments('"POST /reservations"')
def command(
    route: str, *, raises: tuple[type[Rejection], ...] = ()
) -> Callable[[Callable[Concatenate[Any, P], Awaitable[R]]], Command[P, R]]:
    """Declare a command: it changes state and carries an idempotency key.

    Args:
        route: method and path; `{name}` is a parameter.
        raises: the rejections (business errors) that it may answer with.

    Example:
        >>> class Mail(Contract, Protocol, service="mail", version="1.0"):
        ...     @command("POST /mails")
        ...     async def send(self, to: str) -> str: ...
        >>> Mail.send
        <command mail.send POST /mails>
    """
    return lambda stub: Command(stub, route, raises)


@with_arguments('"GET /stock/{sku}"')
def query(
    route: str, *, raises: tuple[type[Rejection], ...] = ()
) -> Callable[[Callable[Concatenate[Any, P], Awaitable[R]]], Query[P, R]]:
    """Declare a query: it only reads, and may be retried.

    Args:
        route: method and path; `{name}` is a parameter, the others are in the query string.
        raises: the rejections (business errors) that it may answer with.

    Example:
        >>> class Mailbox(Contract, Protocol, service="mailbox", version="1.0"):
        ...     @query("GET /mails/{to}")
        ...     async def mails(self, to: str, unread: bool = False) -> list[str]: ...
        >>> Mailbox.mails
        <query mailbox.mails GET /mails/{to}>
    """
    return lambda stub: Query(stub, route, raises)


def event(kind: type[E], *, key: str | None = None) -> PublicEvent[E]:
    """Declare a public event, which other services may subscribe to.

    Args:
        kind: the payload's type: a struct or a dataclass.
        key: the partition key, an attribute of the payload: events of one key arrive in order (O3).
            Without one, all events of this name are of one key.

    Example:
        >>> class Paid(msgspec.Struct):
        ...     order_id: str
        >>> class Payments(Contract, Protocol, service="payments", version="1.0"):
        ...     paid: PublicEvent[Paid] = event(Paid, key="order_id")
        >>> Payments.paid.partition_key(Paid("A-1"))
        'A-1'
    """
    return PublicEvent(kind, key)
