"""Run deciders on the log: load, fold, decide, append at the version decided at."""

from __future__ import annotations

from typing import TypeVar

from synchromesh.events.appending import append
from synchromesh.events.decider import Decider
from synchromesh.events.log import AppendReceipt, load
from synchromesh.events.snapshots import FOLD_MAX, codec_of, fold_ahead, newest, save
from synchromesh.events.types import EventTypes
from synchromesh.store import Unit, Unprepared

S = TypeVar("S")
C = TypeVar("C")
R = TypeVar("R")


async def decide(
    unit: Unit,
    decider: Decider[S, C, R],
    types: EventTypes,
    stream_id: str,
    command: C,
    *,
    trace_id: str = "",
) -> R:
    """Run a command on a stream within a unit and return the decision's result.

    The newest snapshot is loaded and what came after it is folded; the new events are appended at
    the version they were decided at. A snapshot is taken every `snapshot_every` events; where more
    than 1,000 are to be folded, that is done before the unit.

    Raises:
        Rejection: the decider refused; nothing is appended.
        ContractError: the decider made an event that it does not list, or a stored one is unknown.
    """
    result, _ = await decide_at(unit, decider, types, stream_id, command, trace_id=trace_id)
    return result


async def decide_at(
    unit: Unit,
    decider: Decider[S, C, R],
    types: EventTypes,
    stream_id: str,
    command: C,
    *,
    trace_id: str,
) -> tuple[R, AppendReceipt]:
    """Decide as `decide` does; return the receipt, too: of the stream as it is then."""
    stream = decider.stream(stream_id)
    version, state = await _fold(unit, decider, types, stream)
    decision = decider.decide(command, state)
    decider.check(decision)
    if decision.events:
        version = await append(
            unit,
            stream,
            [types.encode(event, trace_id=trace_id) for event in decision.events],
            expected=version,
        )
    return decision.result, AppendReceipt(stream, version)


async def _fold(
    unit: Unit, decider: Decider[S, C, R], types: EventTypes, stream: str
) -> tuple[int, S]:
    """Return the version and the state of a stream; take a snapshot where one is due."""
    codec = codec_of(decider)
    if codec is None or not codec.is_usable:
        stored = await load(unit, stream)
        state = decider.fold(map(types.decode, stored))
        return (stored[-1].version if stored else 0), state
    start, state = await newest(unit, stream, codec) or (0, decider.initial)
    bound = max(FOLD_MAX, 2 * decider.snapshot_every)
    stored = await load(unit, stream, start, limit=bound + 1)
    if len(stored) > bound:
        raise Unprepared(stream, lambda store: fold_ahead(store, decider, types, stream))
    for each in stored:
        state = decider.evolve(state, types.decode(each))
    version = stored[-1].version if stored else start
    # Written before the decider sees the state: whatever that does to it is not kept.
    if version - start >= decider.snapshot_every and (written := codec.encode(state)) is not None:
        await save(unit, stored[-1], codec, written)
    return version, state
