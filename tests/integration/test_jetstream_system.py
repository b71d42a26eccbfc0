"""A system whose `[engine]` names a NATS server: its messages go by a stream, or it is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest

import parcels_app
from nats_server import JETSTREAM, NatsServer, shared_nats
from parcels_app import BAD, TOML
from split_world import ControlSocket, running
from synchromesh.errors import ConfigError, MissingExtra
from synchromesh.http import HttpPool
from synchromesh.messaging.passage import StreamNames
from synchromesh.system.config.rundir import RunDir

pytestmark = pytest.mark.anyio

WAIT_S = 180.0


def by_stream(name: str, url: str, more: str = "") -> str:
    """Return the configuration of the parcels, with messages by the stream of a server."""
    return f'{TOML}\n[engine]\nnats = "{url}"\n{more}'.replace('"parcels"', f'"{name}"')


@asynccontextmanager
async def asking(folder: Path, text: str, *, is_split: bool) -> AsyncIterator[ControlSocket]:
    async with (
        running(folder, text, is_split=is_split) as system,
        HttpPool(network=system._host.runtime.network) as pool,
    ):
        made = ControlSocket(system, pool)
        yield made


async def sell(control: ControlSocket, first: int, last: int) -> None:
    for n in range(first, last + 1):
        assert await control.call("shop.sell", sku=f"key{n % 4}", n=str(n)) is None


async def until_taken(control: ControlSocket, count: int) -> list[int]:
    async with asyncio.timeout(WAIT_S):
        while len(taken := await control.call("stock.taken")) < count:
            await asyncio.sleep(0.02)
    found: list[int] = taken
    return found


async def waiting(system: str) -> int:
    """Return how many messages are in the stream of a system."""
    async with await nats.connect(shared_nats().url) as client:
        info = await client.jetstream().stream_info(StreamNames.of(system).stream)
    return info.state.messages


async def test_a_key_has_the_messages_of_a_system_go_by_a_stream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Handled, parked and replayed are what they were; the relay has nothing left to tell."""
    text = by_stream("by-key", shared_nats().url)
    BAD.add(3)
    async with asking(tmp_path, text, is_split=False) as control:
        await sell(control, 1, 8)
        assert sorted(await until_taken(control, 6)) == [1, 2, 4, 5, 6, 8]
        async with asyncio.timeout(WAIT_S):
            while await waiting("by-key"):
                await asyncio.sleep(0.02)
        status = await control.ask("GET", "/status")
        assert any("parked: 1 (shop.sold: ValueError)" in each for each in status["findings"])
        stock = control._system.instances["stock"]
        assert stock.health().children["stream"].state == "running"
        BAD.clear()
        assert await stock.consumer.replay(1, who="ada", why="mended")
        assert 3 in await until_taken(control, 8)
    assert "nats_monitor" in caplog.text


async def test_processes_that_are_killed_lose_and_repeat_no_message(tmp_path: Path) -> None:
    """Between the commit and the acknowledgement, and anywhere else: kill -9 costs time (O4)."""
    shutil.copy(parcels_app.__file__, tmp_path)  # where each process finds it
    async with asking(tmp_path, by_stream("killed", shared_nats().url), is_split=True) as control:
        selling = asyncio.create_task(sell(control, 1, 90))
        for count in (5, 45):
            await until_taken(control, count)
            os.kill(await control.pid("stock"), signal.SIGKILL)
        await selling
        os.kill(await control.pid("shop"), signal.SIGKILL)
        await until_taken(control, 90)
        await sell(control, 91, 94)
        found = await until_taken(control, 94)
    assert sorted(found) == list(range(1, 95))
    for key in range(4):
        of_key = [n for n in found if n % 4 == key]
        assert of_key == sorted(of_key)


async def refused(folder: Path, text: str, kind: type[Exception] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        async with running(folder, text, is_split=False):
            pass
    return str(caught.value)


async def test_a_server_that_cannot_be_used_ends_the_start_before_anything_is_served(
    tmp_path: Path,
) -> None:
    """One message with the mend."""
    names = StreamNames.of("mine", "f3a1")
    async with await nats.connect(shared_nats().url) as client:
        stream = client.jetstream()
        await stream.add_stream(name=names.stream, subjects=[names.subjects], storage="memory")
        try:
            told = await refused(tmp_path, by_stream("mine", shared_nats().url))
        finally:
            await stream.delete_stream(names.stream)
    assert "it keeps messages in memory" in told
    assert "Mend or delete it" in told


async def test_without_the_extra_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else of the toolkit needs it."""
    for name in [
        each for each in sys.modules if each.startswith("synchromesh.messaging.jetstream")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nats", None)
    monkeypatch.setitem(sys.modules, "nats.errors", None)
    told = await refused(tmp_path, by_stream("bare", "nats://127.0.0.1:9"), MissingExtra)
    assert "[engine] nats needs the extra 'nats'" in told


@pytest.mark.parametrize(
    ("interval", "told"), [("always", ""), ("30s", "its sync_interval is not `always`")]
)
async def test_whether_the_server_writes_each_message_to_its_disk_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, interval: str, told: str
) -> None:
    """Its monitoring address says it; where it does not, the start does."""
    server = NatsServer(JETSTREAM.replace("always", interval), "http: 127.0.0.1:-1")
    try:
        ports = json.loads((server.folder / f"nats-server_{server.pid}.ports").read_text())
        monitor = f'nats_monitor = "{ports["monitoring"][0]}"\n'
        async with running(tmp_path, by_stream("sync", server.url, monitor), is_split=False):
            pass
    finally:
        server.close()
    assert ("a power cut may take messages" in caplog.text) == bool(told)
    assert told in caplog.text


async def test_a_monitor_that_does_not_answer_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the server that carries messages, and that one is there."""
    more = 'nats_monitor = "http://127.0.0.1:9"\n'
    async with running(tmp_path, by_stream("deaf", shared_nats().url, more), is_split=False):
        pass
    assert "does not tell its sync_interval" in caplog.text


async def test_the_server_that_dev_has_started_needs_no_monitor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its configuration is ours: a warning in each process would be a false alarm."""
    address = Path(RunDir(tmp_path).own_nats.removeprefix("file:"))
    address.parent.mkdir(parents=True)
    address.write_text(shared_nats().url)
    async with running(tmp_path, by_stream("own", f"file:{address}"), is_split=False):
        pass
    assert "a power cut may take messages" not in caplog.text


async def test_a_monitor_that_is_no_url_is_refused(tmp_path: Path) -> None:
    """With its key, before anything is served."""
    told = await refused(
        tmp_path, by_stream("odd", shared_nats().url, 'nats_monitor = "nats:8222"\n')
    )
    assert told == "[engine] nats_monitor: nats:8222: use http://... or https://..."
