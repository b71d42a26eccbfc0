"""What passes between caller and callee, whatever carries it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Generator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeGuard

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.discovery import Endpoint
from synchromesh.errors import (
    CallError,
    RateLimited,
    Rejection,
    Shed,
    SynchromeshError,
    error_table,
    from_problem,
    to_problem,
)
from synchromesh.http import Body, HttpResponse
from synchromesh.identity import Credential, Principal

ATTEMPTS_USED = "attempts-used"
AWAY_MS = "away-ms"


class Hop(msgspec.Struct, eq=False):
    """One caller's way to one service on behalf of one principal, while its credential lasts.

    All its calls share it, and it is made anew with each credential: what is kept on it is right
    for as long as it is.

    Attributes:
        service: the service that is called; `principal`: for whom, or nobody.
        credential: what signs the hop (C4); "" towards a service that is not ours.
        fresh_until_s: until when the credential is good without a look, on the loop's clock.
        kept: what a transport has prepared for it, by the transport's own names: header lines.
    """

    service: str
    principal: Principal
    credential: str
    fresh_until_s: float = 0.0
    kept: dict[str, bytes] = {}


class Request(msgspec.Struct, frozen=True, gc=False):
    """A call under way: canonical arguments, what travels with it, and the hop's credential.

    Towards a service that is not ours the credential is "" and the context carries a trace and a
    key alone, so that no transport can tell it more.

    Attributes:
        hop: whose credential it is, where the caller has one to keep things on.
        due_s: when the caller is released, on the loop's clock; infinity for never. It may be
            sooner than the deadline of the context, which is the callee's.
    """

    operation: Operation[..., Any]
    arguments: bytes
    context: CallContext
    credential: str
    hop: Hop | None = None
    due_s: float = math.inf


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer under way: 2xx with the result's JSON, or another status with a problem's.

    One that is there already can be awaited too, and is itself what comes of it.

    Attributes:
        attempts_used: the extra attempts that the callee spent below this call (D2).
        retry_after_s: how long whoever refused asks to wait, in seconds; None where nobody did.
        away_s: how long the handler waited for services that it needs, of the time that it took:
            that says nothing about the load of the callee itself.
        took_s: how long an answer took, from a callee in this process that says so; it does not
            travel.

    Example:
        >>> from synchromesh.errors import Shed
        >>> Reply.of_error(Shed("full")).to_error(raises=()).status
        503
    """

    status: int
    body: bytes
    attempts_used: int = 0
    retry_after_s: float | None = None
    took_s: float = 0.0
    away_s: float = 0.0

    def __await__(self) -> Generator[None, None, Reply]:
        yield from ()
        return self

    @property
    def is_answer(self) -> bool:
        """True where the operation answered; False where the body is a problem."""
        return 200 <= self.status < 300

    @property
    def is_ours(self) -> bool:
        """True where the body is the problem of an error of our own, whose text is for inside."""
        code = self._problem().get("code")
        cls = _ERRORS.get(code) if isinstance(code, str) else None
        return cls is not None and cls.status == self.status

    @classmethod
    def of_error(
        cls, error: SynchromeshError, *, attempts_used: int = 0, away_s: float = 0.0
    ) -> Reply:
        """Return the reply that carries an error.

        Raises:
            BadRequest: a rejection's details cannot be encoded.
        """
        problem = encode(to_problem(error))
        return cls(error.status, problem, attempts_used, error.retry_after_s, away_s=away_s)

    def to_error(
        self, raises: Iterable[type[Rejection]], *, is_external: bool = False
    ) -> SynchromeshError:
        """Return the error that a problem carries; a body that is none gives one by its status.

        A code counts only under the status of its class: under another one it was not the operation
        that spoke, but a server or a proxy before it. A service that is not ours may speak in codes
        of `raises`, or by a status that exactly one of them has. Without a code 503 is `Shed` where
        it says how many seconds to wait, and else a failure like any other 5xx.
        """
        problem = self._problem()
        code = problem.get("code")
        known: dict[str, type[SynchromeshError]] = {} if is_external else dict(_ERRORS)
        known |= {rejection.code: rejection for rejection in raises}
        cls = known.get(code) if isinstance(code, str) else None
        if cls is not None and (is_external or cls.status == self.status):
            error = from_problem(problem, status=self.status, raises=raises)
        else:
            error = self._by_status(problem, raises if is_external else ())
        if error.retry_after_s is None:
            error.retry_after_s = self.retry_after_s
        return error

    def _problem(self) -> dict[str, Any]:
        try:
            problem = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        return problem if isinstance(problem, dict) else {}

    def _by_status(
        self, problem: dict[str, Any], raises: Iterable[type[Rejection]]
    ) -> SynchromeshError:
        meant = [rejection for rejection in raises if rejection.status == self.status]
        if len(meant) == 1:
            code = meant[0].code
        else:
            cls = _BY_STATUS.get(self.status)
            # A 503 that asks nobody to come back is no overload answer: it is what a proxy says of
            # a server that is gone, and nobody knows whether that has run the request.
            if cls is Shed and self.retry_after_s is None:
                cls = None
            code = "" if cls is None else cls.code
        # Without a code, 4xx is a bad request and anything else a failure of the callee.
        return from_problem({**problem, "code": code}, status=self.status, raises=meant)


_ERRORS = error_table()
_BY_STATUS: dict[int, type[CallError]] = {429: RateLimited, 503: Shed}


class Receiver(Protocol):
    """Takes requests for one instance of a service; a `Dispatcher` is one."""

    def authenticate(
        self, credential: str, now: float, operation: Operation[..., Any]
    ) -> Credential:
        """Return who calls; `now` is the loop's clock.

        Raises:
            Unauthenticated: nobody who may call here.
            Forbidden: a client from outside who may not call this operation.
        """
        ...

    async def dispatch(self, request: Request) -> Reply:
        """Run the request and return its reply; it raises nothing but a cancellation."""
        ...


class Transport(Protocol):
    """Carries requests to instances of one kind of endpoint, such as HTTP.

    One whose class says `keeps_time = True` (see `keeps_time`) releases its callers when their
    requests are due by itself. For any other the caller does it, at the price of a timer a call.
    """

    def send(self, endpoint: Endpoint, request: Request) -> Awaitable[Reply]:
        """Send a request and return its reply, whatever its status; the caller may cancel.

        It is an `async def`, or gives the reply itself where that is there at once, as a callee in
        this process may have it.

        Raises:
            ConnectFailed: nothing was sent.
            ConnectionLost: it was sent and the answer will not come.
            TimedOut: it was sent, and there was no answer when it was due; from transports that
                keep the time.
        """
        ...


def keeps_time(transport: Transport) -> bool:
    """Say whether a transport releases its callers at their deadlines by itself.

    It then raises `TimedOut` at `request.due_s`, whatever the callee does.
    """
    return getattr(transport, "keeps_time", False) is True


class Passing(msgspec.Struct, frozen=True):
    """An HTTP request that is passed on as it is, and with it what travels with every call.

    Towards a service that is not ours the credential is "" and the context carries a trace and a
    key alone.

    Attributes:
        method: in upper case.
        target: path and query, percent-encoded.
        headers: those that may pass; none of ours is among them.
        body: read while it is sent; None where there is none.
        timeout_s: how long the answer may take to begin, once the request is sent.
        is_idempotent: sending it twice does what sending it once does.
        client: for whom: each has a share of the bodies that are under way to one instance.
        quiet_s: of a request for a WebSocket, how long nothing may move in it; None of any other.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Body | None
    context: CallContext
    credential: str
    timeout_s: float
    is_idempotent: bool
    hop: Hop | None = None
    client: str = ""
    quiet_s: float | None = None


class PassingTransport(Transport, Protocol):
    """Is a `Transport` that also carries HTTP requests as they are, such as HTTP itself."""

    def forward(
        self, endpoint: Endpoint, passing: Passing
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Send a request, and give its answer with its head; leave the context to end it.

        Raises:
            ConnectFailed, Shed, RateLimited: nothing was sent.
            ConnectionLost, TimedOut: it was sent, and no answer will come.
        """
        ...


def is_passing(transport: Transport) -> TypeGuard[PassingTransport]:
    """Say whether a transport carries HTTP requests as they are, too."""
    return hasattr(transport, "forward")


class Sender(Protocol):
    """Sends operations whose arguments are JSON, as saga steps and messages do; `Caller` is one."""

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send canonical arguments and return the answer's JSON.

        Raises:
            Rejection: the operation's business no.
            CallError: it failed; `NotExecuted` and `ConnectFailed` say that it was not run.
        """
        ...
