"""What travels with every call: trace, deadline, caller and principal, idempotency key.

In a process the deadline is a moment of the loop's clock; between processes it travels as remaining
milliseconds, with the sender's wall clock as a second bound that catches a call that was long under
way (D1).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from urllib.parse import quote, unquote

import msgspec

from synchromesh.errors import BadRequest
from synchromesh.identity import NOBODY, Principal
from synchromesh.priority import Priority
from synchromesh.propagation import (
    BAGGAGE,
    KEPT_TRACE,
    SAMPLE_ALL,
    TRACEPARENT,
    TRACESTATE,
    Propagation,
    TraceMarks,
    read_trace,
)

# Two machines' wall clocks may differ by this much before transit time counts against a deadline.
SKEW_S = 5.0
KEY_CHARS_MAX = 512

IDEMPOTENCY_KEY = "idempotency-key"
DEADLINE_MS = "deadline-ms"
SENT_AT = "sent-at"
ATTEMPTS_LEFT = "attempts-left"
UNDOES = "undoes"
CREDENTIAL = "synchromesh-credential"

ATTEMPTS_LEFT_MAX = 16
# A deadline beyond thirty thousand years is none; as a number it still has to fit its header.
DEADLINE_MS_MAX = 10**15

_OWN = {
    name.encode(): name
    for name in (
        TRACEPARENT,
        TRACESTATE,
        BAGGAGE,
        IDEMPOTENCY_KEY,
        DEADLINE_MS,
        SENT_AT,
        ATTEMPTS_LEFT,
        UNDOES,
        CREDENTIAL,
    )
}
# Keys travel as they are where they are ASCII; what a header cannot carry is percent-encoded.
_KEY_SAFE = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"


_NO_SPAN = "0" * 16
# So many ids of spans are drawn at once.
_DRAWN = 32


class CallContext(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one call carries; `msgspec.structs.replace` makes another one of it.

    Attributes:
        trace_id: 32 hex digits; the same in every call, step, message and record of one request.
        span_id: 16 hex digits; the span of the sender that this call belongs to.
        caller: the service that calls, as its credential says.
        principal: on whose behalf; `NOBODY` for the caller's own.
        deadline_s: when the caller stops waiting, on the loop's clock; None for never.
        key: the idempotency key, "" for a query.
        attempts_left: retries that the whole tree below may still spend (D2).
        undoes: the key of the call that this one undoes, "" for none (S6).
        priority: what is shed first; it travels in the credential alone.
        marks: of the trace: its flags, its `tracestate` and its baggage.
    """

    trace_id: str
    span_id: str
    caller: str = ""
    principal: Principal = NOBODY
    deadline_s: float | None = None
    key: str = ""
    attempts_left: int = 0
    undoes: str = ""
    priority: Priority = Priority.INTERACTIVE
    marks: TraceMarks = KEPT_TRACE

    def remaining_s(self, now: float) -> float | None:
        """Return the seconds left until the deadline, never below 0; None without one."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - now)


def new_trace_id(rng: random.Random) -> str:
    """Return 32 hex digits that are not all zero (W3C Trace Context, section 3.2.2.3)."""
    return (rng.getrandbits(128) or 1).to_bytes(16).hex()


def new_span_id(rng: random.Random) -> str:
    """Return 16 hex digits that are not all zero.

    Example:
        >>> new_span_id(random.Random(1))
        '91b7584a2265b1f5'
    """
    return (rng.getrandbits(64) or 1).to_bytes(8).hex()


def span_ids(rng: random.Random) -> Callable[[], str]:
    """Return what does as `new_span_id`, at a third of its price: ids are drawn some at a time.

    Example:
        >>> len(span_ids(random.Random(1))())
        16
    """

    def drawn() -> Iterator[list[str]]:
        while True:
            ids = rng.getrandbits(64 * _DRAWN).to_bytes(8 * _DRAWN).hex(" ", 8).split()
            yield ids if _NO_SPAN not in ids else [each for each in ids if each != _NO_SPAN]

    return partial(next, chain.from_iterable(drawn()))


def to_headers(context: CallContext, *, now: float, wall_us: int) -> dict[str, str]:
    """Return the headers of a call; the signing transport adds the credential.

    Args:
        context: what the call carries.
        now: the loop's clock.
        wall_us: the wall clock, for `Sent-At`.
    """
    marks = context.marks
    headers = {TRACEPARENT: f"00-{context.trace_id}-{context.span_id}-0{marks.flags}"}
    if marks.state:
        headers[TRACESTATE] = marks.state
    if marks.baggage:
        headers[BAGGAGE] = marks.baggage
    if context.deadline_s is not None:
        # Rounded down: a child's deadline is never later than its parent's.
        left_ms = (context.deadline_s - now) * 1000
        headers[DEADLINE_MS] = str(_within_ms(left_ms))
        headers[SENT_AT] = str(wall_us)
    if context.key:
        headers[IDEMPOTENCY_KEY] = quote(context.key, safe=_KEY_SAFE)
    if context.attempts_left:
        headers[ATTEMPTS_LEFT] = str(context.attempts_left)
    if context.undoes:
        headers[UNDOES] = quote(context.undoes, safe=_KEY_SAFE)
    return headers


def header_lines(context: CallContext, *, now: float, wall_us: int | None) -> bytes:
    """Return the headers of a call as they stand on the wire, each line with its end.

    The same as `to_headers`, put together at once; without a `Sent-At` where `wall_us` is None.

    Raises:
        ValueError: the trace is none; the value could end its line.

    Example:
        >>> header_lines(CallContext(trace_id="a" * 32, span_id="b" * 16), now=0.0, wall_us=0)[:20]
        b'traceparent: 00-aaaa'
    """
    trace_id, span_id = context.trace_id, context.span_id
    if not (trace_id.isalnum() and span_id.isalnum()):
        raise ValueError(f"trace {trace_id[:40]!r}, span {span_id[:40]!r} cannot stand in a header")
    marks = context.marks
    text = f"traceparent: 00-{trace_id}-{span_id}-0{marks.flags}\r\n"
    if marks.state:
        text += list_line(TRACESTATE, marks.state)
    if marks.baggage:
        text += list_line(BAGGAGE, marks.baggage)
    if context.deadline_s is not None:
        left_ms = (context.deadline_s - now) * 1000
        left = int(left_ms) if 0.0 < left_ms < DEADLINE_MS_MAX else _within_ms(left_ms)
        text += f"deadline-ms: {left}\r\n"
        if wall_us is not None:
            text += f"sent-at: {wall_us}\r\n"
    if context.key:
        text += f"idempotency-key: {quote(context.key, safe=_KEY_SAFE)}\r\n"
    if context.attempts_left:
        text += f"attempts-left: {context.attempts_left}\r\n"
    if context.undoes:
        text += f"undoes: {quote(context.undoes, safe=_KEY_SAFE)}\r\n"
    return text.encode("ascii")


def lines_outside(trace_id: str, span_id: str, marks: TraceMarks, key: str = "") -> bytes:
    """Return what a stranger is told of a call, as `header_lines` does: its trace and its key.

    He is told no deadline and no baggage, and can spend none of our attempts.

    Args:
        trace_id, span_id: as they were made here, or as `read_trace` has found them good.

    Example:
        >>> lines_outside("a" * 32, "b" * 16, KEPT_TRACE)[:20]
        b'traceparent: 00-aaaa'
    """
    if key or marks.state:
        told = CallContext(trace_id=trace_id, span_id=span_id, key=key, marks=marks.outside())
        return header_lines(told, now=0.0, wall_us=None)
    return f"traceparent: 00-{trace_id}-{span_id}-0{marks.flags}\r\n".encode("ascii")


def list_line(name: str, members: str) -> str:
    """Return the line of a `tracestate` or `baggage`. Raises ValueError where it could end it."""
    if not members.isprintable():
        raise ValueError(f"the {name} {members[:40]!r} cannot stand in a header")
    return f"{name}: {members}\r\n"


def own_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the fields of a request that carry a call's context; names are in lower case.

    Raises:
        BadRequest: one of them is given twice.
    """
    own: dict[str, str] = {}
    known = _OWN.get
    for raw, value in pairs:
        name = known(raw)
        if name is not None:
            if name in own:
                if name in (TRACESTATE, BAGGAGE):  # they are lists, and may be told in parts
                    own[name] += f",{value.decode('latin-1')}"
                    continue
                raise BadRequest(f"header {name} is given twice; which of them counts is unclear")
            own[name] = value.decode("latin-1")
    return own


def from_headers(
    headers: Mapping[str, str],
    *,
    now: float,
    wall_us: int,
    rng: random.Random,
    propagation: Propagation = SAMPLE_ALL,
) -> CallContext:
    """Parse the headers of a call; caller and principal come from its credential.

    A malformed trace is replaced by a new one, as W3C Trace Context asks, and malformed baggage is
    dropped; anything else that is malformed would weaken a promise and is refused.

    Raises:
        BadRequest: a header is malformed; the message names it.
    """
    states = (headers[TRACESTATE],) if TRACESTATE in headers else ()
    trace = read_trace((headers.get(TRACEPARENT, ""),), states)
    if trace is None:
        trace_id, span_id = new_trace_id(rng), new_span_id(rng)
    else:
        trace_id, span_id = trace.trace_id, trace.span_id
    if trace is None or BAGGAGE in headers:
        marks = propagation.entering(trace_id, trace, (headers.get(BAGGAGE, ""),))
    else:
        marks = trace.marks
    # Most headers are absent in most calls: only those that are there cost a frame.
    left = _count(headers[ATTEMPTS_LEFT], ATTEMPTS_LEFT) if ATTEMPTS_LEFT in headers else 0
    deadline_s = None
    if DEADLINE_MS in headers:
        left_s = _count(headers[DEADLINE_MS], DEADLINE_MS) / 1000
        if SENT_AT in headers:
            # What was under way for longer than the clocks can differ has lost that time.
            lost_s = (wall_us - _count(headers[SENT_AT], SENT_AT)) / 1e6 - SKEW_S
            if lost_s > 0.0:
                left_s -= lost_s
        deadline_s = now + left_s if left_s > 0.0 else now
    return CallContext(
        trace_id=trace_id,
        span_id=span_id,
        deadline_s=deadline_s,
        key=_key(headers, IDEMPOTENCY_KEY) if IDEMPOTENCY_KEY in headers else "",
        attempts_left=min(left, ATTEMPTS_LEFT_MAX),
        undoes=_key(headers, UNDOES) if UNDOES in headers else "",
        marks=marks,
    )


def check_key(key: str, where: str = "idempotency key") -> str:
    """Validate an idempotency key and return it.

    Raises:
        BadRequest: it is longer than 512 characters, is not printable, or has a blank at its ends.

    Example:
        >>> check_key("order A-1")
        'order A-1'
    """
    if len(key) > KEY_CHARS_MAX or not key.isprintable() or key != key.strip():
        raise BadRequest(
            f"{where} is {key[:40]!r}, {len(key)} characters long; at most {KEY_CHARS_MAX} "
            "printable ones, without blanks at the ends, are expected"
        )
    return key


def _within_ms(left_ms: float) -> int:
    return int(min(max(0.0, left_ms), DEADLINE_MS_MAX))


def _count(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest(f"header {name} is {text[:40]!r}; a whole number is expected")
    return int(text)


def _key(headers: Mapping[str, str], name: str) -> str:
    return check_key(unquote(headers[name]), f"header {name}")
