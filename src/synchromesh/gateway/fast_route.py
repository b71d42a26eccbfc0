"""A route to one operation on the fast way: arguments → call → answer, without a task where it can.

A call over HTTP is told by a callback (`PreparedCall`). Any other, such as one to a service in this
process, is an eager task: most of those have ended when it has been started. It declines what the
slow way has words for, before anything was done: arguments that do not fit, a credential that has
to be verified, no free place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import copy_context
from functools import partial

from synchromesh.calls.fast import call
from synchromesh.calls.http_arguments import refuse_loose
from synchromesh.codec import encode
from synchromesh.context import IDEMPOTENCY_KEY
from synchromesh.eager import starter
from synchromesh.errors import BadRequest
from synchromesh.gateway.answering import AnsweredExchange, Answering
from synchromesh.gateway.arrival import key_of
from synchromesh.http import Headers, HttpExchange, RawPair
from synchromesh.resilience import AttemptsLeft
from synchromesh.telemetry import current_span

_KEY = IDEMPOTENCY_KEY.encode()


class FastRoute:
    """All that is the same for every request of one route to an operation."""

    __slots__ = ("_answering", "_is_strict", "_new_key", "_operation", "_plan", "_prepared",
                 "_start")  # fmt: skip

    def __init__(self, answering: Answering) -> None:
        asker, operation = answering.gate.asker, answering.entry.operation
        assert operation is not None
        self._answering = answering
        self._operation = operation
        self._is_strict = answering.entry.is_strict
        self._plan = asker.caller.plan(operation)
        self._prepared = asker.prepared(operation)
        self._new_key = self._plan.shared.runtime.new_id
        self._start = starter(answering.loop)

    def begin(
        self, exchange: HttpExchange, query: bytes = b"", places: Mapping[str, str] | None = None
    ) -> bool:
        """Answer a request, now or later; False declines it, and nothing was done then."""
        answering, operation, body = self._answering, self._operation, exchange.body
        who = answering.who(exchange)
        if who is None or (body and not _is_json(exchange.pairs)):
            return False
        key = ""
        try:
            if operation.is_command:
                key = _key_of(exchange.pairs) or self._new_key()
            arguments = operation.from_http(places or {}, query.decode("latin-1"), body)
            if self._is_strict:
                refuse_loose(operation, body)
        except BadRequest:
            return False
        asked = answering.admit(exchange, who, key)
        if asked is None:
            return False
        if answering.buckets is None or asked.is_within(answering.buckets):
            if key:
                # Told, so that also who sent none can ask again under it.
                asked.told += f"{IDEMPOTENCY_KEY}: {key}\r\n".encode("latin-1")
            self._ask(asked, arguments)
        return True

    def __repr__(self) -> str:
        return f"<FastRoute {self._answering.entry.name}>"

    def _ask(self, asked: AnsweredExchange, arguments: bytes) -> None:
        """Call the operation; the request is answered by what comes of it."""
        context = asked.context
        asked.work = self._prepared.start(
            arguments,
            partial(self._on_called, asked),
            context=context,
            left=AttemptsLeft(context.attempts_left),
            together=self._answering.together,
        )
        if asked.work is None:
            task = self._start(self._called(asked, arguments), context=copy_context())
            if not task.done():
                asked.work = task

    async def _called(self, asked: AnsweredExchange, arguments: bytes) -> None:
        current_span.set(asked.context)  # a task has a context of its own
        try:
            value = await call(self._plan, arguments, asked.context, None, as_json=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            asked.fail(error)
        else:
            self._on_called(asked, value, None)

    def _on_called(
        self, asked: AnsweredExchange, value: object, error: BaseException | None
    ) -> None:
        if error is None:
            try:
                # By its value: what the contract does not name stays inside, whatever comes.
                body = encode(value)
            except BadRequest as unsendable:
                asked.fail(unsendable)
            else:
                asked.succeed(body)
        elif isinstance(error, Exception):
            asked.fail(error)
        # A cancellation that the client's end did not cause ends the loop, and the client with it.


def _is_json(pairs: Sequence[RawPair]) -> bool:
    """Tell whether a body is said to be JSON, once, and in no other coding."""
    kinds = 0
    for name, value in pairs:
        if name == b"content-type":
            kinds += 1
            kind = value.partition(b";")[0].strip().lower()
            if kinds > 1 or kind != b"application/json":
                return False
        elif name == b"content-encoding":
            return False
    return kinds == 1


def _key_of(pairs: Sequence[RawPair]) -> str:
    """Return the client's idempotency key, "" where it sent none. Raises BadRequest."""
    for name, _ in pairs:
        if name == _KEY:
            return key_of(Headers.from_wire(pairs))
    return ""
