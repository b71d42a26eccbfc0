"""The inbox: the record of each call under its idempotency key, in the callee's database.

Its row is written in the commit of the effect itself, so the two cannot disagree. A key goes

    (none) ── begin ──▶ BEGUN ── conclude ──▶ ANSWER | REJECTION
       └── write_tombstone ──▶ TOMBSTONE

and never back; rows leave only by `sweep`, once this service has been seen running for the time for
which they were to be kept, and a tenth more. Wall clocks jump, by days after a flat battery, and
a process that was down cannot tell that from a long absence: time that nobody watched makes no
record forgotten. So whoever asks under a key within `keep_s` of its first use, by any clock that
is a tenth right, finds its record.

Source: Helland, "Life beyond Distributed Transactions", 2007; Richardson, *Microservices Patterns*,
section 3.3.6.
"""

from __future__ import annotations

from collections.abc import Callable

from synchromesh.errors import Fenced, KeyReused, KeyUndone
from synchromesh.store.unit import InboxState, Once, Recorded, Row, Store, Unit

TABLES = (
    (
        "create table sm_inbox(caller text not null, key text not null, kind text not null, "
        "digest text not null, body {blob} not null, expires_us bigint not null, "
        "primary key(caller, key)) {keyed}"
    ),
    "create index sm_inbox_expires on sm_inbox(expires_us)",
)


# Each statement is one text: the store's checks of it are found by its identity.
_FIND = "select kind, digest, body from sm_inbox where caller = ? and key = ?"
_PUT = (
    "insert into sm_inbox(caller, key, kind, digest, body, expires_us) "
    "values (?, ?, ?, ?, ?, ?) on conflict(caller, key) do update set "
    "kind = excluded.kind, digest = excluded.digest, body = excluded.body, "
    "expires_us = excluded.expires_us"
)
_CLAIM = (
    "insert into sm_inbox(caller, key, kind, digest, body, expires_us) "
    "values (?, ?, ?, ?, ?, ?) on conflict(caller, key) do nothing returning 1"
)
_PUT_TOMBSTONE = (
    "insert into sm_inbox(caller, key, kind, digest, body, expires_us) "
    "values (?, ?, ?, ?, ?, ?) on conflict(caller, key) do nothing"
)
SEALED_ANSWERS = (
    "select key, caller, body, null from sm_inbox where kind = 'answer' and instr(body, ?) limit ?"
)
"""Finds the recorded answers in which a text occurs: key, caller and document; no time is kept."""
SEALED_REQUESTS = (
    "select key, caller, body, null from sm_inbox where kind = 'begun' and instr(body, ?) limit ?"
)
"""Finds the requests under way in which a text occurs."""


async def look_up(unit: Unit, caller: str, key: str) -> Recorded | None:
    """Return the record of a key, or None.

    A record is honoured until it is swept, also past its time: a clock that jumps forgets nothing.
    """
    rows = await unit.execute(_FIND, caller, key)
    return _recorded(rows[0]) if rows else None


async def peek(store: Store, caller: str, key: str) -> Recorded | None:
    """Return what is committed under a key, as `look_up` does within a unit."""
    rows = await store.read(_FIND, caller, key)
    return _recorded(rows[0]) if rows else None


async def recall(unit: Unit, once: Once) -> Recorded | None:
    """Return the conclusion of a call under its key, or None if the call has yet to run to its end.

    Raises:
        KeyReused: the key is recorded with another digest (a tombstone has none).
    """
    # Not by `look_up`: nothing is recorded yet for nearly every unit that asks here.
    rows = await unit.execute(_FIND, once.caller, once.key)
    if not rows:
        return None
    known = _recorded(rows[0])
    if known.kind is InboxState.TOMBSTONE:
        return known
    _check_digest(known, once.key, once.digest)
    return None if known.kind is InboxState.BEGUN else known


async def claim(unit: Unit, once: Once) -> Recorded | None:
    """Record a key as done and return None; return its record where it has one.

    It is for a transaction beside others that may be at the same key, at any isolation: it waits
    for the end of whichever came first. One that reads as of its beginning is then told of a
    conflict by the engine.

    Raises:
        KeyReused: the key is recorded with another digest (a tombstone has none).
    """
    expires_us = _expiry_us(unit, once.keep_s)
    kind, digest = InboxState.ANSWER.value, once.digest
    while True:
        rows = await unit.execute(_CLAIM, once.caller, once.key, kind, digest, b"null", expires_us)
        if rows:
            return None
        # It may have been swept in between.
        known = await look_up(unit, once.caller, once.key)
        if known is not None:
            if known.kind is not InboxState.TOMBSTONE:
                _check_digest(known, once.key, once.digest)
            return known


async def begin(
    unit: Unit, caller: str, key: str, digest: str, request: bytes, keep_s: float
) -> None:
    """Record that the call under a key has begun to have effects; may be repeated.

    Raises:
        KeyReused: the key is recorded with another digest.
        KeyUndone: the key was undone: the call must not have an effect any more.
        Fenced: another run of the call has concluded it; this one's effects are refused.
    """
    known = await look_up(unit, caller, key)
    if known is None:
        expires_us = _expiry_us(unit, keep_s)
        await unit.execute(_PUT, caller, key, InboxState.BEGUN.value, digest, request, expires_us)
        return
    if known.kind is InboxState.TOMBSTONE:
        raise KeyUndone(f"key {key!r} was undone before its call had an effect; it must not run")
    _check_digest(known, key, digest)
    if known.kind is not InboxState.BEGUN:
        raise Fenced(
            f"the call under key {key!r} was concluded by another run; this one must stop, and "
            "asking again returns the recorded answer"
        )


async def write_tombstone(unit: Unit, caller: str, key: str, keep_s: float) -> None:
    """Write a tombstone unless the key has a record, so that a late call has no effect."""
    await unit.execute(
        _PUT_TOMBSTONE, caller, key, InboxState.TOMBSTONE.value, "", b"", _expiry_us(unit, keep_s)
    )


async def conclude(unit: Unit, once: Once, kind: InboxState, body: bytes) -> Recorded:
    """Record the answer or rejection of a call, in place of a BEGUN record, and return it."""
    digest = once.digest
    expires_us = unit.now_us + kept_us(once.keep_s)
    # `kind.value` would be a Python property of the enum module, once a unit.
    await unit.execute(_PUT, once.caller, once.key, kind._value_, digest, body, expires_us)
    return Recorded(kind, digest, body)


def kept_us(keep_s: float) -> int:
    """Return how long a record is kept, a tenth longer than anyone may ask under its key."""
    return int(keep_s * 1_100_000)


def advance_horizon(
    horizon_us: int | None, *, ran_us: int, now_us: int, oldest_us: int | None, kept_us: int
) -> int:
    """Return up to which expiry records may go: the horizon moves as the service is seen running.

    It is never past the wall clock, nor past what is older than the oldest record, so that it does
    not lag for ever after an absence. A record is written ahead of it by all the time that it is
    kept for; hence that much running time goes by before it is reached, whatever the wall clock
    does meanwhile.

    Args:
        horizon_us: the last one, None where there was none.
        ran_us: how long the service was seen running since.
        now_us: the wall clock.
        oldest_us: the first expiry of a record that is ahead of it, None where there is none.
        kept_us: how long records are kept.

    Example:
        >>> day = 86_400_000_000
        >>> jumped = 1000 * day  # the clock, all at once
        >>> advance_horizon(3 * day, ran_us=60, now_us=jumped, oldest_us=5 * day, kept_us=7 * day)
        259200000060
    """
    free_us = now_us if oldest_us is None else oldest_us - kept_us
    if horizon_us is not None:
        free_us = max(free_us, horizon_us + ran_us)
    return min(free_us, now_us)


def _never(caller: str, key: str, body: bytes) -> bool:  # noqa: ARG001
    return False


async def sweep(
    unit: Unit,
    *,
    ran_s: float,
    keep_s: float,
    rows_max: int = 500,
    is_needed: Callable[[str, str, bytes], bool] = _never,
) -> int:
    """Delete up to `rows_max` records whose time is over; repeat while it returns that many.

    `ran_s` is how long the service was seen running since the last sweep that was done: no sweep
    takes what would expire later than that. A record that lies behind the last horizon was written
    while the wall clock was set back, and is kept for its time from now on; so is one of which
    `is_needed` says, by its caller, key and answer, that it may still be asked for.
    """
    kept = kept_us(keep_s)
    found = await unit.execute("select value from sm_meta where name = 'inbox_horizon_us'")
    last_us = int(str(found[0][0])) if found else None
    ((oldest_us,),) = await unit.execute(
        "select min(expires_us) from sm_inbox where expires_us > ?",
        -(2**63) if last_us is None else last_us,
    )
    horizon_us = advance_horizon(
        last_us,
        ran_us=int(ran_s * 1_000_000),
        now_us=unit.now_us,
        oldest_us=oldest_us if isinstance(oldest_us, int) else None,
        kept_us=kept,
    )
    behind = await unit.execute(
        "update sm_inbox set expires_us = ? where (caller, key) in (select caller, key from "
        "sm_inbox where expires_us <= ? order by expires_us limit ?) returning 1",
        unit.now_us + kept,
        -(2**63) if last_us is None else last_us,
        rows_max,
    )
    if len(behind) == rows_max:
        return rows_max
    over = await unit.execute(
        "select caller, key, body from sm_inbox where expires_us <= ? order by expires_us limit ?",
        horizon_us,
        rows_max,
    )
    gone: list[Row] = []
    needed: list[Row] = []
    for caller, key, answer in over:
        held = isinstance(answer, bytes) and is_needed(str(caller), str(key), answer)
        (needed if held else gone).append((caller, key))
    await unit.execute_many(
        "update sm_inbox set expires_us = ? where caller = ? and key = ?",
        [(unit.now_us + kept, *each) for each in needed],
    )
    await unit.execute_many("delete from sm_inbox where caller = ? and key = ?", gone)
    if len(over) < rows_max:
        await unit.execute(
            "insert into sm_meta(name, value) values ('inbox_horizon_us', ?) "
            "on conflict(name) do update set value = excluded.value",
            str(horizon_us),
        )
    return len(over)


def _recorded(row: Row) -> Recorded:
    kind, digest, body = row
    return Recorded(InboxState(kind), str(digest), body if isinstance(body, bytes) else b"")


def _check_digest(known: Recorded, key: str, digest: str) -> None:
    if known.digest != digest:
        raise KeyReused(
            f"key {key!r} was used before with another input; a new input needs a new key"
        )


def _expiry_us(unit: Unit, keep_s: float) -> int:
    return unit.now_us + kept_us(keep_s)
