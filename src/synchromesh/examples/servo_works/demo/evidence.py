"""What the demo finds out about the system: in its logs, and by the control socket."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec

from demo.account import Account, Turn
from demo.door import DoorRequest
from demo.running import RunningSystem
from synchromesh.errors import ConfigError
from synchromesh.telemetry import SpanRecord

TRACES_TRIED_MAX = 30


def turns_of(system: RunningSystem) -> list[Turn]:
    """Return what the logs of all processes tell of breakers, in order of time."""
    turns = []
    for log in system.log.parent.glob("log*.jsonl"):
        for line in log.read_bytes().splitlines():
            # Most lines tell of other things, and a kill may have cut one that was being written.
            with suppress(msgspec.MsgspecError):
                turns.append(msgspec.json.decode(line, type=Turn))
    return sorted(turns, key=lambda turn: turn.at)


async def open_breakers(system: RunningSystem) -> list[str]:
    """Return the edges whose breaker is not closed."""
    return [
        breaker["name"]
        for caller in (await _callers(system)).values()
        for breaker in caller["breakers"].values()
        if breaker["state"] != "closed"
    ]


async def holds_of(system: RunningSystem, without: str) -> Counter[str]:
    """Return the counts of held calls and their outcomes, of all callers but one."""
    held: Counter[str] = Counter()
    for name, caller in (await _callers(system)).items():
        if name.partition("#")[0] != without:
            held.update(caller["holds"])
    return held


async def _callers(system: RunningSystem) -> dict[str, Any]:
    status = await system.status()
    return {**status["clients"], **status["services"]}


async def longest_hold(
    system: RunningSystem, callee: str, asked: Iterable[DoorRequest]
) -> SpanRecord | None:
    """Return the call to a service that was held longest for one of these requests.

    It is looked for in the traces of those that took longest; None where no span tells of a hold.
    """
    longest = None
    for each in _slowest_first(asked):
        for span in await trace(system, each.trace_id):
            is_held = span.status == "ok" and span.name.startswith(f"{callee}.")
            if is_held and held_ms(span) > (0 if longest is None else held_ms(longest)):
                longest = span
    return longest


async def slowest(system: RunningSystem, asked: Iterable[DoorRequest]) -> list[SpanRecord]:
    """Return the spans of the request that took longest; none where no trace is kept."""
    for each in _slowest_first(asked):
        if spans := await trace(system, each.trace_id):
            return spans
    return []


def _slowest_first(asked: Iterable[DoorRequest]) -> list[DoorRequest]:
    return sorted(asked, key=lambda each: each.took_s, reverse=True)[:TRACES_TRIED_MAX]


def held_ms(span: SpanRecord) -> int:
    """Return how long a call was held."""
    return int(span.attributes.get("held_ms", "0"))


async def tell_of_undone(system: RunningSystem, account: Account) -> None:
    """Note why sagas were undone, and the story of one of them."""
    wanted = {"status": "undone", "limit": 1000}
    found = await system.ask("POST", "/actions/saga.list", wanted)
    undone = [run for runs in found["answers"].values() for run in runs]
    # Such as "refused: credit_declined: acme has no credit with us".
    reasons = Counter(": ".join(run["reason"].split(": ")[1:2]) for run in undone)
    account.reasons = dict(reasons)
    if undone:
        # One that had something to undo elsewhere, and is told in few lines.
        chosen = min(
            undone, key=lambda run: ("credit_declined" not in run["reason"], run["records"])
        )
        account.undone = await story_of(system, chosen["id"])


async def story_of(system: RunningSystem, saga_id: str) -> Any:
    """Return the story of a saga, from the service that runs it."""
    (story,) = (await system.ask("POST", "/actions/saga.show", {"id": saga_id}))["answers"].values()
    return story


async def tell_of_crossing(system: RunningSystem, account: Account) -> None:
    """Note the trace of a saga that the kill met: the shortest with spans before and after it."""
    kill = account.kills[-1]
    for saga_id in kill.in_flight[:TRACES_TRIED_MAX]:
        story = await story_of(system, saga_id)
        spans = await trace(system, story["trace_id"])
        if is_across(spans, kill.at_us) and not 0 < len(account.spans) < len(spans):
            account.spans = spans


async def shown(system: RunningSystem, saga_ids: Iterable[str]) -> str | None:
    """Return the first saga whose trace has spans of the service that will be killed, if any."""
    for saga_id in saga_ids:
        story = await story_of(system, saga_id)
        if any(service_of(span) == "orders" for span in await trace(system, story["trace_id"])):
            return saga_id
    return None


def service_of(span: SpanRecord) -> str:
    """Return whose span it is; one of several replicas names itself."""
    return span.service.partition("#")[0]


def is_across(spans: list[SpanRecord], at_us: int) -> bool:
    """Return True where the service that was killed has spans from before and from after it."""
    starts_us = [span.started_us for span in spans if service_of(span) == "orders"]
    return bool(starts_us) and min(starts_us) < at_us < max(starts_us)


async def trace(system: RunningSystem, trace_id: str) -> list[SpanRecord]:
    """Return what all processes have kept of a trace; nothing where none has."""
    try:
        answer = await system.ask("GET", f"/traces/{trace_id}")
    except ConfigError:
        return []
    return msgspec.convert(answer["spans"], list[SpanRecord])
