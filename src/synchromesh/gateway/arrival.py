"""What a request from outside says of itself: its trace, its name there, and its idempotency key.

None of it is trusted with more than that: a trace is a label, and a name is repeated.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from synchromesh.context import IDEMPOTENCY_KEY, check_key
from synchromesh.errors import BadRequest
from synchromesh.http import Headers
from synchromesh.propagation import (
    BAGGAGE,
    TRACEPARENT,
    TRACESTATE,
    Propagation,
    TraceMarks,
    TraceParent,
    read_trace,
)

REQUEST_ID: Final = "x-request-id"
# The fields that say it: a request without any of them has arrived with nothing.
FIELDS: Final = frozenset(name.encode() for name in (TRACEPARENT, TRACESTATE, BAGGAGE, REQUEST_ID))

_KEY_CHARS_MAX: Final = 255
_PARENT, _STATE = TRACEPARENT, TRACESTATE
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class Arrival(msgspec.Struct, frozen=True):
    """What a request from outside says of itself.

    Attributes:
        trace: which it continues; None where it begins one.
        request_id: its name there, at most 128 letters, digits and `._~:/+=@-`; "" for none, and
            for one that is anything else.
        baggage: the values of that field.
    """

    trace: TraceParent | None = None
    request_id: str = ""
    baggage: tuple[str, ...] = ()

    def marks(self, trace_id: str, propagation: Propagation) -> TraceMarks:
        """Return what travels with its trace, which may begin here."""
        return propagation.entering(trace_id, self.trace, self.baggage)

    @property
    def parent_id(self) -> str:
        """Return the span of the sender, "" where there is none."""
        return "" if self.trace is None else self.trace.span_id

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """Return what its answer repeats."""
        return ((REQUEST_ID, self.request_id),) if self.request_id else ()

    @property
    def line(self) -> bytes:
        """Return the same as it stands on the wire."""
        return f"{REQUEST_ID}: {self.request_id}\r\n".encode() if self.request_id else b""


NOTHING: Final = Arrival()


def arrival_of(headers: Headers) -> Arrival:
    """Return what the fields of a request say of it."""
    parents, states, names, baggage = [], [], [], []
    for name, value in headers:
        if name == _PARENT:
            parents.append(value)
        elif name == _STATE:
            states.append(value)
        elif name == REQUEST_ID:
            names.append(value)
        elif name == BAGGAGE:
            baggage.append(value)
    if not (parents or names or baggage):
        return NOTHING
    is_named = len(names) == 1 and _REQUEST_ID.fullmatch(names[0])
    return Arrival(read_trace(parents, states), names[0] if is_named else "", tuple(baggage))


def unread_body(headers: Headers) -> tuple[str, list[tuple[str, str]]] | None:
    """Return why a request's body is not read as JSON, and the fields that say what would be."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "the body has to be JSON; send content-type: application/json", []
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        # RFC 9110, section 15.5.16, has the field in which a 415 says which codings are taken.
        why = f"a body with content-encoding: {coding[:40]} is not read here; send it as it is"
        return why, [("accept-encoding", "identity")]
    return None


def key_of(headers: Headers) -> str:
    """Return the client's idempotency key, "" where it sent none. Raises BadRequest."""
    keys = headers.get_all(IDEMPOTENCY_KEY)
    if not keys:
        return ""
    if len(keys) > 1:
        raise BadRequest("header idempotency-key is given twice; which one counts is unclear")
    key = check_key(keys[0], "header idempotency-key")
    if not 0 < len(key) <= _KEY_CHARS_MAX:
        raise BadRequest(
            f"header idempotency-key has {len(key)} characters; 1 to {_KEY_CHARS_MAX} are expected"
        )
    return key
