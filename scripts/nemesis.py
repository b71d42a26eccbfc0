"""servo-works as replicas that nobody supervises, under load, while what carries them is killed.

    make nemesis S=60

Two hosts' worth of processes, each by `synchromesh run`: two replicas of each service and two
gateways, on NATS, and on PostgreSQL with a standby. First all are replaced by another release, one
after the other, and no request may fail. Then all of them are killed, stopped for seconds, and told
to end, in any order, and so are both servers; the standby is promoted, commits are cut on their
way, and streams are lost (`scripts.storm` has all of it). What ends is started again, as systemd
does it. What happens is drawn from the seed, and overlaps. In the end nobody may have to do
anything: all orders are answered, nothing is under way, and the audit by SQL finds nothing that was
acknowledged and lost, nothing half done and nothing twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import synchromesh

# The modules of the example are named from its own folder, as its system names them.
sys.path.append(str(Path(synchromesh.__file__).parent / "examples/servo_works"))

from audit import PROVIDER_DB, Report, audit
from demo import door as asking
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import COMMAND, RunningSystem, copy_shipped

from scripts.commit_cuts import CommitCuts
from scripts.postgres_pair import PostgresPair
from scripts.soak import CUSTOMERS, Releases, hand_in, stock_up, undelivered
from scripts.storm import Storm
from synchromesh.errors import SynchromeshError
from synchromesh.gateway import make_key
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.keys_on_nats import SharedKeysFile
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.spread import AllReplicas, all_replicas
from synchromesh.system.control.status import Status
from synchromesh.system.supervise.children import ChildEnded, die_with_parent
from synchromesh.system.supervise.nats_engine import NatsEngine

SERVICES = (
    "orders", "inventory", "billing", "production", "configurator", "fleet", "quoting",
)  # fmt: skip
HOSTS = ("web1", "web2")
KEY_VARIABLE = "NEMESIS_KEY"
SETTLES_WITHIN_S = 180.0
AGAIN_S = 0.5
# All are asked each time.
LOOK_EVERY_S = 1.0
# What balances requests hears so long before a gateway is told to end, as by a preStop hook.
TAKEN_OUT_S = 2.0
# How many customers order while all is replaced: the machine has the starts to do, too.
AT_ONCE_MEANWHILE = 3
ENDS_WITHIN_S = 30.0
EXTERNAL = """command = ["{python}", "-m", "credit_provider"]
env = { CREDIT_DB = "{data}/credit_provider.db" }
"""


class Unit:
    """One replica, started again whenever it ends, as a unit of systemd with `Restart=always`.

    Attributes:
        starts: how often it was started.
    """

    def __init__(self, folder: Path, name: str, host: str, **environment: str) -> None:
        self.name = f"{name}@{host}"
        self._run_dir = folder / f".{host}-{name}"
        self._command = [*COMMAND, "--folder", str(folder), "run", name]
        self._command += ["--run-dir", str(self._run_dir)]
        self._environment = {**os.environ, "SYNCHROMESH_SYSTEM__NODE": host, **environment}
        self._log = folder / f"{host}-{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._is_over = False
        self.starts = 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process, where one runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def run(self) -> None:
        """Keep it running until `stop`."""
        while not self._is_over:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, env=self._environment, stdin=asyncio.subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent(),
                )  # fmt: skip
            self.starts += 1
            await self._process.wait()
            if not self._is_over:
                await asyncio.sleep(AGAIN_S)

    async def stop(self) -> int:
        """End it in order, and return its exit code; 0 where it never ran."""
        self._is_over = True
        if self._process is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDS_WITHIN_S):
                return await self._process.wait()
        self.signal(signal.SIGKILL)
        return await self._process.wait()


class SpreadWorks:
    """Replicas of servo-works, and the servers that they are on.

    Attributes:
        units: the replicas and the gateways.
        postgres, nats: the servers.
        ways: to the two of PostgreSQL; on these, commits are cut.
    """

    def __init__(self, folder: Path, provider: str, rng: random.Random) -> None:
        self.folder = folder
        os.environ[KEY_VARIABLE] = secrets.token_hex(32)
        rundir = RunDir(folder)
        rundir.create()
        self.postgres, self.nats = PostgresPair(rundir.path / "pair"), NatsEngine(rundir.path)
        self.nats_folder = rundir.path / "nats"
        self.ways = [CommitCuts(each.socket, rng) for each in self.postgres.nodes]
        self._provider = provider
        self._gateways = {host: f"http://127.0.0.1:{_free_port()}" for host in HOSTS}
        self._taken_out = ""
        self._next = cycle(HOSTS)
        self.units = [Unit(folder, name, host) for name in SERVICES for host in HOSTS]
        self.units += [
            Unit(folder, "gateway", host, SYNCHROMESH_GATEWAY__PORT=url.rpartition(":")[2])
            for host, url in self._gateways.items()
        ]
        self.releases = Releases(folder)

    async def start(self) -> None:
        """Start the servers, and write the configuration that names them."""
        await self.postgres.start()
        await self.nats.start()
        for each in self.ways:
            await each.start()
        toml = self.folder / "synchromesh.toml"
        text = toml.read_text().replace(EXTERNAL, f'url = "{self._provider}"\n')
        named = f'name = "servo-works"\nkey = "env:{KEY_VARIABLE}"\n'
        text = text.replace('name = "servo-works"\n', named)
        # Without a password: to the socket that is behind it.
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.ways)
        (self.folder / "postgres.url").write_text(f"postgresql://postgres@{hosts}/postgres")
        text += f'\n[engine]\npostgres = "file:postgres.url"\nnats = "{self.nats.url}"\n'
        toml.write_text(text)

    @property
    def gateway(self) -> str:
        """One of the ways in, in turn, but for one that is taken out."""
        host = next(self._next)
        return self._gateways[next(self._next) if host == self._taken_out else host]

    async def make_keys(self, principals: Iterable[str], *scopes: str) -> dict[str, str]:
        """Make an API key for each principal, good at all gateways."""
        runtime, config = RealRuntime(), load_config(self.folder, environment=os.environ)
        keys = {name: make_key(name, scopes, rng=runtime.secret_rng) for name in principals}
        file = SharedKeysFile(config, RunDir(self.folder), runtime.wall_us)
        await asyncio.to_thread(file.add, *(made for _, made in keys.values()))
        return {name: text for name, (text, _) in keys.items()}

    async def keep_nats(self) -> None:
        """Keep it running."""
        while True:
            with suppress(ChildEnded, SynchromeshError):
                await self.nats.run()
            await asyncio.sleep(AGAIN_S)

    async def deploy(self) -> None:
        """Replace all by the newer release, one after the other, as a Deployment does."""
        for service in self.releases.at:
            self.releases.write(service, "new")
        for unit in self.units:
            name, _, host = unit.name.partition("@")
            with self._out(host if name == "gateway" else ""):
                if name == "gateway":
                    await asyncio.sleep(TAKEN_OUT_S)
                before = unit.starts
                unit.signal(signal.SIGTERM)

                async def is_replaced(unit: Unit = unit, before: int = before) -> bool:
                    return unit.starts > before and await self.is_whole()

                if not await until(is_replaced):
                    raise TimeoutError(f"{unit.name} was not replaced: {await self.status()}")

    @contextmanager
    def _out(self, host: str) -> Iterator[None]:
        self._taken_out = host
        yield
        self._taken_out = ""

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[AllReplicas]:
        """Ask all replicas, as an operator does."""
        config = load_config(self.folder, environment=os.environ)
        async with all_replicas(config, self.folder, "nemesis") as every:
            yield every

    async def status(self) -> Status | None:
        """Return what all of them say; None where they cannot be asked."""
        try:
            async with self.asked() as every:
                status = await every.answer("GET", "/status", b"")
        except SynchromeshError:
            return None
        assert isinstance(status, Status)
        return status

    async def is_whole(self) -> bool:
        """Return whether every replica is there and well."""
        status = await self.status()
        if status is None or status.findings:
            return False
        return len(status.services) + len(status.gateways) == len(self.units)

    async def is_settled(self) -> bool:
        """Return whether they are, and nothing is under way."""
        status = await self.status()
        if status is None or status.findings:
            return False
        return not any(
            each.sagas.get("running") or each.sagas.get("compensating") or any(each.behind.values())
            for each in status.services.values()
        )


@asynccontextmanager
async def provider(folder: Path) -> AsyncIterator[str]:
    """Run the credit provider, which is somebody else's and stays up; return its URL."""
    data = folder / ".synchromesh" / "data"
    data.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "credit_provider", cwd=folder, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "CREDIT_DB": str(data / PROVIDER_DB)}, preexec_fn=die_with_parent(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = json.loads(await process.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def open_shop(works: SpreadWorks, pool: HttpPool) -> None:
    """Run the system once as a whole: databases are made, and the shop is opened."""
    system = RunningSystem(works.folder, pool)
    try:
        await system.start()
        await system.status()
    finally:
        await system.stop()


async def run(folder: Path, seconds: float, seed: int) -> tuple[Report, Account, list[str]]:
    """Run it, and return the audit, what customers were told, and what a person would have to do.

    Raises:
        SystemEnded, NotInTime, Unanswered, TimeoutError: the system did not come through.
    """
    copy_shipped(folder)
    skus, buyers = cycle(stock_up(folder)), cycle(CUSTOMERS)
    account, rng, left = Account(orders=0), random.Random(seed), list[str]()

    def handing_in(to: Customers, is_over: asyncio.Event) -> Any:
        return hand_in(to, account, skus, buyers, is_over)

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(HttpPool(network=RealRuntime().network))
        works = SpreadWorks(folder, await stack.enter_async_context(provider(folder)), rng)
        keeping: list[asyncio.Task[None]] = []
        stack.push_async_callback(_end, keeping, works)
        await works.start()
        keeping.append(asyncio.create_task(works.keep_nats()))
        await open_shop(works, pool)
        keeping += [asyncio.create_task(each.run()) for each in works.units]
        _say(f"{len(works.units)} processes start")
        if not await until(works.is_whole):
            raise TimeoutError(f"they did not come up: {await works.status()}")
        # As long as a storm lasts nobody is promised an answer; after it, everybody.
        asking.GIVE_UP_AFTER_S = seconds + SETTLES_WITHIN_S
        door = await Door.with_keys(cast("Any", works), pool, account, CUSTOMERS)

        async def is_let_in() -> bool:
            # At either gateway: it is asked in turn.
            told = [await door.ask("GET /orders/{order_id}", order_id="S-0") for _ in HOSTS]
            return all(each.status not in (0, 401) for each in told)

        if not await until(is_let_in):
            raise TimeoutError("the keys of the customers are not good")
        _say("all are replaced by the newer release, one after the other")
        customers = Customers(door, rng, account, AT_ONCE_MEANWHILE)
        before = len(account.failures)
        async with customers.buying(), asyncio.TaskGroup() as group:
            is_over = asyncio.Event()
            group.create_task(handing_in(customers, is_over))
            try:
                await works.deploy()
            finally:
                is_over.set()
            await customers.all_answered()
        await customers.settle()
        failed = Counter(f"{each.route}: {each.reason}" for each in account.failures[before:])
        _say(f"{account.orders} orders meanwhile, of whose requests {failed.total()} failed")
        for why, times in failed.items():
            _say(f"{times:6} times {why}")
        left += [
            f"{times} requests failed while all were replaced: {why}"
            for why, times in failed.items()
        ]
        _say("the storm begins")
        customers, storm = Customers(door, rng, account), Storm(works, rng)
        async with customers.buying(), asyncio.TaskGroup() as group:
            is_over = asyncio.Event()
            group.create_task(handing_in(customers, is_over))
            await storm.rage(asyncio.get_running_loop().time() + seconds)
            is_over.set()
            await customers.all_answered()
        _say("all orders have an answer")
        if not await until(works.is_settled):
            status = await works.status()
            left.append(f"it did not settle: {status.findings if status else 'nobody answers'}")
        await customers.settle()
        status = await works.status()
        if status is not None:
            left += [*status.findings, *undelivered(_plain(status))]
        for what, times in sorted(storm.count.items()):
            _say(f"{times:6} times {what}")
        codes = await asyncio.gather(*(each.stop() for each in works.units))
        ended = zip(works.units, codes, strict=True)
        left += [f"{unit.name} ended with exit code {code}" for unit, code in ended if code]
        report = audit(works.postgres.primary.url, RunDir(folder).data / PROVIDER_DB, account.told)
    return report, account, [each for each in left if each]


async def until(holds: Callable[[], Awaitable[bool]]) -> bool:
    """Look again and again; return whether it holds in time."""
    until_s = asyncio.get_running_loop().time() + SETTLES_WITHIN_S
    while not await holds():
        if asyncio.get_running_loop().time() > until_s:
            return False
        await asyncio.sleep(LOOK_EVERY_S)
    return True


async def _end(keeping: list[asyncio.Task[None]], works: SpreadWorks) -> None:
    await asyncio.gather(*(each.stop() for each in works.units))
    for task in keeping:
        task.cancel()
    await asyncio.gather(*keeping, return_exceptions=True)
    for each in works.ways:
        await each.stop()
    await works.nats.stop()
    await works.postgres.stop()


def _plain(status: Status) -> dict[str, Any]:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(status)
    return told


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run it, print what came of it, and return 1 where anything is amiss."""
    parser = argparse.ArgumentParser(prog="python -m scripts.nemesis", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the storm lasts")
    parser.add_argument("--seed", type=int, default=None, help="what happens; any without")
    parser.add_argument("--folder", type=Path, help="where it runs, and stays; else it is removed")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        report, account, left = asyncio.run(run(folder, options.seconds, seed))
        took_s = time.monotonic() - began_s
        told = Counter(account.told.values())
        _say(
            f"{account.orders} orders in {took_s:.0f} s (seed {seed}): {dict(told)}; "
            f"sagas {dict(report.sagas)}"
        )
        amiss = [*report.findings, *(f"needs a person: {each}" for each in left)]
        if len(account.told) != account.orders:
            amiss.append(f"{account.orders - len(account.told)} orders have no answer")
        for each in amiss or ["nothing lost, half done or twice"]:
            _say(each)
        return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
