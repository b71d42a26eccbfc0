"""Heads of requests and answers that are passed on, as bytes: what `forward` says of their fields.

A head that came before on a connection is not gone through again: what it has come to is kept with
its fields (`KeptFields`).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from synchromesh.gateway.arrival import FIELDS, NOTHING, REQUEST_ID, Arrival, arrival_of
from synchromesh.gateway.cors import SAID_BY_US
from synchromesh.gateway.forward import DROPPED, named_by
from synchromesh.gateway.leading import FIELDS as LED
from synchromesh.gateway.leading import Leading
from synchromesh.http import Headers, KeptFields, RawPair, status_line

_ECHOED: Final = f"{REQUEST_ID}: ".encode()
# What may stand in `Connection` without naming a field of this hop.
_OPTIONS: Final = frozenset({b"keep-alive", b"close"})
# What is done with a field of an answer, by its name; unlike a request's they are the upstream's
# own words, few and always the same. Others than these are judged once and kept.
_DROP, _PASS, _CACHE, _CONNECTION, _NAME, _LED, _CORS = range(7)
_RULES: dict[bytes, int] = {}
_RULES_MAX: Final = 1024
_FIXED_RULES: Final = {
    **{name.encode(): _DROP for name in (*DROPPED, "content-length")},
    b"cache-control": _CACHE,
    b"connection": _CONNECTION,
    REQUEST_ID.encode(): _NAME,
    **{name.encode(): _LED for name in LED},
}
_RULES.update(_FIXED_RULES)
_NO_STORE: Final = b"cache-control: no-store\r\n"
_OUR_LINES: Final = b"x-content-type-options: nosniff\r\nsynchromesh-trace: "
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
_STATUS_LINES: Final = {status: status_line(status) for status in range(200, 600)}
_NO_BODY: Final = frozenset({204, 304})


# Fields of a request that do not pass, and may need a closer look all the same.
ODD: Final = frozenset({b"connection", b"idempotency-key"}) | FIELDS


def look(
    closer: Sequence[RawPair], told_by: AbstractSet[bytes]
) -> tuple[Arrival, tuple[RawPair, ...]] | None:
    """Return what such fields say of a request, and those of them that are in `told_by`.

    None where one of them needs the slow way: a key, or a `Connection` that names other fields.
    """
    arrived = NOTHING
    told: tuple[RawPair, ...] = ()
    for name, value in closer:
        if name in told_by:
            told = (*told, (name, value))
        elif name in FIELDS:
            if arrived is NOTHING:
                arrived = arrival_of(Headers.from_wire(closer))
        elif name != b"origin" and (name != b"connection" or value.lower() not in _OPTIONS):
            return None
    return arrived, told


def answer_head(
    status: int,
    pairs: Sequence[RawPair],
    trace_id: str,
    size: int,
    echo: bytes,
    leading: Leading,
    has_cors: bool = False,
) -> bytes:
    """Return the head of an upstream's answer as the client gets it, as `answer_of` makes it.

    Args:
        pairs: its fields, as a strict parser has judged them, names in lower case.
        size: of its body; below 0 where that comes in chunks.
        echo: the lines that repeat what the client has named its request, and say which pages may
            read the answer.
        leading: tells where it leads.
        has_cors: the latter is the gateway's to say.
    """
    # But for its length, the trace, and an echo that has no say in it, a head comes to the same
    # behind an instance each time that the upstream has said the same.
    has_name = _ECHOED in echo
    usual = pairs if isinstance(pairs, KeptFields) and not (has_cors or has_name) else None
    if usual is not None and usual.noted is not None and usual.noted[0] is leading:
        lines: bytes = usual.noted[1]
    else:
        lines = _lines(status, pairs, leading, has_name=has_name, has_cors=has_cors)
        if usual is not None:
            usual.noted = leading, lines
    if size < 0:
        framing = _CHUNKED
    else:
        framing = b"" if status in _NO_BODY else b"content-length: %d\r\n" % size
    return b"%b%b%b%b%b\r\n" % (lines, framing, echo, _OUR_LINES, trace_id.encode())


def _lines(
    status: int,
    pairs: Sequence[RawPair],
    leading: Leading,
    *,
    has_name: bool,
    has_cors: bool,
) -> bytes:
    """Return the first lines of an answer's head: what the upstream has said, as it may pass."""
    lines = [_STATUS_LINES[status]]
    caching, rules = _NO_STORE, _RULES
    for name, value in pairs:
        rule = rules.get(name)
        if rule is None:
            rule = _judge(name)
        if rule:
            if rule == _CACHE:
                # What the upstream says of caching goes before ours: it knows its answer.
                caching = b""
            elif (rule == _NAME and has_name) or (rule == _CORS and has_cors):
                continue  # it is the client's to say, or the gateway's
            elif rule == _CONNECTION:
                if value not in _OPTIONS and value.lower() not in _OPTIONS:
                    kept = _unnamed(pairs)
                    return _lines(status, kept, leading, has_name=has_name, has_cors=has_cors)
                continue
            elif rule == _LED:
                lines += (name, b": ", leading.raw(name, value), b"\r\n")
                continue
            lines += (name, b": ", value, b"\r\n")
    lines.append(caching)
    return b"".join(lines)


def _unnamed(pairs: Sequence[RawPair]) -> list[RawPair]:
    """Return the fields of an answer but those that its `Connection` names: of its own hop."""
    named = {name.encode("latin-1") for name in named_by(Headers.from_wire(list(pairs)))}
    return [pair for pair in pairs if pair[0] not in named and pair[0] != b"connection"]


def _judge(name: bytes) -> int:
    if len(_RULES) >= _RULES_MAX:
        _RULES.clear()  # somebody makes names up
        _RULES.update(_FIXED_RULES)
    rule = _CORS if name.startswith(SAID_BY_US.encode()) else _PASS
    rule = _RULES[name] = _DROP if name.startswith(b"synchromesh-") else rule
    return rule
