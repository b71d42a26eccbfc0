"""servo-works as processes, under load, while what may happen to a machine happens to it.

    make soak MINUTES=5

Processes are killed, one or all at once, and stopped for seconds; disks answer fsync with errors,
or are full; processes may write no byte; services are restarted, and replaced by another release,
in any order. What happens is drawn from the seed, and overlaps. In the end nobody may have to do
anything: all orders are answered, nothing is under way, and the audit finds nothing lost, nothing
half done and nothing twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import synchromesh

# The modules of the example are named from its own folder, as its system names them.
sys.path.append(str(Path(synchromesh.__file__).parent / "examples/servo_works"))

from audit import PROVIDER_DB, Report, audit
from contracts.orders import PlaceOrder
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import RunningSystem, copy_shipped, until

from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

SERVICES = ("orders", "inventory", "billing", "production")
CUSTOMERS = ("acme-automation", "counter", "tanaka-precision", "brassworks", "lumen-optics")
WAITING = 24  # how many orders wait for a customer who is free
SETTLES_WITHIN_S = 120.0
SHIM = Path(__file__).with_name("soak_disk.c")
# What a process says that fails a system call reads of this file, which of them and on which file.
FAULTS_VARIABLE = "SOAK_FAULTS"

BEFORE = '''
@orders.saga(
    PlaceOrder, name="place_order", version=1, deadline="10m", key=lambda request: request.order_id
)
async def {name}(s: Saga, request: PlaceOrder) -> Placed:
    """Place an order step by step, after a look at the stock: the release before."""
    await s.call(Inventory.stock(request.sku))
    order = await s.write(create_order, request, undo=reject_order)
    hold = await s.call(
        Inventory.reserve(Reserve(order.order_id, order.sku, order.qty)), undo=Inventory.release
    )
    quote = await s.call(Production.quote(order.sku))
    await s.call(Billing.charge(Charge(order.order_id, order.customer, order.total)), pivot=True)
    slot = await s.call(Production.book(Book(order.order_id, quote)))
    await s.write(confirm_order, order)
    return Placed(order.order_id, hold.id, slot.week, order.total)

'''


class Releases:
    """Writes one of two releases of orders and inventory into a folder, as a deploy does.

    The older orders places an order in other steps; the older inventory does not take
    `orders.order_rejected`. The newer orders keeps the older saga for the runs of it.
    """

    def __init__(self, folder: Path) -> None:
        self._saga = folder / "services/orders/sagas.py"
        self._stock = folder / "services/inventory/service.py"
        shipped, begin = (
            self._saga.read_text(),
            '@orders.saga(PlaceOrder, version=1, deadline="10m"',
        )
        head, saga = shipped.split(begin)
        saga, handler = saga.split("@orders.handles(Orders.place)")
        older = BEFORE.format(name="place_order")
        kept = BEFORE.format(name="place_as_before")
        tail = f"\n@orders.handles(Orders.place){handler}"
        newer = begin.replace("version=1", "version=2")
        stock, taken = self._stock.read_text(), "@inventory.on(Orders.order_rejected)\n"
        if taken not in stock:
            raise LookupError(f"{self._stock} does not take orders.order_rejected any more")
        self._texts = {
            ("orders", "old"): (self._saga, f"{head}{older}{tail}"),
            ("orders", "new"): (self._saga, f"{head}{kept}\n{newer}{saga.rstrip()}\n\n{tail}"),
            ("inventory", "old"): (self._stock, stock.replace(taken, "")),
            ("inventory", "new"): (self._stock, stock),
        }
        self.at = {"orders": "", "inventory": ""}
        for service in self.at:
            self.write(service, "old")

    def write(self, service: str, release: str) -> None:
        """Write a release of a service."""
        path, text = self._texts[service, release]
        path.write_text(text)
        self.at[service] = release


class Disk:
    """Fails system calls on the databases of a service, in processes that a library is loaded into.

    Attributes:
        is_there: False where no C compiler is, so that nothing can be failed so.
        environment: of the processes.
    """

    def __init__(self, folder: Path) -> None:
        self._faults = folder / "disk-faults"
        self.is_there = False
        self.environment: dict[str, str] = {}
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not sys.platform.startswith("linux"):
            return
        library = folder / "soak_disk.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"], check=True
        )
        self.environment = {"LD_PRELOAD": str(library), FAULTS_VARIABLE: str(self._faults)}
        self.is_there = True

    def fail(self, kind: str, service: str) -> None:
        """Fail "s", all that syncs, or "w", all that writes, on a service's database."""
        new = self._faults.with_suffix(".new")
        new.write_text(f"{kind}/{service}.db")
        new.replace(self._faults)

    def mend(self) -> None:
        """Fail nothing any more."""
        self._faults.unlink(missing_ok=True)


class Nemesis:
    """Does to the running system what its rng draws, until it is told to rest."""

    def __init__(self, system: RunningSystem, folder: Path, rng: random.Random) -> None:
        self.count: Counter[str] = Counter()
        self._system, self._rng = system, rng
        self._releases, self.disk = Releases(folder), Disk(folder)
        self._stopped: set[int] = set()
        self._limited: set[int] = set()

    async def storm(self, until_s: float) -> None:
        """Do one thing after the other, a new one while others last."""
        deeds: dict[Callable[[], Awaitable[None]], float] = {
            self._kill_one: 0.25,
            self._kill_all: 0.05,
            self._stop_one: 0.15,
            self._limit_one: 0.10,
            self._release: 0.20,
            self._restart: 0.10,
            **(dict.fromkeys((self._fail_fsync, self._fill), 0.12) if self.disk.is_there else {}),
        }
        clock = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as group:
            while clock() < until_s:
                (deed,) = self._rng.choices(list(deeds), list(deeds.values()))
                if deed == self._kill_all:
                    await deed()
                else:
                    group.create_task(self._do(deed))
                await asyncio.sleep(self._rng.uniform(0.3, 3.0))

    async def rest(self) -> None:
        """End whatever lasts, and have the newer release of all; then nothing more is done."""
        self.disk.mend()
        for pid in [*self._stopped]:
            self._continue(pid)
        for pid in [*self._limited]:
            self._let_write(pid)
        # The publisher may be first: whom its process does not know to take an event, it hears of.
        order = self._rng.sample(sorted(self._releases.at), len(self._releases.at))
        self.count[f"the newer releases came in this order: {', '.join(order)}"] += 1
        for service in order:
            self._releases.write(service, "new")

            async def is_replaced(service: str = service) -> bool:
                return await self._ask_to_restart(service)

            if not await until(is_replaced, SETTLES_WITHIN_S):
                raise TimeoutError(f"{service} could not be replaced")

    async def _do(self, deed: Callable[[], Awaitable[None]]) -> None:
        # What is in the way of a fault, such as another one, is part of the weather.
        with suppress(ConfigError, SynchromeshError, ProcessLookupError, AssertionError):
            await deed()

    async def _victim(self) -> tuple[str, int]:
        status = await self._system.ask("GET", "/status", within_s=2.0)
        parts = {name: each.get("pid") for name, each in status["services"].items()}
        name = self._rng.choice(sorted(name for name in parts if name in SERVICES and parts[name]))
        return name, int(parts[name])

    async def _kill_one(self) -> None:
        _, pid = await self._victim()
        os.kill(pid, signal.SIGKILL)
        self.count["a process was killed"] += 1

    async def _kill_all(self) -> None:
        await self._system.kill()
        self.disk.mend()
        self.count["all were killed at once"] += 1
        await self._system.start()

    async def _stop_one(self) -> None:
        _, pid = await self._victim()
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        self.count["a process was stopped for a while"] += 1
        await asyncio.sleep(self._rng.uniform(0.5, 6.0))
        self._continue(pid)

    def _continue(self, pid: int) -> None:
        self._stopped.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def _limit_one(self) -> None:
        _, pid = await self._victim()
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
        self._limited.add(pid)
        self.count["a process might write no byte"] += 1
        await asyncio.sleep(self._rng.uniform(0.3, 2.0))
        self._let_write(pid)

    def _let_write(self, pid: int) -> None:
        self._limited.discard(pid)
        with suppress(ProcessLookupError):
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))

    async def _fail_fsync(self) -> None:
        await self._spoil("s", "fsync failed")

    async def _fill(self) -> None:
        await self._spoil("w", "a disk was full")

    async def _spoil(self, kind: str, what: str) -> None:
        self.disk.fail(kind, self._rng.choice(SERVICES))
        self.count[what] += 1
        await asyncio.sleep(self._rng.uniform(0.3, 2.0))
        self.disk.mend()

    async def _release(self) -> None:
        service = self._rng.choice(sorted(self._releases.at))
        release = "new" if self._releases.at[service] == "old" else "old"
        self._releases.write(service, release)
        if await self._ask_to_restart(service):
            self.count[f"{service} was replaced by its {release} release"] += 1

    async def _restart(self) -> None:
        if await self._ask_to_restart(self._rng.choice(SERVICES)):
            self.count["a service was restarted"] += 1

    async def _ask_to_restart(self, service: str) -> bool:
        try:
            answer = await self._system.ask("POST", f"/services/{service}/restart", {}, 60.0)
        except ConfigError:
            return False
        return not answer["is_refused"]


def stock_up(folder: Path) -> list[str]:
    """Fill the shelves and the bench, so that orders are rejected for want of credit alone."""
    path = folder / "data" / "catalogue.json"
    drives = json.loads(path.read_text())
    for drive in drives:
        drive["stock"] *= 100
        drive["slots"] = [100 * capacity for capacity in drive["slots"]]
    path.write_text(json.dumps(drives))
    return [drive["sku"] for drive in drives]


async def run(folder: Path, seconds: float, seed: int) -> tuple[Report, Account, list[str]]:
    """Run it, and return the audit, what customers were told, and what a person would have to do.

    Raises:
        SystemEnded, NotInTime, Unanswered, TimeoutError: the system did not come through.
    """
    copy_shipped(folder)
    skus, buyers = cycle(stock_up(folder)), cycle(CUSTOMERS)
    account, rng, left = Account(orders=0), random.Random(seed), [""]
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(HttpPool(network=RealRuntime().network))
        system = RunningSystem(folder, pool, "--split")
        nemesis = Nemesis(system, folder, rng)
        os.environ.update(nemesis.disk.environment)
        if not nemesis.disk.is_there:
            sys.stdout.write("no C compiler is here: fsync never fails, and no disk is full\n")
        door = await Door.with_keys(system, pool, account, CUSTOMERS)
        customers = Customers(door, rng, account)
        stack.push_async_callback(system.stop)
        await system.start()
        async with customers.buying(), asyncio.TaskGroup() as group:
            is_over = asyncio.Event()
            group.create_task(hand_in(customers, account, skus, buyers, is_over))
            await nemesis.storm(asyncio.get_running_loop().time() + seconds)
            is_over.set()
            await nemesis.rest()
            await customers.all_answered()
        if not await until(system.is_settled, SETTLES_WITHIN_S):
            left = [f"it did not settle: {(await system.status())['findings']}"]
        await customers.settle()
        status = await system.status()
        left += [*status["findings"], *undelivered(status)]
        for what, times in sorted(nemesis.count.items()):
            sys.stdout.write(f"{times:6} times {what}\n")
        code = await system.stop()
        left += [f"it ended with exit code {code}"] if code else []
    report = audit(system.data, system.data / PROVIDER_DB, account.told)
    return report, account, [each for each in left if each]


def undelivered(status: dict[str, Any]) -> list[str]:
    """Return what services keep for others that has not reached them, a line for each."""
    return [
        f"{name} keeps for others what they have not got: {kept}"
        for name, each in status["services"].items()
        if (
            kept := {
                "behind": sum(each["behind"].values()),
                "set aside": each["parked"],
                "of who is gone": [gone["subscriber"] for gone in each["gone"]],
            }
        )
        and any(kept.values())
    ]


async def hand_in(
    customers: Customers, account: Account, skus: Any, buyers: Any, is_over: asyncio.Event
) -> None:
    """Keep customers busy: as soon as few orders wait, more are there."""
    while not is_over.is_set():
        while customers.unanswered < WAITING:
            account.orders += 1
            number = account.orders
            order = PlaceOrder(f"S-{number}", next(skus), 1 + number % 3, next(buyers))
            customers.hand_in([order])
        await asyncio.sleep(0.02)


def main() -> int:
    """Run it, print what came of it, and return 1 where anything is amiss."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the storm lasts")
    parser.add_argument("--seed", type=int, default=None, help="what happens; any without")
    parser.add_argument("--folder", type=Path, help="where it runs, and stays; else it is removed")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        report, account, left = asyncio.run(run(folder, options.minutes * 60.0, seed))
        took_s = time.monotonic() - began_s
        told = Counter(account.told.values())
        sys.stdout.write(
            f"{account.orders} orders in {took_s:.0f} s (seed {seed}): {dict(told)}; "
            f"sagas {dict(report.sagas)}\n"
        )
        amiss = [*report.findings, *(f"needs a person: {each}" for each in left)]
        if len(account.told) != account.orders:
            amiss.append(f"{account.orders - len(account.told)} orders have no answer")
        sys.stdout.writelines(f"{each}\n" for each in amiss or ["nothing lost, half done or twice"])
        return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
