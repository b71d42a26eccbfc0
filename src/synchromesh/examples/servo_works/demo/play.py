"""The play: a calm start, a provider that stalls and fails, kills, a restart, and an end.

Nothing in it happens by the clock, and nothing depends on how quick the machine is. Each act does
something to the system and waits until what must come of it was seen. The one bound of those waits
is for what never comes; the report will miss it then.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from contracts.orders import PlaceOrder
from rich.console import Console

from demo import evidence, release
from demo.account import (
    BUG,
    CALM,
    ERRORS,
    HEALED,
    INVENTORY_ROUTES,
    KILL,
    REPLICAS,
    REST,
    RESTART,
    STALL,
    Account,
    Kill,
    RepairByHand,
    ReplicaLoss,
    Restart,
)
from demo.customers import AT_ONCE, Customers
from demo.display import Display
from demo.door import Door
from demo.intruders import Intruders, forged
from demo.issuer import Issuer
from demo.running import RunningSystem, until, with_replicas
from demo.visitors import QUOTE, STOCK, Visitors
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

EDGE = "billing -> credit_provider"
IN_FLIGHT_MIN = 5
# A few more than are asked for: some of them end between the look and the kill.
IN_FLIGHT_WANTED = 7
# Orders come one after the other while inventory is restarted, so that they come all the time.
PACE_S = 0.05
# So many quotes are asked for while a replica is lost.
QUOTES_MIN = 40
# By engine: the flags of `synchromesh dev` besides, and how many there are of each.
WAYS = {"": ((), 1), "all": ((), 1), "postgres": (("--engine", "nats", *with_replicas(2)), 2)}
# What was not seen the first time may be seen the next.
TIMES_MAX = 10
# Many times what the slowest machine needs: who waits that long waits in vain.
WITHIN_S = 300.0


async def play(
    folder: Path, orders: list[PlaceOrder], out: Console, pace: int = 1, engine: str = ""
) -> Account:
    """Run the demo in a folder made by `copy_shipped`, and return what was seen.

    Whatever happens, no process is left.

    Args:
        pace: how many times as fast orders come: from as many times as many customers at once, and
            one after the other in as many times less time.
        engine: "postgres" for PostgreSQL and NATS with two of each service and gateway, "all" for
            both with one of each, "" for SQLite files.

    Raises:
        SystemEnded: the system ended by itself.
        Unanswered: an order got no answer.
        NotInTime: the system did not start or stop.
    """
    flags, replicas = WAYS[engine]
    account = Account(len(orders), replicas)
    display = Display(out, account)
    async with HttpPool(network=RealRuntime().network) as pool:
        system = RunningSystem(folder, pool, "--split", *flags, engine=engine)
        acts = Acts(system, pool, account, display, orders, pace=pace)
        script = asyncio.create_task(acts.run())
        try:
            with display.shown():
                await asyncio.wait({script, system.ended}, return_when=asyncio.FIRST_COMPLETED)
                if system.ended.done():
                    system.ended.result()
                await script
        except ExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            script.cancel()
            await asyncio.gather(script, return_exceptions=True)
            await system.stop()
    account.took_s = display.took_s
    return account


class Acts:
    """What is done to the system, one act after the other."""

    # Made once there is a key.
    _door: Door
    _customers: Customers
    _visitors: Visitors
    _intruders: Intruders

    def __init__(
        self,
        system: RunningSystem,
        pool: HttpPool,
        account: Account,
        display: Display,
        orders: list[PlaceOrder],
        *,
        pace: int,
    ) -> None:
        self._system = system
        self._pool = pool
        self._account = account
        self._display = display
        self._orders = list(orders)
        self._share = len(orders) // 5
        self._pace = pace
        self._runtime = RealRuntime()

    async def run(self) -> None:
        """Run all of them; the system is stopped at the end."""
        await self._open()
        async with self._customers.buying(), self._visitors.looking_round():
            await self._calm()
            await self._provider_fails()
            await self._orders_is_killed()
            await self._inventory_is_restarted()
            await self._replicas_are_lost()
            await self._bug_is_repaired()
            await self._all_come_to_an_end()
        await self._collect()
        code = await self._system.stop()
        if code:
            self._account.notes.append(f"the system stopped with exit code {code}, expected 0")
        self._account.turns = evidence.turns_of(self._system)

    # -- the acts --------------------------------------------------------------------------------

    async def _open(self) -> None:
        say, system, account = self._display.say, self._system, self._account
        customers = {order.customer for order in self._orders}
        issuer = Issuer.opened(system.folder, lambda: self._runtime.wall_us() / 1e6)
        self._door = door = await Door.with_keys(system, self._pool, account, customers, issuer)
        say(
            f"of {len(customers)} customers {account.with_keys} get an API key to the gateway, and "
            f"{account.with_tokens} sign in at an issuer of their own; visitors have a key"
        )
        if issuer is None:
            say("tokens are left out: they need the extra jwt, pip install 'synchromesh[jwt]'")
        forgeries = await forged(system, issuer)
        say("synchromesh dev --split: each service starts as a process, and a credit provider")
        await system.start()
        account.processes = await system.processes()
        say(f"supervisor {system.pid} runs {_named(account.processes)}")
        rng = self._runtime.rng
        self._customers = Customers(door, rng, account, self._pace * AT_ONCE)
        self._visitors = Visitors(door, rng, self._orders[: self._share])
        self._intruders = Intruders(door, rng, forgeries)

    async def _calm(self) -> None:
        where = ", ".join(self._system.gateways)
        self._begin(CALM, f"orders come in at the gateway, {where}")
        self._hand_in(self._share)
        await self._intruders.try_all()
        await self._customers.all_answered()
        await self._visitors.see_all()

    async def _provider_fails(self) -> None:
        say, system = self._display.say, self._system
        self._begin(STALL, "the credit provider stalls: it takes the money and does not answer")
        await system.set_faults("stall")
        self._hand_in(self._share)
        if await until(lambda: self._has_turned("closed", "open"), WITHIN_S):
            say(f"the breaker {EDGE} is open: nobody waits for the provider any more")
        self._begin(ERRORS, "the credit provider answers again, with errors")
        await system.set_faults("errors")
        await until(lambda: self._has_turned("half_open", "open"), WITHIN_S)
        self._begin(HEALED, "the credit provider is well again")
        await system.set_faults("ok")
        if await until(lambda: self._has_turned("half_open", "closed"), WITHIN_S):
            say(f"the breaker {EDGE} is closed again")
        await self._customers.all_answered()
        await self._customers.settle()

    async def _orders_is_killed(self) -> None:
        self._begin(KILL, "the credit provider stalls again, so that sagas stay under way")
        await self._system.set_faults("stall")
        self._hand_in(self._share)
        account = self._account
        for times in range(TIMES_MAX):
            kill = await self._kill_orders(is_hung=times > 0)
            if kill is None:
                break
            account.kills.append(kill)
            if len(kill.in_flight) >= IN_FLIGHT_MIN and self._are_pages_in_part():
                break
        await self._system.set_faults("ok")
        await self._customers.all_answered()
        await self._customers.settle()
        # What fails from here on is not for want of orders.
        await until(self._are_breakers_closed, WITHIN_S)

    async def _kill_orders(self, *, is_hung: bool) -> Kill | None:
        """Kill all processes of orders while sagas are in flight; None where there were too few.

        One that `is_hung` first answers no page, for as long as it takes until one is answered in
        part. One of several that is killed would be seen by nobody: calls go to the other one. On a
        quick machine its successor may be up before any page gives up on the process
        that was killed, and none is the worse for it.
        """
        say, system = self._display.say, self._system
        pids = await system.processes_of("orders")
        if not await until(self._are_under_way, WITHIN_S):
            self._account.notes.append("there were never enough sagas in flight for a kill")
            return None
        if is_hung:
            _signal(pids, signal.SIGSTOP)
            await until(self._look_for_pages_in_part, WITHIN_S)
        _signal(pids, signal.SIGKILL)
        at_us = self._runtime.wall_us()
        say(f"kill -9: {_named(pids)}")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._visitors.look_at_all_machines())
            group.create_task(self._intruders.try_all())
            await until(lambda: not any(map(_is_there, pids.values())), WITHIN_S)
            # The provider stalls: whoever goes on with them cannot have ended them by now.
            in_flight = system.in_flight()
            say(f"it is dead, with {len(in_flight)} sagas in flight; the supervisor starts it anew")
            successors = await system.processes_of("orders")
            back_us = self._runtime.wall_us()
        # Of several, each begins with what was the others' once their leases have ended.
        await until(self._has_recovered, WITHIN_S)
        recovered = await system.recovered("orders")
        say(f"{_named(successors)} took over, and recovered {recovered} sagas")
        return Kill(pids, successors, at_us, back_us, in_flight, recovered)

    async def _has_recovered(self) -> bool:
        return await self._system.recovered("orders") > 0

    async def _are_under_way(self) -> bool:
        if not self._customers.unanswered:
            # All are decided, or only accepted: then more are needed, as long as there are any.
            self._hand_in(1)
        before = self._system.in_flight()
        if len(before) < IN_FLIGHT_WANTED:
            return False
        # What the kill meets is to have a history to show: its process takes with it what it has
        # not written yet, and writes all of it when somebody asks.
        shown = await evidence.shown(self._system, before)
        still = set(self._system.in_flight())
        return shown in still and len(still.intersection(before)) >= IN_FLIGHT_WANTED

    async def _look_for_pages_in_part(self) -> bool:
        await self._visitors.look_at_all_machines()
        return self._are_pages_in_part()

    def _are_pages_in_part(self) -> bool:
        return any(page.act == KILL for page in self._account.degraded_pages)

    async def _are_breakers_closed(self) -> bool:
        if await evidence.open_breakers(self._system) == []:
            return True
        if self._account.replicas > 1 and not self._customers.unanswered:
            # That of a replica which nobody calls any more stays as it is.
            if len(self._orders) <= self._share:
                return True
            self._hand_in(1)
        return False

    async def _inventory_is_restarted(self) -> None:
        self._begin(RESTART, "orders come one by one, and many ask what is in stock")
        # What stands in for a stock is not to be older than a minute.
        await self._visitors.see_all()
        async with self._visitors.watching_stock():
            for _ in range(TIMES_MAX):
                restart = await self._restart_inventory()
                self._account.restarts.append(restart)
                # Of several replicas one is always there: nobody is held, and all are answered.
                if restart.bridged or (self._account.replicas > 1 and restart.answered):
                    break
        await self._customers.all_answered()
        await self._customers.settle()
        # What fails from here on is not for want of inventory.
        await until(self._are_breakers_closed, WITHIN_S)

    async def _restart_inventory(self) -> Restart:
        say, system = self._display.say, self._system
        before = await evidence.holds_of(system, "inventory")
        pids = await system.processes_of("inventory")
        say(f"{_named(pids)} restarted")
        at_us = self._runtime.wall_us()
        restarting = asyncio.create_task(
            system.ask("POST", "/services/inventory/restart", {}, WITHIN_S)
        )
        try:
            while not restarting.done():
                # Some are left for the last act.
                self._hand_in(1 if len(self._orders) > self._share else 0)
                await asyncio.wait({restarting}, timeout=PACE_S / self._pace)
        finally:
            restarting.cancel()
        successors, back_us = (await restarting)["pids"], self._runtime.wall_us()
        answered = sum(
            each.is_fresh and each.route == STOCK and at_us <= each.at_us
            for each in self._door.asked
        )
        held = await evidence.holds_of(system, "inventory")
        held.subtract(before)
        told = f"{held['bridged']} calls waited, and {answered} times it told what is in stock"
        say(f"{_named(successors)} now; {told}")
        counts = held["bridged"], held["given_up"], answered
        return Restart(pids, successors, at_us, back_us, *counts)

    async def _replicas_are_lost(self) -> None:
        self._begin(REPLICAS, "visitors ask for quotes, of which there are three replicas")
        async with self._visitors.asking_quotes():
            await self._lose("quoting#1", signal.SIGKILL)
            await self._lose("quoting#2", signal.SIGSTOP)

    async def _lose(self, instance: str, number: signal.Signals) -> None:
        """Take one replica away while quotes are asked for, and wait until it is back."""
        system, say = self._system, self._display.say
        pid, before = (await system.processes())[instance], self._quotes()
        say(f"{number.name} to {pid}, which is {instance}")
        at_us = self._runtime.wall_us()
        os.kill(pid, number)
        await until(lambda: self._quotes()[0] - before[0] >= QUOTES_MIN, WITHIN_S)
        asked, failed = (after - was for after, was in zip(self._quotes(), before, strict=True))
        say(f"{asked - failed} of {asked} quotes had an answer without it")
        loss = ReplicaLoss(instance, pid, number.name, at_us, asked, failed)
        self._account.losses.append(loss)
        with suppress(ProcessLookupError):
            # One that hangs may have been found and ended.
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not _is_there(pid), WITHIN_S)
        await system.processes()

    async def _bug_is_repaired(self) -> None:
        """Let a bug strand sagas and park messages, mend the code, and repair both by hand."""
        system, say = self._system, self._display.say
        self._begin(BUG, "releases with bugs: of orders in its saga, of production in a handler")
        release.write_bugs(system.folder)
        await self._restart_parts()
        if not await until(self._is_stranded, WITHIN_S):
            self._account.notes.append("the bugs left nothing to be repaired")
        findings = (await system.status())["findings"]
        for finding in findings:
            say(f"synchromesh status: {finding}")
        release.write_mends(system.folder)
        await self._restart_parts()
        say("the code is mended, and both run anew; what needs a person is repaired")
        self._account.repair = await self._repair(findings)
        await self._customers.all_answered()
        await self._customers.settle()
        await until(self._are_breakers_closed, WITHIN_S)

    async def _restart_parts(self) -> None:
        for part in release.PARTS:
            await self._system.run("restart", part)

    async def _is_stranded(self) -> bool:
        """Return whether a saga is stuck and a message parked; where not, hand in an order more."""
        found = [await self._stuck(), await self._parked()]
        if all(found):
            return True
        if not self._customers.unanswered and len(self._orders) > self._share // 2:
            self._hand_in(1)
        return False

    async def _stuck(self) -> list[str]:
        runs = await self._system.run("saga", "list", "--status", "stuck", "--limit", "1000")
        return [run["id"] for run in runs]

    async def _parked(self) -> list[str]:
        found = await self._system.run("messages", "list", "--state", "parked")
        return [each["ref"] for each in found]

    async def _repair(self, findings: list[str]) -> RepairByHand:
        """Retry what is stuck and replay what is parked, until nothing is."""
        why = ("--why", "the code is mended")
        stuck, parked = dict[str, bool](), dict[str, bool]()

        async def is_repaired() -> bool:
            runs, messages = await self._stuck(), await self._parked()
            for saga_id in runs:
                story = await self._system.run("saga", "retry", saga_id, *why)
                stuck[saga_id] = story["status"] != "stuck"
            for ref in messages:
                (told,) = await self._system.run("messages", "replay", ref, *why)
                parked[ref] = told["outcome"] == "handled"
            return not runs and not messages

        await until(is_repaired, WITHIN_S)
        return RepairByHand(
            stuck=tuple(stuck),
            parked=tuple(parked),
            retried=tuple(each for each, is_done in stuck.items() if is_done),
            replayed=tuple(each for each, is_done in parked.items() if is_done),
            findings=tuple(findings),
        )

    def _quotes(self) -> tuple[int, int]:
        """Return how many quotes have been asked for and not turned away, and how many failed."""
        account = self._account
        asked = account.requests.get(QUOTE, 0) - account.turned_away.get(QUOTE, 0)
        return asked, sum(each.route == QUOTE for each in account.failures)

    async def _all_come_to_an_end(self) -> None:
        self._begin(REST, "the rest of the orders come in")
        self._hand_in(len(self._orders))
        await self._customers.all_answered()
        await self._customers.settle()
        self._display.say("every order has its answer; the last sagas and messages come to an end")
        if not await until(self._system.is_settled, WITHIN_S):
            self._account.notes.append(
                f"sagas or messages were still under way {WITHIN_S:g} s after the last order"
            )

    async def _collect(self) -> None:
        """Keep what only a running system can show: traces, and the story of an undone saga."""
        system, account = self._system, self._account
        account.end(self._runtime.wall_us())
        account.ended = {name: times for name, times in (await system.restarts()).items() if times}
        await evidence.tell_of_undone(system, account)
        account.slowest = await evidence.slowest(system, self._door.asked)
        if account.kills:
            await evidence.tell_of_crossing(system, account)
        if account.restarts:
            first, last = account.restarts[0], account.restarts[-1]
            asked = [
                each
                for each in self._door.asked
                if each.is_fresh
                and each.route in INVENTORY_ROUTES
                and first.at_us <= each.at_us <= last.back_us
            ]
            account.longest_hold = await evidence.longest_hold(system, "inventory", asked)

    # -- what they share -------------------------------------------------------------------------

    def _begin(self, act: str, text: str) -> None:
        self._account.begin(act, self._runtime.wall_us())
        self._display.say(text)

    def _hand_in(self, count: int) -> None:
        self._customers.hand_in(self._orders[:count])
        del self._orders[:count]

    def _has_turned(self, before: str, after: str) -> bool:
        """Return whether the breaker has turned so in the act that is on."""
        account = self._account
        turned = (EDGE, before, after, account.act)
        return any(
            (turn.edge, turn.before, turn.after, account.act_of(turn)) == turned
            for turn in evidence.turns_of(self._system)
        )


def _named(processes: dict[str, int]) -> str:
    return ", ".join(f"{name} {pid}" for name, pid in sorted(processes.items()))


def _signal(processes: dict[str, int], number: signal.Signals) -> None:
    for pid in processes.values():
        os.kill(pid, number)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """Return one error of a group, however deep groups are nested."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
