"""The real runtime: ids, workers, the disk and its locks, the network."""

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from synchromesh.runtime import RealRuntime, uuid7


def test_ids_are_version_7_and_ascend_with_the_clock() -> None:
    """A UUIDv7 sorts by the time of its making, to the microsecond."""
    rng = random.Random(1)
    ids = [uuid7(1_700_000_000_000_000 + step, rng) for step in range(0, 5000, 7)]
    assert ids == sorted(ids)
    assert {(len(i), i[14], i[19] in "89ab") for i in ids} == {(36, "7", True)}


FORKS = """
import os, sys
from synchromesh.runtime import RealRuntime
runtime = RealRuntime()
runtime.new_id()
reading, writing = os.pipe()
child = os.fork()
drawn = runtime.rng.getrandbits(64).to_bytes(8, "big")
if not child:
    os.write(writing, drawn)
    os._exit(0)
os.waitpid(child, 0)
sys.exit(drawn == os.read(reading, 8))
"""


def test_a_forked_process_draws_ids_of_its_own() -> None:
    """The generator of ids is seeded anew after a fork: two processes make no equal ones."""
    assert subprocess.run([sys.executable, "-c", FORKS], timeout=30).returncode == 0


def test_keys_are_the_kernels_chance() -> None:
    """What nobody may guess does not come from the generator of the ids."""
    runtime = RealRuntime()
    state = runtime.rng.getstate()
    assert len(runtime.secret_rng.randbytes(32)) == 32
    assert runtime.rng.getstate() == state
    assert type(runtime.secret_rng) is random.SystemRandom


@pytest.mark.anyio
async def test_a_worker_runs_all_that_waits_in_one_round_and_tells_the_loop_in_order() -> None:
    """What is put while a round runs is the next round; answers come on the loop's own thread."""
    rounds: list[list[int]] = []
    told: list[int] = []
    gate = threading.Event()
    home = threading.get_ident()

    def work(batch: list[int]) -> Callable[[], None]:
        gate.wait(5)
        assert threading.get_ident() != home
        rounds.append(batch)
        return lambda: told.extend(batch if threading.get_ident() == home else [-1])

    worker = RealRuntime().worker("test", work)
    for job in range(100):
        worker.put(job)
    gate.set()
    await worker.close()
    await worker.close()
    assert told == list(range(100))
    assert len(rounds) <= 3
    with pytest.raises(RuntimeError, match="closed"):
        worker.put(1)


def test_a_file_has_one_owner_in_this_process_and_among_processes(tmp_path: Path) -> None:
    """The lock excludes this process and others, says who has it, and ends with its holder."""
    path = str(tmp_path / "orders.db")
    disk = RealRuntime().disk
    lock = disk.try_lock(path)
    assert lock is not None
    assert disk.try_lock(path) is None
    assert disk.owner_of(path) == "this process"
    code = (
        "import sys, os\n"
        "from synchromesh.runtime import RealRuntime\n"
        "disk = RealRuntime().disk\n"
        "print(disk.try_lock(sys.argv[1]) is None, disk.owner_of(sys.argv[1]))\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    import os

    assert other.stdout.split(maxsplit=1) == ["True", f"process {os.getpid()}\n"]
    lock.release()
    lock.release()
    assert disk.owner_of(str(tmp_path / "nothing.db")) == "another process"
    again = disk.try_lock(path)
    assert again is not None
    again.release()


@pytest.mark.anyio
async def test_the_network_listens_on_any_port_and_connects_to_it() -> None:
    """Port 0 gives a free port that is told, and a closed listener takes nobody in."""
    network = RealRuntime().network
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    class Server(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            heard.put_nowait(data)

    class Client(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    listener = await network.listen(Server, "127.0.0.1", 0)
    assert listener.host == "127.0.0.1"
    assert listener.port > 0
    client = await network.connect(Client, listener.host, listener.port)
    assert isinstance(client, Client)
    client.transport.write(b"hello")
    assert await heard.get() == b"hello"
    client.transport.abort()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await network.connect(Client, listener.host, listener.port)
