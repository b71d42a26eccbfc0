"""A registry on NATS when things fail: the server, the connection, a process, somebody's hand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from certificates import issue
from nats_server import JETSTREAM, NatsServer
from nats_world import KEY, Wire, at, credential, kept, listed, registry_at, running, until
from notes_app import TESTS
from synchromesh.discovery.nats_requests import NatsRequests
from synchromesh.errors import ConfigError, DiscoveryError, MissingExtra, StaleIncarnation
from synchromesh.identity import Signer
from synchromesh.messaging.jetstream import JetStream
from synchromesh.messaging.jetstream_connection import JetStreamOptions
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio

STREAM = "KV_sm_registry_shop"
ENTRY = "$KV.sm_registry_shop.i.billing.a"


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
        await client.jetstream().delete_stream(STREAM)
    await client.close()


async def ask(client: Client, what: str) -> dict[str, Any]:
    """Ask JetStream."""
    told: dict[str, Any] = json.loads((await client.request(f"$JS.API.{what}", b"")).data)
    return told


async def test_the_last_known_good_outlives_a_restart_of_the_server(server: NatsServer) -> None:
    """R4: its memory is lost; nobody who lives is off the list at any time, and who died goes."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(running(server.url))
        holder = await stack.enter_async_context(running(server.url))
        for name in "abc":
            await stack.enter_async_context(kept(holder, name))
        await holder.register(at("d"), credential=credential())
        await listed(reader, "a", "b", "c", "d")
        server.stop()
        await until(lambda: reader.is_down)
        resolved = await reader.resolve("billing")
        assert [each.instance for each in resolved.endpoints] == ["a", "b", "c", "d"]
        assert resolved.is_stale
        with pytest.raises(DiscoveryError, match=r"NATS at nats://127\.0\.0\.1"):
            await holder.register(at("e"), credential=credential())
        server.start()
        told = await listed(reader, "a", "b", "c")
        assert all({"a", "b", "c"} <= set(names) for names in told), told


async def test_who_was_replaced_stays_replaced_over_a_restart(server: NatsServer) -> None:
    """R2: revisions ascend over the lives of the bucket; the paused process must stop."""
    async with running(server.url) as old_host, running(server.url) as new_host:
        old = await old_host.register(at("a"), credential=credential())
        server.stop()
        await until(lambda: new_host.is_down)
        server.start()
        await until(lambda: not new_host.is_down)
        async with kept(new_host, "a") as new:
            assert new.incarnation > old.incarnation
            with pytest.raises(StaleIncarnation):
                await old.run()


async def test_a_cut_connection_is_followed_by_a_fresh_watch(server: NatsServer) -> None:
    """Who was cut off gives on what it knew, and then learns what it has missed."""
    wire = Wire(server.port)
    url = await wire.start()
    try:
        async with (
            running(url) as reader,
            running(server.url) as holder,
            kept(holder, "a") as leaving,
            kept(holder, "b"),
        ):
            await listed(reader, "a", "b")
            wire.cut()
            await listed(reader, "a", "b", is_stale=True)
            await leaving.end()
            async with kept(holder, "c"):
                await listed(holder, "b", "c")
                wire.mend()
                await listed(reader, "b", "c")
    finally:
        await wire.close()


async def test_a_registry_is_followed_by_any_server_of_its_cluster() -> None:
    """The one that it was connected to goes, and the next is taken; one that is silent, too."""
    server = NatsServer(JETSTREAM, 'authorization {{ user: ada, password: "p@ss" }}')
    wires = Wire(server.port), Wire(server.port)
    one, two = [(await each.start()).removeprefix("nats://") for each in wires]
    try:
        async with (
            running(f"nats://ada:p%40ss@{one},{two}") as reader,
            running(server.url.replace("//", "//ada:p%40ss@")) as holder,
            kept(holder, "a"),
        ):
            await listed(reader, "a")
            wires[0].cut()
            wires[0].mend()
            wires[0].hold()
            async with kept(holder, "b"):
                await listed(reader, "a", "b")
    finally:
        for each in wires:
            await each.close()
        server.close()


async def test_a_holder_that_was_cut_off_registers_again(server: NatsServer) -> None:
    """It has expired meanwhile; its loop of renewals brings it back."""
    wire = Wire(server.port)
    url = await wire.start()
    try:
        async with running(url) as holder, running(server.url) as reader, kept(holder, "a"):
            await listed(reader, "a")
            wire.cut()
            await listed(reader)
            wire.mend()
            await listed(reader, "a")
    finally:
        await wire.close()


async def test_a_watch_that_is_blind_while_its_connection_is_up_is_opened_anew(
    server: NatsServer,
) -> None:
    """Its consumer is gone, as with the server that had it: silence is no news, and is noticed."""
    async with AsyncExitStack() as stack:
        client = await nats.connect(server.url)
        stack.push_async_callback(client.close)
        reader = await stack.enter_async_context(running(server.url))
        holder = await stack.enter_async_context(running(server.url))
        await stack.enter_async_context(kept(holder, "a"))
        await listed(reader, "a")
        for name in (await ask(client, f"CONSUMER.NAMES.{STREAM}"))["consumers"]:
            await ask(client, f"CONSUMER.DELETE.{STREAM}.{name}")
        async with kept(holder, "b"):
            await listed(reader, "a", "b")
        # The bucket is gone, and made anew: revisions begin elsewhere.
        await ask(client, f"STREAM.DELETE.{STREAM}")
        async with asyncio.timeout(30.0):
            while "error" in await ask(client, f"STREAM.INFO.{STREAM}"):
                await asyncio.sleep(0.02)
        async with kept(holder, "c"):
            await listed(reader, "a", "c")


async def test_a_server_that_stands_still_empties_no_list(server: NatsServer) -> None:
    """R5: all leases run out while nobody could renew them; all come back, and none was missed."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(running(server.url))
        holder = await stack.enter_async_context(running(server.url))
        for name in "abc":
            await stack.enter_async_context(kept(holder, name))
        await listed(reader, "a", "b", "c")
        watching = asyncio.create_task(listed(reader, "a", "b", "c", "d"))
        server.pause()
        try:
            await asyncio.sleep(4.0)  # longer than a lease runs
        finally:
            server.resume()
        await until(lambda: not reader.is_down)
        await listed(reader, "a", "b", "c")
        async with kept(holder, "d"):
            told = await watching
        assert all({"a", "b", "c"} <= set(names) for names in told), told


async def test_a_registration_that_was_given_up_does_not_take_effect_later(
    server: NatsServer,
) -> None:
    """What the server finds in its sockets after a pause is refused, or expires."""
    async with running(server.url) as reader:
        async with running(server.url) as holder:
            server.pause()
            with pytest.raises(DiscoveryError, match="does not answer"):
                await holder.register(at("a"), credential=credential())
        server.resume()
        async with kept(reader, "b"):
            await listed(reader, "b")
            # A timer that is set now fires after any that came before.
            await reader.register(at("c"), credential=credential())
            await listed(reader, "b", "c")
            await listed(reader, "b")


async def test_an_entry_that_this_system_did_not_sign_is_nobodys(server: NatsServer) -> None:
    """R3: whoever can write to the server lists nobody, nor moves an entry to another place."""
    async with running(server.url) as registry, kept(registry, "a"):
        await listed(registry, "a")
        client = await nats.connect(server.url)
        stream = client.jetstream()
        signed = (await stream.get_last_msg(STREAM, ENTRY)).data
        assert signed is not None
        for place, data in (
            ("billing.b", signed),
            ("orders.a", signed),
            ("billing.c", b"{}"),
            ("billing.d", signed[64:]),
            ("billing.e", Signer(KEY).seal(b"[1", audience="$KV.sm_registry_shop.i.billing.e")),
            ("billing.a", b"x" * 100),
        ):
            await stream.publish(f"$KV.sm_registry_shop.i.{place}", data)
        # The one whose entry was overwritten finds it in nobody's hand, and registers again.
        await until(lambda: registry._view.of("billing")[:1] == ())
        await listed(registry, "a")
        assert list(registry.listed()) == ["billing"]
        await client.close()


async def test_a_supervisor_ends_the_leases_of_the_dead_and_suspects_the_silent(
    server: NatsServer,
) -> None:
    """R6: all hear of it at once; a suspect is listed while nobody else is, and keeps its lease."""
    async with running(server.url) as supervisor, running(server.url) as holder:
        await holder.register(at("dead"), credential=credential())
        async with kept(holder, "a") as hung, kept(holder, "b"):
            await listed(supervisor, "a", "b", "dead")
            assert supervisor.evict("billing", lambda each: each.instance == "dead") == 1
            supervisor.suspect("billing", lambda each: each.instance == "a", is_suspect=True)
            await listed(holder, "b")
            await hung.renew()
            supervisor.suspect("billing", lambda each: each.instance == "a", is_suspect=False)
            await listed(holder, "a", "b")
            await hung.renew()
            assert supervisor.evict("billing", lambda each: each.instance == "dead") == 0


HOST = """
import asyncio, sys
from nats_world import kept, running
async def main():
    async with running(sys.argv[1]) as registry, kept(registry, "a", "orders"):
        print("up", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_killed_host_expires(server: NatsServer) -> None:
    """R1: with its process the renewals end, and nobody has to notice that."""
    async with running(server.url) as reader:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOST, server.url,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TESTS)},
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()
        await listed(reader, "a", service="orders")
        process.kill()
        await process.communicate()
        await listed(reader, service="orders")


async def test_watchers_are_bounded(server: NatsServer) -> None:
    """One too many is refused, and one that ends makes room."""
    registry = registry_at(server.url)
    registry._watchers_max = 1
    await registry.open()
    task = asyncio.create_task(registry.run())
    await until(lambda: not registry.is_down)
    watch = registry.watch("billing")
    await anext(watch)
    with pytest.raises(DiscoveryError, match="raise watchers_max"):
        await anext(registry.watch("billing"))
    await watch.aclose()
    await listed(registry)
    task.cancel()
    await registry.close()
    await registry.close()


async def test_tls_by_an_authority_of_ones_own(tmp_path: Path) -> None:
    """It is named in the URL; a server that has none of it, or no TLS, is not told the password."""
    ours, others = (issue(tmp_path, name) for name in ("ours", "others"))
    host = issue(tmp_path, "host", by=ours)
    secure = NatsServer(
        JETSTREAM, f'tls {{{{ cert_file: "{host.pem}", key_file: "{host.key}" }}}}',
        "authorization {{ user: ada, password: secret }}",
    )  # fmt: skip
    plain = NatsServer(JETSTREAM)
    url = secure.url.replace("nats://", "tls://ada:secret@")
    try:
        async with running(f"{url}?ca={ours.pem}") as registry, kept(registry, "a"):
            await listed(registry, "a")
        for wrong, why in (
            (url, "its certificate is not believed"),
            (f"{url}?ca={others.pem}", "its certificate is not believed"),
            (plain.url.replace("nats://", "tls://ada:secret@"), "it has no TLS"),
            (f"{url}?ca={tmp_path}/none.pem", "none.pem"),
            (f"{url}?cafile=x", "cafile is not for this URL"),
            (f"{secure.url}?ca={ours.pem}", "write tls://"),
        ):
            with pytest.raises(ConfigError, match=why) as told:
                await registry_at(wrong).open()
            assert "secret" not in told.value.message
        signer, runtime = Signer(KEY), RealRuntime()
        stream = await JetStream.connect(
            f"{url}?ca={ours.pem}", "tls", signer=signer, runtime=runtime
        )
        await stream.close()
        with pytest.raises(ConfigError, match="CERTIFICATE_VERIFY_FAILED"):
            await JetStream.connect(
                url, "tls", signer=signer, runtime=runtime, options=JetStreamOptions(connect_s=1.0)
            )
    finally:
        secure.close()
        plain.close()


async def test_another_systems_registry_is_refused(server: NatsServer) -> None:
    """Two systems of one name have two keys; two of two names share the server."""
    async with running(server.url), running(server.url, system="mill"):
        other = registry_at(server.url, key=b"x" * 32)
        with pytest.raises(ConfigError, match="another key") as refused:
            await other.open()
        assert "[system] name" in refused.value.message
        await other.close()


async def test_a_server_that_is_too_old_is_refused(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves out what it does not know of the stream that it was asked for: leases by timers."""
    made = NatsRequests.made

    async def as_before(self: NatsRequests, stream: str, config: object) -> dict[str, Any]:
        found = await made(self, stream, config)
        del found["config"]["allow_msg_schedules"]
        return found

    monkeypatch.setattr(NatsRequests, "made", as_before)
    registry = registry_at(server.url)
    with pytest.raises(ConfigError, match=r"2\.12 or newer") as told:
        await registry.open()
    assert "delete the stream" in told.value.message
    await registry.close()


@pytest.mark.parametrize(
    ("lines", "user", "told"),
    [
        ((), "", "JetStream does not answer"),
        ((JETSTREAM, "authorization {{ user: u, password: secret }}"), "", "credentials"),
        ((JETSTREAM, "authorization {{ user: u, password: secret }}"), "u:wrong@", "credentials"),
    ],
)
async def test_a_server_that_cannot_be_used_is_told_in_words(
    lines: tuple[str, ...], user: str, told: str
) -> None:
    """Before anything is served, with what to do, and without a password."""
    server = NatsServer(*(lines or ("# nothing",)))
    try:
        registry = registry_at(server.url.replace("://", f"://{user}"))
        with pytest.raises(ConfigError, match=told) as refused:
            await registry.open()
        assert refused.value.message.startswith("NATS at nats://127.0.0.1:")
        assert "wrong" not in refused.value.message
        await registry.close()
        server.stop()
        with pytest.raises(ConfigError, match="cannot be reached"):
            await registry.open()
    finally:
        server.close()


async def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(MissingExtra, match=r"\[engine\] nats needs the extra 'nats'"):
        await registry_at("nats://127.0.0.1:1").open()
