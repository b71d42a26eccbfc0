"""The customers of the demo: hand orders in at the gateway and ask until each has its answer.

Each customer of the book has an API key of their own, which orders of theirs are sent with.

They are good clients. An order is sent under one idempotency key, however often: after an answer
that did not come, or one that says "not now", the same is asked again, later each time and no
sooner than was asked for. Whoever is told that an order is only accepted asks later what became of
it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random

from contracts.orders import PlaceOrder

from demo.account import Account
from demo.door import NOES, Door, DoorAnswer, ask_until

AT_ONCE = 12
# An order that came to nothing for a technical reason: that is final, under its id and its key.
UNDONE = "saga_undone"


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
        # Whose each order is, for who asks what became of it.
        self._customer_of: dict[str, str] = {}
        self._unanswered = 0

    @property
    def unanswered(self) -> int:
        """How many orders were handed in and have no answer yet."""
        return self._unanswered

    def hand_in(self, orders: Iterable[PlaceOrder]) -> None:
        """Let orders be placed, in their order, as customers become free."""
        for order in orders:
            self._customer_of[order.order_id] = order.customer
            self._unanswered += 1
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
            self._unanswered -= 1
            self._waiting.task_done()

    async def _place(self, order: PlaceOrder) -> None:
        def told(answer: DoorAnswer) -> str:
            if answer.code in NOES or answer.code == UNDONE:
                return "rejected"
            return str(answer.body["type"]) if answer.status == 200 else ""

        # However often it is sent, by its key it is one order.
        key = f"demo/{order.order_id}"
        said = await ask_until(
            told,
            lambda: self._door.ask("POST /orders", who=order.customer, body=order, key=key),
            f"order {order.order_id}",
            self._rng,
        )
        self._account.told[order.order_id] = said
        self._account.accepted += said == "accepted"

    async def _decided(self, order_id: str) -> str:
        def decided(answer: DoorAnswer) -> str:
            status = str(answer.body["status"]) if answer.status == 200 else ""
            return "" if status == "pending" else status

        who = self._customer_of[order_id]
        return await ask_until(
            decided,
            lambda: self._door.ask("GET /orders/{order_id}", who=who, order_id=order_id),
            f"order {order_id}",
            self._rng,
            # An order is accepted with its saga, whose first step writes it.
            not_yet="unknown_order",
        )
