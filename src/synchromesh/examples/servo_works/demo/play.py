"""The play: a calm start, a provider that stalls and fails, a kill, a restart, an end in order."""

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

import msgspec
from contracts.orders import PlaceOrder
from rich.console import Console

from demo.account import Account, Kill, Turn
from demo.customers import Customers
from demo.display import Display
from demo.running import RunningSystem, until
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import SpanRecord

EDGE = "billing -> credit_provider"
IN_FLIGHT_MIN = 5
# A few more than are asked for: some of them end between the look and the kill.
IN_FLIGHT_WANTED = 7
# Below the 300 ms that billing waits: late, and yet in time.
SLOW_S = 0.2
TRIP_WITHIN_S = 15.0
RECOVER_WITHIN_S = 20.0
IN_FLIGHT_WITHIN_S = 15.0
SETTLE_WITHIN_S = 40.0
TRACES_TRIED_MAX = 20


async def play(folder: Path, orders: list[PlaceOrder], out: Console) -> Account:
    """Run the demo in a folder made by `copy_shipped`, and return what was seen.

    Whatever happens, no process is left.

    Raises:
        SystemEnded: the system ended by itself.
        Unanswered: an order got no answer.
        NotInTime: the system did not start or stop.
    """
    account, runtime = Account(len(orders)), RealRuntime()
    display = Display(out, account)
    async with HttpPool(network=runtime.network) as pool:
        system = RunningSystem(folder, pool)
        customers = Customers(system, pool, runtime.rng, account)
        acts = Acts(system, customers, account, display, orders)
        script = asyncio.create_task(acts.run(runtime))
        try:
            with display.shown():
                await asyncio.wait({script, system.ended}, return_when=asyncio.FIRST_COMPLETED)
                if system.ended.done():
                    system.ended.result()
                await script
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            script.cancel()
            await asyncio.gather(script, return_exceptions=True)
            await system.stop()
    account.took_s = display.took_s
    return account


class Acts:
    """What is done to the system, one act after the other."""

    def __init__(
        self,
        system: RunningSystem,
        customers: Customers,
        account: Account,
        display: Display,
        orders: list[PlaceOrder],
    ) -> None:
        self._system = system
        self._customers = customers
        self._account = account
        self._display = display
        self._orders = list(orders)
        self._share = len(orders) // 4

    async def run(self, runtime: RealRuntime) -> None:
        """Run all of them; the system is stopped at the end."""
        async with self._customers.buying():
            await self._calm()
            await self._provider_fails()
            await self._kill(runtime)
            await self._settle()
        await self._collect()
        code = await self._system.stop()
        if code:
            self._account.notes.append(f"the system stopped with exit code {code}, expected 0")
        self._account.turns = self._turns()

    async def _calm(self) -> None:
        self._display.say("synchromesh dev: six services and a credit provider start")
        await self._system.start()
        self._display.say(f"process {self._system.pid} answers; the first orders are handed in")
        self._hand_in(self._share)
        await self._customers.all_answered()

    async def _provider_fails(self) -> None:
        say, system = self._display.say, self._system
        say("the credit provider stalls: it takes the money and does not answer")
        await system.set_faults("stall")
        self._hand_in(self._share)
        if await until(lambda: self._has_turned("open"), TRIP_WITHIN_S):
            say(f"the breaker {EDGE} is open: nobody waits for the provider any more")
        say("the credit provider answers again, with errors")
        await system.set_faults("errors")
        await until(lambda: self._has_turned("open", "half_open"), TRIP_WITHIN_S)
        say("the credit provider is well again")
        await system.set_faults("ok")
        if await until(lambda: self._has_turned("closed"), RECOVER_WITHIN_S):
            say(f"the breaker {EDGE} is closed again")

    async def _kill(self, runtime: RealRuntime) -> None:
        say, system, account = self._display.say, self._system, self._account
        await self._customers.all_answered()
        await system.set_faults("slow", SLOW_S)
        self._hand_in(len(self._orders))
        await until(lambda: len(system.in_flight()) >= IN_FLIGHT_WANTED, IN_FLIGHT_WITHIN_S)
        say(f"kill -9 {system.pid}")
        await system.kill()
        at_us, answered = runtime.wall_us(), len(account.told)
        in_flight = system.in_flight()
        say(f"dead, with {len(in_flight)} sagas in flight; it is started again")
        await system.start()
        account.kill = Kill(at_us, in_flight, await system.recovered())
        account.told_at_kill = answered
        say(f"process {system.pid} has recovered {account.kill.recovered} sagas")

    async def _settle(self) -> None:
        await self._customers.all_answered()
        self._display.say("every order has its answer; the last sagas and messages come to an end")
        if not await until(self._system.is_settled, SETTLE_WITHIN_S):
            self._account.notes.append(
                f"sagas or messages were still under way {SETTLE_WITHIN_S:g} s after the last order"
            )
            return
        await self._customers.settle()

    async def _collect(self) -> None:
        """Keep what only a running system can show: a trace, and the story of an undone saga."""
        system, account = self._system, self._account
        undone = (await system.ask("GET", "/sagas?status=undone&limit=1000"))["sagas"]
        if undone:
            longest = max(undone, key=lambda run: run["records"])
            # Such as "refused: credit_declined: acme has no credit with us".
            kinds = Counter(": ".join(run["reason"].split(": ")[:2]) for run in undone)
            account.reasons = dict(kinds)
            account.undone = await system.ask("GET", f"/sagas/{longest['id']}")
        kill = account.kill
        for saga_id in kill.in_flight[:TRACES_TRIED_MAX] if kill else ():
            story = await system.ask("GET", f"/sagas/{saga_id}")
            answer = await system.ask("GET", f"/traces/{story['trace_id']}")
            account.spans = msgspec.convert(answer["spans"], list[SpanRecord])
            if kill and is_across(account.spans, kill.at_us):
                return

    def _hand_in(self, count: int) -> None:
        self._customers.hand_in(self._orders[:count])
        del self._orders[:count]

    def _has_turned(self, after: str, before: str = "") -> bool:
        return any(
            turn.edge == EDGE and turn.after == after and before in ("", turn.before)
            for turn in self._turns()
        )

    def _turns(self) -> list[Turn]:
        """Return what the system's log tells of breakers."""
        turns = []
        with suppress(FileNotFoundError):
            for line in self._system.log.read_bytes().splitlines():
                # A kill may have cut the line that was being written.
                with suppress(msgspec.MsgspecError):
                    turns.append(msgspec.json.decode(line, type=Turn))
        return turns


def is_across(spans: list[SpanRecord], at_us: int) -> bool:
    """Return True where a trace has spans from before a moment and from after it."""
    return any(s.started_us < at_us for s in spans) and any(s.started_us > at_us for s in spans)
