"""The customers of the demo: hand orders in over HTTP and ask until each has its answer."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random
from urllib.parse import quote, urlsplit

import msgspec
from contracts.orders import PlaceOrder

from demo.account import Account
from demo.running import RunningSystem
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpPool, HttpResponse

AT_ONCE = 12
ASK_WITHIN_S = 5.0
GIVE_UP_AFTER_S = 60.0
WAIT_BASE_S, WAIT_CAP_S = 0.05, 0.5
# What Orders.place says no with; every other failure is asked again.
REFUSALS = frozenset({"no_price", "out_of_stock", "fully_booked", "credit_declined"})
MISTAKES = frozenset({400, 401, 403, 404, 422})


class Unanswered(Exception):
    """Tells that an order never got an answer, or one that no retry will mend."""


class Customers:
    """A bounded number of customers at a time; each retries its order under one key.

    An answer is noted in the account in the moment in which it comes: from then on the system is
    held to it.
    """

    def __init__(
        self,
        system: RunningSystem,
        pool: HttpPool,
        rng: Random,
        account: Account,
        at_once: int = AT_ONCE,
    ) -> None:
        self._system = system
        self._pool = pool
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
        """Ask what became of the orders that were only accepted at the time.

        Raises:
            Unanswered: the system does not say.
        """
        for order_id, told in list(self._account.told.items()):
            if told == "accepted":
                response = await self._send("GET", f"/orders/{quote(order_id, safe='')}", b"", "")
                status = _member(response, "status")
                if status not in ("placed", "rejected"):
                    raise Unanswered(f"order {order_id} was accepted and is {status or 'unknown'}")
                self._account.told[order_id] = status

    async def _serve(self) -> None:
        while True:
            order = await self._waiting.get()
            await self._place(order)
            self._waiting.task_done()

    async def _place(self, order: PlaceOrder) -> None:
        account, body = self._account, msgspec.json.encode(order)
        until_s = asyncio.get_running_loop().time() + GIVE_UP_AFTER_S
        wait_s = WAIT_BASE_S
        while True:
            account.requests += 1
            try:
                response = await self._send("POST", "/orders", body, f"demo/{order.order_id}")
            except SynchromeshError as error:
                reason = error.code
            else:
                if response.status == 200:
                    account.told[order.order_id] = _member(response, "type")
                    return
                reason = _member(response, "code") or f"status {response.status}"
                if reason in REFUSALS:
                    account.told[order.order_id] = "rejected"
                    return
                if response.status in MISTAKES:
                    said = _member(response, "detail")
                    raise Unanswered(f"order {order.order_id} is refused: {reason}: {said}")
            account.note_failure(reason)
            if asyncio.get_running_loop().time() > until_s:
                raise Unanswered(
                    f"order {order.order_id} has had no answer for {GIVE_UP_AFTER_S:g} s; "
                    f"the last attempt failed by {reason}"
                )
            await asyncio.sleep(self._rng.uniform(wait_s / 2, wait_s))
            wait_s = min(2 * wait_s, WAIT_CAP_S)

    async def _send(self, method: str, path: str, body: bytes, key: str) -> HttpResponse:
        place = urlsplit(self._system.url("orders"))
        headers = {"synchromesh-credential": self._system.credential}
        if key:
            headers |= {"idempotency-key": key, "content-type": "application/json"}
        return await self._pool.request(
            place.hostname or "", place.port or 80, method, path, headers.items(), body,
            timeout_s=ASK_WITHIN_S, is_idempotent=True,
        )  # fmt: skip


def _member(response: HttpResponse, name: str) -> str:
    """Return a text of a JSON answer; "" where it has none."""
    try:
        answer = msgspec.json.decode(response.body)
    except msgspec.DecodeError:
        return ""
    return str(answer.get(name, "")) if isinstance(answer, dict) else ""
