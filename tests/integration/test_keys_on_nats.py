"""API keys in NATS KV: commands and replicas on any host, a server that goes, a stranger."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress

import nats
import pytest

from nats_server import JETSTREAM, NatsServer
from nats_world import KEY, until
from synchromesh.discovery import nats_connection
from synchromesh.discovery.nats_document import NatsDocument
from synchromesh.discovery.nats_kv import NatsRegistry
from synchromesh.errors import ConfigError, DiscoveryError
from synchromesh.gateway import ApiKey, make_key
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system.config import merged_document
from synchromesh.system.config.keys_on_nats import KeysOnNats

pytestmark = pytest.mark.anyio

RNG = random.Random(7)
SUBJECT = "$KV.sm_gateway_shop.keys"
Known = dict[str, ApiKey]


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """A server that the tests of this file stop and start, one after the other."""
    server = NatsServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
async def empty(server: NatsServer) -> AsyncIterator[None]:
    yield
    client = await nats.connect(server.url)
    with suppress(nats.errors.Error):
        await client.jetstream().delete_stream("KV_sm_gateway_shop")
    await client.close()


def made(name: str = "shop") -> ApiKey:
    return make_key(name, [], rng=RNG)[1]


def keys_at(server: NatsServer, *keys: bytes) -> KeysOnNats:
    document = NatsDocument(
        server.url, bucket="gateway", name="keys", system="shop", signer=Signer(*(keys or (KEY,))),
        wall_us=RealRuntime().wall_us,
    )  # fmt: skip
    return KeysOnNats(document)


@asynccontextmanager
async def opened(server: NatsServer, *brought: ApiKey) -> AsyncIterator[KeysOnNats]:
    keys = keys_at(server)
    await keys.open(brought)
    try:
        yield keys
    finally:
        await keys.close()


@asynccontextmanager
async def replica(server: NatsServer, *brought: ApiKey) -> AsyncIterator[tuple[KeysOnNats, Known]]:
    """What a gateway does with them: also the keys that it was told last."""
    async with opened(server, *brought) as keys:
        told = keys.known.by_id()

        def changed(now: Mapping[str, ApiKey]) -> None:
            told.clear()
            told.update(now)

        task = asyncio.create_task(keys.run(changed))
        try:
            yield keys, told
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def add(server: NatsServer, *keys: ApiKey) -> None:
    """Add some as a command does."""
    async with opened(server) as command:
        await command.change(lambda known: known.with_keys(keys))


async def remove(server: NatsServer, key: ApiKey) -> None:
    async with opened(server) as command:
        await command.change(lambda known: known.without(key.id))


async def test_every_replica_follows_every_command(server: NatsServer) -> None:
    """Also where two change them at once: neither takes away what the other did."""
    first, second, third = made(), made(), made()
    async with replica(server) as (_, one), replica(server) as (_, other):
        await asyncio.gather(add(server, first), add(server, second), add(server, third))
        await until(lambda: set(one) == set(other) == {first.id, second.id, third.id})
        await remove(server, second)
        await until(lambda: set(one) == set(other) == {first.id, third.id})
    async with opened(server) as later:
        assert set(later.known.by_id()) == {first.id, third.id}


async def test_the_last_known_good_outlives_the_server_and_its_disk(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost with its disk is written down again, with what was removed."""
    monkeypatch.setattr(nats_connection, "CONNECT_WITHIN_S", 1.0)
    good, gone = made(), made()
    async with replica(server) as (keys, told):
        await add(server, good, gone)
        await remove(server, gone)
        await until(lambda: set(told) == {good.id} and gone.id in keys.known.removed)
        server.stop()
        await until(lambda: keys.why_old != "")
        assert set(told) == {good.id}
        assert "127.0.0.1" in keys.why_old
        shutil.rmtree(server.folder / "jetstream")
        server.start()
        await until(lambda: keys.why_old == "")
        later = made()
        await add(server, later, gone)
        await until(lambda: set(told) == {good.id, later.id})
    async with opened(server) as anew:
        assert set(anew.known.by_id()) == {good.id, later.id}


async def test_who_has_not_the_key_of_the_system_changes_nothing(server: NatsServer) -> None:
    """Neither by what is no document, nor by one from before a key was removed."""
    good, stolen = made(), made()
    async with replica(server) as (keys, told):
        await add(server, good, stolen)
        await until(lambda: set(told) == {good.id, stolen.id})
        stranger = await nats.connect(server.url)
        stream = stranger.jetstream()
        before = await stream.get_last_msg("KV_sm_gateway_shop", SUBJECT)
        await remove(server, stolen)
        await until(lambda: set(told) == {good.id})
        assert before.data is not None
        for data in (b"junk", before.data, b""):
            revision = (await stream.publish(SUBJECT, data)).seq

            async def healed(revision: int = revision) -> bool:
                return (await stream.get_last_msg("KV_sm_gateway_shop", SUBJECT)).seq != revision

            async with asyncio.timeout(120):
                while not await healed():
                    await asyncio.sleep(0.01)
            assert set(told) == {good.id}
            assert set(keys.known.removed) == {stolen.id}
        await stream.delete_stream("KV_sm_gateway_shop")
        await until_kept(server, good)
        await stranger.close()


async def until_kept(server: NatsServer, key: ApiKey) -> None:
    """Wait until whoever comes anew finds a key."""
    async with asyncio.timeout(120):
        while True:
            async with opened(server) as anew:
                if key.id in anew.known.by_id():
                    return
            await asyncio.sleep(0.01)


async def test_the_keys_of_a_folder_are_brought_along_once(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """By the first; who has others later is told how to bring them."""
    first, other = made(), made()
    async with opened(server, first) as keys:
        assert set(keys.known.by_id()) == {first.id}
    with caplog.at_level(logging.WARNING, "synchromesh.gateway"):
        async with opened(server, other) as keys:
            assert set(keys.known.by_id()) == {first.id}
    assert f"{other.id} are in this folder alone" in caplog.text
    assert "gateway key import" in caplog.text


@pytest.mark.parametrize("most", [999_424, 64_960])
async def test_what_no_longer_fits_is_refused_before_anything_is_sent(
    server: NatsServer, most: int
) -> None:
    """By the bucket, and by a server that takes less: with what there is to do; the rest stays."""
    rng = random.Random(3)
    every = [make_key(f"shop-{n:05}", ["orders:read"], rng=rng)[1] for n in range(most // 125)]
    small = None if most > 100_000 else NatsServer(JETSTREAM, "max_payload: 64KB")
    async with opened(small or server) as keys:
        fits = most // 156
        with pytest.raises(ConfigError, match=f"NATS takes {most:,} at most: nothing was changed"):
            await keys.change(lambda known: known.with_keys(every))
        assert keys.known.keys == ()
        await keys.change(lambda known: known.with_keys(every[:fits]))
    async with opened(small or server) as later:
        assert len(later.known.keys) == fits, "what fits is read back as a whole"
        with pytest.raises(ConfigError, match=r"remove those that nobody uses .* clients tokens"):
            await later.change(lambda known: known.with_keys(every))
        await later.change(lambda known: known.without(every[0].id))
        assert len(later.known.keys) == fits - 1
    if small is not None:
        small.close()


async def test_another_system_s_keys_are_refused(server: NatsServer) -> None:
    """Of the same name, under another key."""
    async with opened(server, made()):
        other = keys_at(server, b"x" * 32)
        with pytest.raises(ConfigError, match="belongs to a system with another key"):
            await other.open()
        await other.close()


async def test_the_system_s_key_is_changed_while_replicas_run(server: NatsServer) -> None:
    """Bucket and keys are taken over by who signs with the new one, and read by both meanwhile."""
    old, new, key = KEY, b"n" * 32, made()
    for keys in ((old,), (old, new), (new, old), (new,)):
        opened = keys_at(server, *keys)
        await opened.open([key])
        assert set(opened.known.by_id()) == {key.id}
        await opened.close()
        registry = NatsRegistry(
            server.url, system="shop", signer=Signer(*keys), runtime=RealRuntime()
        )
        await registry.open()
        await registry.close()
    left = keys_at(server, old)
    with pytest.raises(ConfigError, match="belongs to a system with another key"):
        await left.open()
    await left.close()


async def test_a_command_that_is_not_answered_says_what_is_unknown(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that was done late is not done twice, nor undone by what comes after it."""
    monkeypatch.setattr(merged_document, "CHANGE_WITHIN_S", 0.0)
    key = made()
    async with opened(server) as command:
        server.pause()
        try:
            with pytest.raises(DiscoveryError, match="not known whether the API keys were changed"):
                await command.change(lambda known: known.with_keys([key]))
        finally:
            server.resume()
    await add(server, key)
    async with opened(server) as later:
        assert set(later.known.by_id()) == {key.id}
