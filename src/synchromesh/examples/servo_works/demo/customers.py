"""The customers of the demo: hand orders in at the gateway and ask until each has its answer.

They are good clients. An order is sent under one idempotency key, however often: after an answer
that did not come, or one that says "not now", the same is asked again, later each time and no
sooner than was asked for. Whoever is told that an order is only accepted asks later what became of
it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from random import Random

from contracts.orders import PlaceOrder

from demo.account import Account
from demo.door import NOES, Answer, Door

AT_ONCE = 12
GIVE_UP_AFTER_S = 60.0
WAIT_BASE_S, WAIT_CAP_S = 0.05, 0.5
# What no retry will mend.
MISTAKES = frozenset({400, 401, 403, 404, 415, 422})


class Unanswered(Exception):
    """Tells that an order never got an answer, or one that no retry will mend."""


class Customers:
    """A bounded number of customers at a time; each retries its order under one key.

    An answer is noted in the account in the moment in which it comes: from then on the system is
    held to it.
    """

    def __init__(self, door: Door, rng: Random, account: Account, at_once: int = AT_ONCE) -> None:
        self._door = door
        self._rng = rng
        self._account = account
        self._at_once = at_once
        self._waiting: asyncio.Queue[PlaceOrder] = asyncio.Queue()

    def hand_in(self, orders: Iterable[PlaceOrder]) -> None:
        """Let orders be placed, in their order, as customers become free."""
        for order in orders:
            self._waiting.put_nowait(order)

    async def all_answered(self) -> None:
        """Wait until every order that was handed in has its answer."""
        await self._waiting.join()

    @asynccontextmanager
    async def buying(self) -> AsyncIterator[None]:
        """Place orders while the block runs.

        Raises:
            ExceptionGroup: what the block raised, or Unanswered; the block is cancelled then.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._serve()) for _ in range(self._at_once)]
            yield
            for task in tasks:
                task.cancel()

    async def settle(self) -> None:
        """Ask what became of the orders that were only accepted at the time, until it is decided.

        Raises:
            Unanswered: the system does not say.
        """
        accepted = [order_id for order_id, told in self._account.told.items() if told == "accepted"]
        for order_id in accepted:
            self._account.told[order_id] = await self._decided(order_id)

    async def _serve(self) -> None:
        while True:
            order = await self._waiting.get()
            await self._place(order)
            self._waiting.task_done()

    async def _place(self, order: PlaceOrder) -> None:
        def told(answer: Answer) -> str:
            if answer.code in NOES:
                return "rejected"
            return str(answer.body["type"]) if answer.status == 200 else ""

        # However often it is sent, by its key it is one order.
        key = f"demo/{order.order_id}"
        said = await self._until(
            told, lambda: self._door.ask("POST /orders", body=order, key=key), order.order_id
        )
        self._account.told[order.order_id] = said
        self._account.accepted += said == "accepted"

    async def _decided(self, order_id: str) -> str:
        def decided(answer: Answer) -> str:
            status = str(answer.body["status"]) if answer.status == 200 else ""
            return "" if status == "pending" else status

        return await self._until(
            decided, lambda: self._door.ask("GET /orders/{order_id}", order_id=order_id), order_id
        )

    async def _until(
        self,
        told: Callable[[Answer], str],
        ask: Callable[[], Awaitable[Answer]],
        order_id: str,
    ) -> str:
        """Ask again until an answer tells something, and return that.

        Raises:
            Unanswered: it is a mistake to ask this, or too much time has passed.
        """
        clock = asyncio.get_running_loop().time
        until_s, wait_s = clock() + GIVE_UP_AFTER_S, WAIT_BASE_S
        while True:
            answer = await ask()
            if found := told(answer):
                return found
            said = answer.code or f"status {answer.status}"
            if answer.status in MISTAKES:
                raise Unanswered(f"order {order_id} is refused: {said}: {answer.body}")
            if clock() > until_s:
                raise Unanswered(
                    f"order {order_id} has had no answer for {GIVE_UP_AFTER_S:g} s; the last "
                    f"attempt came to {said}"
                )
            await asyncio.sleep(max(answer.retry_after_s, self._rng.uniform(wait_s / 2, wait_s)))
            wait_s = min(2 * wait_s, WAIT_CAP_S)
