"""What spans tell of the time that was nobody's work: places, pauses, attempts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from calls_fakes import Leaf, System, answering, play
from synchromesh.calls import Policies
from synchromesh.codec import encode
from synchromesh.errors import Shed
from synchromesh.resilience import LimitOptions, Policy, RetryOptions
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.explanation import BACKOFF, PLACE, explain

pytestmark = pytest.mark.parametrize("kind", ["inproc", "http", "http slow"])
TOOK_S = 0.2


async def slowly(_: object) -> bytes:
    await asyncio.sleep(TOOK_S)
    return encode(1)


def calls(system: System) -> list[SpanRecord]:
    return [span for span in system.spans if span.kind == "call"]


def test_a_wait_for_a_place_of_the_edge_is_noted(kind: str) -> None:
    """Of the call that waited, and of no other; it is explained as what it was."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": slowly})
        policy = Policy(limit=LimitOptions(1, 1), retry=None)
        caller = system.caller(policies=Policies(default=policy))
        await asyncio.gather(*(caller.call(Leaf.ask(n), context=caller.root()) for n in range(2)))
        first, second = calls(system)
        assert "place_ms" not in first.attributes
        assert float(second.attributes["place_ms"]) == pytest.approx(TOOK_S * 1e3, rel=0.1)
        trace = [span for span in system.spans if span.trace_id == second.trace_id]
        (part,) = [part for part in explain(trace).parts if part.why == PLACE]
        assert part.where == "client -> leaf"
        assert part.took_us == pytest.approx(TOOK_S * 1e6, rel=0.1)

    play(kind, main)


def test_a_wait_for_a_place_of_the_callee_is_noted(kind: str) -> None:
    """On its own span; one that is refused after it as well."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": slowly}, in_flight_max=1, queue_max=1)
        caller = system.caller(policies=Policies(default=Policy(retry=None)))
        asked = [caller.call(Leaf.ask(n), context=caller.root()) for n in range(3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, Shed) for each in found) == 1
        waits = [span.attributes.get("place_ms") for span in system.spans if span.kind == "handle"]
        (noted,) = [wait for wait in waits if wait is not None]
        assert float(noted) == pytest.approx(TOOK_S * 1e3, rel=0.1)

    play(kind, main)


def test_attempts_that_failed_are_noted_with_the_pauses_between_them(kind: str) -> None:
    """What each came to, in their order."""

    async def main(system: System) -> None:
        failures: list[Any] = [ConnectionResetError(), Shed("busy")]

        async def fails(_: object) -> bytes:
            if failures:
                raise failures.pop(0)
            return encode(1)

        await system.serve(Leaf, {"ask": fails})
        policy = Policy(retry=RetryOptions(attempts_max=3, base_s=0.1), breaker=None)
        caller = system.caller(policies=Policies(default=policy))
        context = caller.root()
        began_s = asyncio.get_running_loop().time()
        await caller.call(Leaf.ask(1), context=context)
        took_s = asyncio.get_running_loop().time() - began_s
        (span,) = calls(system)
        assert span.attributes["attempts"] == "3"
        assert span.attributes["failed"] == "remote_failed, shed"
        waited_s = float(span.attributes["backoff_ms"]) / 1e3
        assert waited_s == pytest.approx(took_s, rel=0.1)
        (part,) = [part for part in explain(list(system.spans)).parts if part.why == BACKOFF]
        assert part.took_us == pytest.approx(waited_s * 1e6, rel=0.01)

    play(kind, main)


def test_a_call_that_goes_straight_through_notes_nothing_of_it(kind: str) -> None:
    """Where nothing was waited for there is nothing to tell."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": answering(1)})
        caller = system.caller()
        await caller.call(Leaf.ask(1), context=caller.root())
        assert all(set(span.attributes) <= {"instance", "attempts"} for span in system.spans)

    play(kind, main)
