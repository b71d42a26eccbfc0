"""What is wished of a run that another process has: asked for and answered by rows and wake-ups.

Only the owner of a run changes it. Whoever else is asked to cancel or repair it leaves the wish in
the database; the owner does it, and leaves what came of it there. If the owner dies meanwhile, the
next one finds the wish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from synchromesh.clock import loop_clock
from synchromesh.codec import decode, encode
from synchromesh.errors import Fenced, SynchromeshError, TimedOut, from_problem, to_problem
from synchromesh.events.subscription import Wakeup
from synchromesh.saga.repair import RepairWish
from synchromesh.saga.shards import Shards
from synchromesh.saga.tables import CONCLUDED, OWN, SagaRow, find
from synchromesh.store import Store, Unit

Do = Callable[[str, str, RepairWish], Awaitable[None]]

_WISHED, _ANSWERED = "saga wishes", "saga wishes answered"
_WITHIN_S = 20.0
# Wake-ups are hints.
_POLL_S = 1.0
# Who asked has long been told that no answer came.
_KEPT_US = 3_600_000_000
_AT_ONCE = 32
_OPEN = (
    "select w.id, w.saga, w.verb, w.wish from sm_saga_wish w join sm_saga on sm_saga.id = w.saga "
    f"where w.answer is null and {OWN} order by w.at_us limit {_AT_ONCE}"
)
_PUT = "insert into sm_saga_wish(id, saga, verb, wish, at_us) values (?, ?, ?, ?, ?)"
_ANSWER = "update sm_saga_wish set answer = ? where id = ?"


async def ask(store: Store, id: str, verb: str, wish: RepairWish) -> None:  # noqa: A002
    """Have the owner of a run do something with it, and return once that is done.

    Raises:
        TimedOut: nobody has answered; whether it is done is told by the run.
        SynchromeshError: what the owner was told.
    """

    async def put(unit: Unit) -> str:
        wish_id = unit.new_id()
        await unit.execute("delete from sm_saga_wish where at_us < ?", unit.now_us - _KEPT_US)
        await unit.execute(_PUT, wish_id, id, verb, encode(wish), unit.now_us)
        unit.notify(_WISHED)
        return wish_id

    async def take(unit: Unit) -> bytes | None:
        rows = await unit.execute("delete from sm_saga_wish where id = ? returning answer", wish_id)
        answer = rows[0][0] if rows else None
        return answer if isinstance(answer, bytes) else None

    time = loop_clock(asyncio.get_running_loop())
    until_s = time() + _WITHIN_S
    wakeup = Wakeup(store, poll_s=_POLL_S, topics=(_ANSWERED,))
    try:
        wish_id = await store.write(put, name="saga wish")
        while time() < until_s:
            wakeup.clear()
            if await store.read(
                "select 1 from sm_saga_wish where id = ? and answer is not null", wish_id
            ):
                break
            await wakeup.wait(until_s=until_s)
    finally:
        wakeup.close()
    answer = await store.write(take, name="saga wish taken")
    if answer is None:
        raise TimedOut(
            f"nobody who runs saga {id!r} has answered within {_WITHIN_S:g} s; whether it is "
            "done is told by the story of the run: look at it, and ask again"
        )
    if answer:
        problem = decode(answer, dict[str, object])
        raise from_problem(problem, status=500)


async def has_changed(store: Store, row: SagaRow, until_s: float) -> bool:
    """Wait until a run may have come further than its row says; False where that takes too long."""
    time = loop_clock(asyncio.get_running_loop())
    wakeup = Wakeup(store, poll_s=_POLL_S, topics=(CONCLUDED,))
    try:
        if await find(store, row.id) == row:
            await wakeup.wait(until_s=until_s)
    finally:
        wakeup.close()
    return time() < until_s


async def keep_answering(store: Store, shards: Shards, do: Do) -> None:
    """Do what others wish of the runs of own shards; only cancellation ends it."""
    wakeup = Wakeup(store, poll_s=_POLL_S, topics=(_WISHED,))
    try:
        while True:
            wakeup.clear()
            found = await store.read(_OPEN, shards.mask)
            for wish_id, saga, verb, wish in found:
                told = wish if isinstance(wish, bytes) else str(wish).encode()
                await _answer(
                    store, str(wish_id), do(str(saga), str(verb), decode(told, RepairWish))
                )
            if len(found) < _AT_ONCE:
                await wakeup.wait()
    finally:
        wakeup.close()


async def _answer(store: Store, wish_id: str, doing: Awaitable[None]) -> None:
    answer = b""
    try:
        async with asyncio.timeout(_WITHIN_S):
            await doing
    except Fenced:
        return  # it is the next owner's
    except SynchromeshError as error:
        answer = encode(to_problem(error))
    except TimeoutError:
        answer = encode(to_problem(TimedOut(f"it was not done within {_WITHIN_S:g} s")))

    async def body(unit: Unit) -> None:
        await unit.execute(_ANSWER, answer, wish_id)
        unit.notify(_ANSWERED)

    await store.write(body, name="saga wish answered")
