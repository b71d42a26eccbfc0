"""Messages by NATS JetStream while its server, its stream, publishers and subscribers fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, RetentionPolicy, StorageType

from delivery_world import KEY, Unsure, Works, quick, until
from messaging_world import SOLD, TRACE, message, sell, take, taken
from nats_server import JETSTREAM, NatsServer, shared_nats
from nats_world import Wire
from synchromesh.codec import decode, encode
from synchromesh.context import CREDENTIAL, CallContext
from synchromesh.discovery.nats_connection import connect
from synchromesh.errors import CallError, ConfigError, TimedOut
from synchromesh.identity import Signer
from synchromesh.messaging import Consumer, Message, jetstream_connection
from synchromesh.messaging.jetstream import JetStream
from synchromesh.messaging.message import Receipt
from synchromesh.messaging.passage import StreamNames
from synchromesh.runtime import RealRuntime
from synchromesh.store import Unit

pytestmark = pytest.mark.anyio

KEYS = ("SX90", "PX12", "bolt", "gear")


@pytest.fixture
def own() -> Iterator[NatsServer]:
    """A server that a test may stop as it likes."""
    server = NatsServer()
    yield server
    server.close()


@pytest.fixture
async def works(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[Works]:
    """A shop and its subscribers, joined by the server that the test has, or the shared one."""
    server = request.getfixturevalue("own") if "own" in request.fixturenames else shared_nats()
    made = Works(tmp_path, server.url, system=request.node.name)
    yield made
    await made.close()


async def sell_many(works: Works, first: int, last: int) -> None:
    """Sell things of all keys, one unit after the other."""
    shop = await works.store("shop")
    for n in range(first, last + 1):
        await sell(shop, KEYS[n % 4], n)


async def check_each_once_in_order(works: Works, count: int, service: str = "stock") -> None:
    """Check that every sale took effect, none twice, and those of each key in order."""
    stock = await works.store(service)
    for key in range(4):
        expected = [n for n in range(1, count + 1) if n % 4 == key]
        assert await taken(stock, KEYS[key]) == expected


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_is_started_again_loses_and_repeats_nothing(
    works: Works, own: NatsServer, number: int
) -> None:
    """With its folder, in the middle of what is published and taken (O1, O3, O4)."""
    async with works.publishing(), works.taking():
        selling = asyncio.create_task(sell_many(works, 1, 200))
        for count in (20, 80, 140):
            await works.until_taken(count)
            own.restart(number)
        await selling
        await works.until_taken(200)
        await works.until_saved(200)
    await check_each_once_in_order(works, 200)


async def test_what_a_killed_server_has_again_holds_up_no_checkpoint(
    works: Works, own: NatsServer
) -> None:
    """It knows that they were acknowledged, and gives them to nobody: their copies are taken."""
    await have_again(works, own)
    async with works.publishing(ack_wait_s=0.1), works.taking(ack_wait_s=0.1):
        await sell_many(works, 5, 8)
        await works.until_taken(8)
        await works.until_saved(8)
        await until_waiting(works, 0, at_most=0)
    await check_each_once_in_order(works, 8)


async def test_each_message_that_a_killed_server_has_again_is_copied_once(
    works: Works, own: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, and never again, however long the subscriber is away."""
    monkeypatch.setattr(jetstream_connection, "_DUPLICATES_S", 0.1)
    looks = Looks(monkeypatch)
    await have_again(works, own)
    async with works.publishing(ack_wait_s=0.1):
        await sell_many(works, 5, 8)
        await until_waiting(works, 16)
        await looks.until_more(5)
        async with works.stream() as stream:
            _, info = await stream._connection.info(">")
        # What is there again, what the relay put once more, a new one, and one copy.
        assert list((info.state.subjects or {}).values()) == [4] * len(KEYS)
        async with works.taking(ack_wait_s=0.1):
            await works.until_saved(8)
            await until_waiting(works, 0, at_most=0)
    await check_each_once_in_order(works, 8)


async def test_what_nobody_has_ever_taken_is_not_known_as_taken(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its subscriber has not run yet: the server has no consumer that could tell."""
    looks = Looks(monkeypatch)
    async with works.stream(ack_wait_s=0.1) as stream:
        way = stream.delivery("shop", "stock")
        await way.begin(0)
        await way.deliver(message(), CallContext(trace_id=TRACE, span_id="1" * 16))

        async def is_looked_at_twice() -> bool:
            assert await way.taken(1) == 0
            return looks.count >= 2

        await until(is_looked_at_twice)
        _, info = await stream._connection.info(">")
    assert info.state.messages == 1


class Looks:
    """Counts how often the server is asked why the oldest message is still there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        ask = JetStreamContext.consumer_info

        async def consumer_info(*args: Any, **options: Any) -> ConsumerInfo:
            self.count += 1
            info: ConsumerInfo = await ask(*args, **options)
            return info

        monkeypatch.setattr(JetStreamContext, "consumer_info", consumer_info)

    async def until_more(self, count: int) -> None:
        """Wait until it was asked so many times more."""
        enough = self.count + count

        async def holds() -> bool:
            return self.count >= enough

        await until(holds)


async def have_again(works: Works, own: NatsServer) -> None:
    """Have four messages taken, and the server have them again, as after it was killed."""
    messages, kept = own.folder / "jetstream", own.folder / "kept"

    def of(folder: Path) -> Path:
        (found,) = (each for each in folder.rglob("msgs") if "synchromesh-" in str(each))
        return found

    async with works.publishing():
        await sell_many(works, 1, 4)
        await until_waiting(works, 4)
    own.stop(signal.SIGTERM)
    shutil.copytree(messages, kept)
    own.start()
    async with works.taking():
        await works.until_taken(4)
        await until_waiting(works, 0, at_most=0)
    own.stop(signal.SIGTERM)
    shutil.rmtree(of(messages))
    shutil.copytree(of(kept), Path(str(of(kept)).replace(str(kept), str(messages))))
    own.start()
    await until_waiting(works, 4)


async def test_a_server_that_stands_still_delays_and_nothing_else(
    works: Works, own: NatsServer
) -> None:
    """What was published meanwhile has timed out, and may be stored twice; it is taken once."""
    async with works.publishing(timeout_s=0.3), works.taking(timeout_s=0.3):
        await sell_many(works, 1, 20)
        await works.until_taken(20)
        own.pause()
        await sell_many(works, 21, 40)
        await asyncio.sleep(1.0)  # several publishes time out; how many is of no account
        own.resume()
        await works.until_taken(40)
        await works.until_saved(40)
    await check_each_once_in_order(works, 40)


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "its folder is gone"])
async def test_a_stream_that_is_lost_is_published_again_from_what_was_taken(
    works: Works, own: NatsServer, *, is_deleted: bool
) -> None:
    """Messages that only the stream had are in the log: none is lost, and no key out of order."""
    async with works.publishing():
        async with works.taking():
            await sell_many(works, 1, 20)
            await works.until_taken(20)
            await works.until_saved(20)
        await sell_many(works, 21, 60)
        await until_waiting(works, 40)
        if is_deleted:
            async with works.stream() as stream:
                link = stream._connection
                await link.api.delete_stream(link.anyhow.stream)
        else:
            own.stop()
            for each in sorted((own.folder / "jetstream").rglob("*"), reverse=True):
                each.rmdir() if each.is_dir() else each.unlink()
            own.start()
        async with works.taking():
            await sell_many(works, 61, 80)
            await works.until_taken(80)
            await works.until_saved(80)
    await check_each_once_in_order(works, 80)


async def until_waiting(works: Works, count: int, *, at_most: float = math.inf) -> None:
    """Wait until so many messages are in the stream, or more."""
    async with works.stream() as stream:

        async def holds() -> bool:
            _, info = await stream._connection.info(">")
            return count <= info.state.messages <= at_most

        await until(holds)


async def test_a_full_stream_holds_back_the_relay_and_drops_nothing(works: Works) -> None:
    """One subscriber that is away fills its own part: others go on, and it gets all later."""
    async with works.publishing(waiting_max=3), works.publishing("books", waiting_max=3):
        await sell_many(works, 1, 60)
        async with works.taking("books"):
            await works.until_taken(60, "books")
        await until_waiting(works, 12)
        async with works.stream() as stream:
            _, info = await stream._connection.info(">")
            assert max((info.state.subjects or {}).values()) == 3
        async with works.taking():
            await works.until_taken(60)
            await works.until_saved(60)
    await check_each_once_in_order(works, 60)
    await check_each_once_in_order(works, 60, "books")


async def test_a_server_without_room_holds_back_the_relay_and_drops_nothing(
    tmp_path: Path,
) -> None:
    """Its limit is of bytes, for all: what it has no room for waits in the log."""
    server = NatsServer('jetstream {{ store_dir: "{folder}/js", max_file_store: 20000 }}')
    works = Works(tmp_path, server.url)
    try:
        async with works.publishing():
            await sell_many(works, 1, 100)
            await until_waiting(works, 20)
            async with works.taking():
                await works.until_taken(100)
                await works.until_saved(100)
        await check_each_once_in_order(works, 100)
    finally:
        await works.close()
        server.close()


async def test_acknowledgements_that_are_lost_repeat_nothing(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber that dies between its commit and the acknowledgement is asked again (O4)."""
    lost: Counter[str] = Counter()
    acknowledge = Msg.ack

    async def ack(self: Msg) -> None:
        seen = str(self.metadata.sequence.stream)
        lost[seen] += 1
        if int(seen) % 5 or lost[seen] > 1:
            await acknowledge(self)

    monkeypatch.setattr(Msg, "ack", ack)
    async with works.publishing(), works.taking(ack_wait_s=0.2):
        await sell_many(works, 1, 40)
        await works.until_taken(40)
        await works.until_saved(40)
    await check_each_once_in_order(works, 40)
    assert max(lost.values()) == 2


async def test_answers_to_publishes_that_are_lost_repeat_nothing(works: Works) -> None:
    """The message is published again under its id, also where the first one comes in later."""
    told: Counter[str] = Counter()

    async def lose(message: Message) -> None:
        told[message.id] += 1
        if told[message.id] < 3:
            raise TimedOut("the answer is lost")

    async with (
        works.publishing(through=lambda delivery: Unsure(delivery, lose)),
        works.taking(),
    ):
        await sell_many(works, 1, 20)
        await works.until_taken(20)
        await works.until_saved(20)
    await check_each_once_in_order(works, 20)
    assert min(told.values()) == 3
    assert works.restarts == 0


async def test_a_copy_that_the_server_no_longer_knows_is_known_to_the_inbox(works: Works) -> None:
    """The window of duplicates is short; what the subscriber has taken it never takes again."""
    async with works.publishing(), works.taking():
        await sell_many(works, 1, 8)
        await works.until_taken(8)
        await works.until_saved(8)
    shop = await works.store("shop")

    async def rewind(unit: Unit) -> None:
        await unit.execute("update sm_checkpoint set position = 0")

    await shop.write(rewind, name="forget what was taken")
    async with works.stream() as stream:
        link = stream._connection
        await link.api.delete_stream(link.anyhow.stream)
    async with works.publishing(), works.taking():
        await sell_many(works, 9, 12)
        await works.until_taken(12)
        await works.until_saved(12)
    await check_each_once_in_order(works, 12)


async def test_a_slow_handler_keeps_its_message_and_others_wait_for_it(works: Works) -> None:
    """The server is told that it is worked on: nobody else gets it, however long that is."""
    stock = await works.store("stock")
    consumer = Consumer(stock, {SOLD: take})
    take_one, calls = consumer.take, Counter[str]()

    async def slowly(source: str, message: Message) -> Receipt:
        calls[message.id] += 1
        await asyncio.sleep(1.0 if calls.total() == 1 else 0.0)
        return await take_one(source, message)

    consumer.take = slowly  # type: ignore[method-assign]
    async with (
        works.publishing(),
        works.taking(consumer=consumer, ack_wait_s=0.3),
        works.taking(consumer=consumer, ack_wait_s=0.3),
    ):
        await sell_many(works, 1, 12)
        await works.until_taken(12)
        await works.until_saved(12)
    assert set(calls.values()) == {1}
    await check_each_once_in_order(works, 12)


async def test_a_paused_replica_is_passed_by_and_adds_nothing_when_it_wakes(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages go to another one after a time; what it does later has no effect (O4)."""
    stock = await works.store("stock")
    paused, other = Consumer(stock, {SOLD: take}), Consumer(stock, {SOLD: take})
    take_one, awake = paused.take, asyncio.Event()
    under_way: set[str] = set()

    async def stand_still(source: str, message: Message) -> Receipt:
        under_way.add(message.scope)
        await awake.wait()
        return await take_one(source, message)

    async def say_nothing(_: Msg) -> None:
        """Do as a process does that has been stopped."""

    async def is_under_way() -> bool:
        return under_way == set(KEYS)

    monkeypatch.setattr(Msg, "in_progress", say_nothing)
    paused.take = stand_still  # type: ignore[method-assign]
    async with works.publishing(), works.taking(consumer=paused, ack_wait_s=0.3):
        await sell_many(works, 1, 12)
        await until(is_under_way)
        async with works.taking(consumer=other, ack_wait_s=0.3):
            await works.until_taken(12)
            awake.set()
            await sell_many(works, 13, 40)
            await works.until_taken(40)
            await works.until_saved(40)
    await check_each_once_in_order(works, 40)


async def test_replicas_share_what_comes_and_no_key_is_out_of_order(works: Works) -> None:
    """Two processes of a service, one of which goes and comes; the server gives each its turn."""
    async with works.publishing(), works.taking(ack_wait_s=0.3):
        selling = asyncio.create_task(sell_many(works, 1, 120))
        for count in (20, 50, 80):
            async with works.taking(ack_wait_s=0.3):
                await works.until_taken(count)
        await selling
        await works.until_taken(120)
    await check_each_once_in_order(works, 120)


async def test_what_nobody_of_the_system_has_signed_is_not_taken(
    works: Works, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may publish in NATS is not a service yet: it stays there, and is told (C4)."""
    stock = await works.store("stock")
    async with works.stream() as stream:
        names, link = await stream._connection.names(), stream._connection
        forged = message(1)
        for key in (b"x" * 32, KEY):
            audience = "books" if key == KEY else "stock"
            token = Signer(key).token("shop", audience=audience, now_us=works.runtime.wall_us())
            await link.api.publish(
                names.subject("stock", SOLD, forged.scope), encode(forged),
                headers={CREDENTIAL: token},
            )  # fmt: skip
    async with works.taking():

        async def is_told() -> bool:
            return "was not signed by this system" in caplog.text

        await until(is_told)
        assert await taken(stock) == []


async def test_a_message_carries_the_trace_of_the_unit_that_published_it(works: Works) -> None:
    """From the publish to the handler it is one story, with the relay's span above (T1)."""
    async with works.publishing(), works.taking():
        await sell_many(works, 1, 1)
        await works.until_taken(1)
        await works.until_saved(1)
    spans = {(each.kind, each.service): each for each in works.ring if each.trace_id == TRACE}
    relay, handled = spans["relay", "shop"], spans["handle", "stock"]
    assert handled.parent_id == relay.span_id
    assert (relay.attributes["outcome"], handled.attributes["outcome"]) == ("published", "handled")


async def connecting(url: str, **options: Any) -> str:
    """Connect in vain, and return what is said of it."""
    with pytest.raises(ConfigError) as caught:
        await JetStream.connect(
            url, "bad", signer=Signer(KEY), runtime=RealRuntime(), options=quick(**options)
        )
    return caught.value.message


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    """One message with the mend, in bounded time."""
    told = await connecting("nats://ada:secret@127.0.0.1:9", connect_s=0.3)
    assert told.startswith("NATS at 127.0.0.1:9 did not answer within 0.3 s")
    assert "[engine] nats" in told
    assert "secret" not in told


async def test_credentials_that_are_wrong_are_told_as_that() -> None:
    """And not as a server that is to be started."""
    server = NatsServer(JETSTREAM, 'authorization {{ user: "ada", password: "right" }}')
    try:
        url = server.url.replace("nats://", "nats://ada:wrong@")
        told = await connecting(url, connect_s=0.5)
    finally:
        server.close()
    assert "it refuses the credentials in the URL; write nats://USER:PASSWORD@HOST:PORT" in told


async def test_a_server_without_jetstream_is_named() -> None:
    """Messages would have nowhere to wait."""
    server = NatsServer("max_payload: 1048576")
    try:
        assert "it has no JetStream" in await connecting(server.url, connect_s=2.0)
    finally:
        server.close()


async def test_what_the_user_may_not_do_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A publish that is denied has no answer; what the server says of it beside is passed on."""
    server = NatsServer(
        JETSTREAM,
        'authorization {{ users: [{{ user: ada, password: "p@ss", '
        'permissions: {{ publish: {{ deny: "synchromesh.denied.*.stock.>" }} }} }}] }}',
    )
    caplog.set_level("ERROR")
    try:
        stream = await JetStream.connect(
            server.url.replace("//", "//ada:p%40ss@"), "denied", signer=Signer(KEY),
            runtime=RealRuntime(), options=quick(timeout_s=0.5),
        )  # fmt: skip
        way = stream.delivery("shop", "stock")
        await way.begin(0)
        context = CallContext(trace_id=TRACE, span_id="1" * 16)
        for _ in range(2):
            with pytest.raises(TimedOut, match=r"(?i)it said: '?permissions violation for publish"):
                await way.deliver(message(), context)
        await stream.close()
    finally:
        server.close()
    (said,) = [each.getMessage() for each in caplog.records]
    assert "give the user of [engine] nats these rights" in said
    assert "p@ss" not in said


async def test_a_cluster_is_reached_by_any_of_its_servers() -> None:
    """Whichever is silent; its user is known to all, with a password that is percent-encoded."""
    server = NatsServer(JETSTREAM, 'authorization {{ user: ada, password: "p@ss" }}')
    wires = Wire(server.port), Wire(server.port)
    one, two = [(await each.start()).removeprefix("nats://") for each in wires]
    url = f"nats://ada:p%40ss@{one},nats://{two}"
    try:
        wires[0].hold()
        stream = await JetStream.connect(
            url, "cluster", signer=Signer(KEY), runtime=RealRuntime(), options=quick()
        )
        way = stream.delivery("shop", "stock")
        await way.begin(0)
        wires[0].flow()
        await wires[1].close()

        async def is_delivered() -> bool:
            with contextlib.suppress(CallError):
                await way.deliver(message(), CallContext(trace_id=TRACE, span_id="1" * 16))
                return True
            return False

        await until(is_delivered)
        assert url not in repr(stream)
        await stream.close()
    finally:
        await wires[0].close()
        server.close()


async def test_attempts_to_connect_again_that_fail_leave_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A port that takes connections and ends them costs no file, however long that lasts."""
    tries: list[str] = []

    async def counted(url: str, **options: Any) -> Any:
        tries.append(url)
        return await connect(url, **options)

    monkeypatch.setattr(jetstream_connection, "connect", counted)
    monkeypatch.setattr(jetstream_connection, "_RECONNECT_S", 0.001)
    wire = Wire(shared_nats().port)
    stream = await JetStream.connect(
        await wire.start(), "cut", signer=Signer(KEY), runtime=RealRuntime(), options=quick()
    )
    gc.disable()  # it would close what is left in the end, and late
    try:
        wire.cut()

        async def are(count: int) -> bool:
            return len(tries) >= count

        await until(lambda: are(5))
        before = len(os.listdir("/proc/self/fd"))
        await until(lambda: are(45))
        assert len(os.listdir("/proc/self/fd")) <= before + 10
        wire.mend()
        await stream.delivery("shop", "stock").begin(0)
    finally:
        gc.enable()
        await stream.close()
        await wire.close()


async def test_a_server_that_reads_nothing_any_more_keeps_nobody_from_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it was sent and has not read is given up, and not waited for; its socket ends."""
    monkeypatch.setitem(jetstream_connection._CLIENT, "ping_interval", 0.05)
    wires = Wire(shared_nats().port), Wire(shared_nats().port)
    url = ",".join([await each.start() for each in wires])
    stream = await JetStream.connect(
        url, "silent", signer=Signer(KEY), runtime=RealRuntime(), options=quick()
    )
    try:
        wires[0].hold()
        client = stream._connection.client
        socket = client._transport._io_writer.transport  # type: ignore[union-attr]
        for _ in range(32):
            await client.publish("nobody", bytes(1_000_000))
        await until(lambda: is_another(stream, client))
        assert socket.is_closing()
        await stream.delivery("shop", "stock").begin(0)
    finally:
        await stream.close()
        for each in wires:
            await each.close()


async def test_a_fault_of_the_client_in_a_handshake_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises: there is one task that connects again, and it goes on."""
    faults: list[Exception] = []

    async def failing(url: str, **options: Any) -> Any:
        if faults:
            raise faults.pop()
        return await connect(url, **options)

    monkeypatch.setattr(jetstream_connection, "connect", failing)
    monkeypatch.setattr(jetstream_connection, "_AFTER_FAULT_S", 0.01)
    wire = Wire(shared_nats().port)
    stream = await JetStream.connect(
        await wire.start(), "fault", signer=Signer(KEY), runtime=RealRuntime(), options=quick()
    )
    try:
        client, keeping = stream._connection.client, stream._connection._keeping
        faults += [RuntimeError("unable to get socket"), AttributeError("no such thing")]
        wire.cut()
        wire.mend()

        async def is_there_again() -> bool:
            assert keeping is not None
            assert not keeping.done()
            return await is_another(stream, client)

        await until(is_there_again)
        await stream.delivery("shop", "stock").begin(0)
    finally:
        await stream.close()
        await wire.close()
    assert not faults
    assert caplog.text.count("failed as none should; it is tried again in 0.01 s") == 2


async def is_another(stream: JetStream, client: Client) -> bool:
    return stream._connection.client is not client


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"storage": StorageType.MEMORY}, "keeps messages in memory"),
        ({"retention": RetentionPolicy.LIMITS}, "is no work queue"),
        ({"max_age": 3600.0}, "drops messages by their age"),
        ({"subjects": ["shop.>"]}, "has the subjects"),
    ],
)
async def test_a_stream_of_another_kind_is_refused(wrong: dict[str, Any], why: str) -> None:
    """It would lose messages, each in its way; nothing is published into it."""
    names = StreamNames.of("bad", "f3a1")
    right = {
        "subjects": [names.subjects], "storage": StorageType.FILE,
        "retention": RetentionPolicy.WORK_QUEUE, "discard": "new",
    }  # fmt: skip
    async with await nats.connect(shared_nats().url) as client:
        stream = client.jetstream()
        await stream.add_stream(name=names.stream, **(right | wrong))
        try:
            assert why in await connecting(shared_nats().url)
        finally:
            await stream.delete_stream(names.stream)


def test_what_is_in_the_stream_is_json() -> None:
    """So that a person can read it there."""
    assert decode(encode(message(1)), Message) == message(1)
