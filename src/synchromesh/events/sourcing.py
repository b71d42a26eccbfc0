"""Run deciders on the log: load, fold, decide, append at the version decided at."""

from __future__ import annotations

from typing import TypeVar

from synchromesh.events.decider import Decider
from synchromesh.events.log import append, load
from synchromesh.events.types import EventTypes
from synchromesh.store import Unit

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

    The whole stream is loaded and folded; the new events are appended at the version they were
    decided at.

    Raises:
        Rejection: the decider refused; nothing is appended.
        ContractError: the decider made an event that it does not list, or a stored one is unknown.
    """
    stream = decider.stream(stream_id)
    stored = await load(unit, stream)
    decision = decider.decide(command, decider.fold(types.decode(event) for event in stored))
    decider.check(decision)
    if decision.events:
        await append(
            unit,
            stream,
            [types.encode(event, trace_id=trace_id) for event in decision.events],
            expected=stored[-1].version if stored else 0,
        )
    return decision.result
