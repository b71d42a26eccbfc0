"""Whoever asks, leaves or is late: one call at a time for each question, and an answer for all."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from synchromesh.errors import Shed, TimedOut
from synchromesh.gateway.coalescing import Coalescer
from synchromesh.testing import SimRuntime, run

PATIENCE_S = 1.0


class Client(NamedTuple):
    """Asks a question at a time, and leaves after some, or never."""

    at_s: float
    question: str
    leaves_after_s: float | None


CLIENTS = st.lists(
    st.builds(
        Client,
        st.integers(0, 30).map(lambda n: n / 10),
        st.sampled_from("ab"),
        st.none() | st.integers(0, 12).map(lambda n: n / 10),
    ),
    min_size=1,
    max_size=12,
)
# How long each call takes, one after the other; beyond its caller's time it fails by that.
LENGTHS = st.lists(st.sampled_from([0.0, 0.1, 0.35, 0.9, 1.5]), min_size=1, max_size=8)


@settings(max_examples=100)
@given(CLIENTS, LENGTHS, st.lists(st.booleans(), min_size=1, max_size=8))
def test_equal_questions_are_asked_once(
    clients: list[Client], lengths: list[float], fails: list[bool]
) -> None:
    """Nobody waits longer than his own time, and nobody fails by the time of another."""

    async def main(_: SimRuntime) -> None:
        loop = asyncio.get_running_loop()
        asked: Coalescer[int] = Coalescer()
        under_way: dict[str, int] = {"a": 0, "b": 0}
        calls = 0

        async def ask(question: str, deadline_s: float) -> int:
            nonlocal calls
            number, calls = calls, calls + 1
            under_way[question] += 1
            assert under_way[question] == 1, "one at a time"
            try:
                async with asyncio.timeout_at(deadline_s):
                    await asyncio.sleep(lengths[number % len(lengths)])
            except TimeoutError:
                raise TimedOut("the time of the first is over") from None
            finally:
                under_way[question] -= 1
            if fails[number % len(fails)]:
                raise Shed("full")
            return number

        async def client(each: Client) -> None:
            await asyncio.sleep(each.at_s)
            deadline_s = loop.time() + PATIENCE_S
            try:
                async with asyncio.timeout(each.leaves_after_s):
                    await asked.answer(
                        each.question,
                        lambda: ask(each.question, deadline_s),
                        deadline_s=deadline_s,
                    )
            except TimeoutError:
                assert each.leaves_after_s is not None
            except TimedOut:
                assert loop.time() >= deadline_s, "it had time left"
            except Shed:
                pass  # which is the answer of that call
            assert loop.time() <= deadline_s + 1e-6

        await asyncio.gather(*map(client, clients))
        await asyncio.sleep(0.01)  # what was cancelled with the last of them ends
        assert under_way == {"a": 0, "b": 0}, "nothing goes on that nobody waits for"
        assert len(asked) == 0
        assert calls <= len(clients)

    run(main)
