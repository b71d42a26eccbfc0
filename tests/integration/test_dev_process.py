"""servo-works by `synchromesh dev` as a real process: stopped, killed, and kept from starting."""

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from contracts.orders import PlaceOrder
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import RunningSystem, SystemEnded, copy_shipped, until

from processes import children_of, ends, is_alive
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pool() -> AsyncIterator[HttpPool]:
    async with HttpPool(network=RealRuntime().network) as pool:
        yield pool


@pytest.fixture
async def system(tmp_path: Path, pool: HttpPool) -> AsyncIterator[RunningSystem]:
    """A copy of servo-works that is not started yet; it is stopped at the end."""
    copy_shipped(tmp_path)
    system = RunningSystem(tmp_path, pool)
    yield system
    await system.stop()


def synchromesh(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a verb of the command line, and return its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "synchromesh.cli", "--folder", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_stops_cleanly(system: RunningSystem, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with 0: no child is left, run.json is gone, the log is quiet."""
    await system.start()
    assert system.pid is not None
    below = [system.pid, *children_of(system.pid)]
    assert len(below) == 2
    run_json = system.folder / ".synchromesh" / "run.json"
    assert run_json.stat().st_mode & 0o777 == 0o600
    assert await system.stop(number) == 0
    assert not any(map(is_alive, below))
    assert not run_json.exists()
    assert "ERROR" not in system.log.read_text()
    assert "Traceback" not in (system.folder / "dev.log").read_text()
    said = (
        f"synchromesh: no system runs in {system.folder}; start one there with: synchromesh dev, "
        "or go to the folder of the one that runs\n"
    )
    assert synchromesh(system.folder, "saga", "list") == (2, said)


async def test_stopped_with_sagas_in_flight_it_continues_them(
    system: RunningSystem, pool: HttpPool
) -> None:
    """A clean stop leaves unfinished sagas to the next start, which ends them."""
    account = Account(orders=6)
    door = await Door.with_key(system, pool, account)
    customers = Customers(door, RealRuntime().rng, account)
    await system.start()
    await system.set_faults("stall")
    async with customers.buying():
        customers.hand_in(PlaceOrder(f"A-{n}", "SX90", 1, "counter") for n in range(6))
        await customers.all_answered()
    assert account.told == {f"A-{n}": "accepted" for n in range(6)}
    assert await system.stop() == 0
    assert len(system.in_flight()) == 6
    await system.start()
    assert await system.recovered() == 6
    assert await until(system.is_settled, 30.0)
    services = (await system.ask("GET", "/status"))["services"]
    assert {name: each["behind"] for name, each in services.items()} == {
        "orders": {"relay/configurator": 0, "relay/inventory": 0},
        "inventory": {"projection/stock_level": 0, "relay/configurator": 0},
        "billing": {"relay/production": 0},
        "production": {},
        "configurator": {},
        "fleet": {"projection/condition": 0},
    }
    await customers.settle()
    assert account.told == {f"A-{n}": "placed" for n in range(6)}


async def test_after_a_kill_the_command_line_says_so(system: RunningSystem) -> None:
    """SIGKILL takes the provider along; what run.json still says is found out and told."""
    await system.start()
    assert system.pid is not None
    pid, below = system.pid, children_of(system.pid)
    await system.kill()
    assert all(map(ends, below))
    code, said = synchromesh(system.folder, "saga", "list")
    assert code == 2
    assert said.startswith("synchromesh: the system does not answer at http://127.0.0.1:")
    assert said.endswith(f"process {pid} may have died: start it again with: synchromesh dev\n")
    await system.start()
    assert synchromesh(system.folder, "saga", "list")[0] == 0


async def test_a_taken_port_is_told(system: RunningSystem) -> None:
    """It ends with 2, names the port, leaves no child and can be started once that is mended."""
    config = system.folder / "synchromesh.toml"
    text = config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = 'app = "services.production:production"\n'
        config.write_text(text.replace(place, f"{place}port = {port}\n"))
        with pytest.raises(SystemEnded) as ended:
            await system.start()
    assert ended.value.is_mistake
    assert f"cannot listen on 127.0.0.1:{port}" in str(ended.value)
    assert not (system.folder / ".synchromesh" / "run.json").exists()
    await system.start()
    assert system.url("production").endswith(f":{port}")
