"""The simulated network: messages that are lost and repeated, and byte streams like TCP's."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

from synchromesh.testing import STORMY, NetworkFaults, SimRuntime, Unhandled, World, run

# -- messages ------------------------------------------------------------------------------------


async def idle(runtime: SimRuntime) -> None:
    await asyncio.Event().wait()


def arrivals(
    faults: NetworkFaults, seed: int = 0, *, parted_s: float = 0.0
) -> tuple[list[int], World]:
    """Send a hundred numbered messages from a to b, one each 10 ms."""
    world, got = World(seed, faults=faults), list[int]()
    world.node("a", idle).start()
    world.node("b", idle).start()

    async def send() -> None:
        if parted_s:
            world.partition("a", "b", heal_after_s=parted_s)
        for number in range(100):
            world.deliver("a", "b", functools.partial(got.append, number))
            await asyncio.sleep(0.01)
        await asyncio.sleep(20.0)

    world.run(send())
    return got, world


def test_calm_network_delivers_once_in_order() -> None:
    """Without faults each message arrives once, after a little latency."""
    assert arrivals(NetworkFaults())[0] == list(range(100))


def test_messages_are_lost_repeated_and_overtaken() -> None:
    """Each fault happens, is counted, and is the same for the same seed."""
    lost, world = arrivals(NetworkFaults(loss=0.3))
    assert len(lost) == 100 - world.count["message lost"] < 90
    repeated, world = arrivals(NetworkFaults(duplication=0.3))
    assert len(repeated) == 100 + world.count["message duplicated"] > 110
    late, world = arrivals(NetworkFaults(tail=0.3, tail_s=5.0))
    assert sorted(late) == list(range(100)) != late
    assert world.count["message late"] > 10
    assert arrivals(STORMY, seed=5)[0] == arrivals(STORMY, seed=5)[0] != arrivals(STORMY, 6)[0]


def test_partition_drops_messages_until_it_heals() -> None:
    """Messages into a partition are gone; later ones arrive."""
    got, world = arrivals(NetworkFaults(), parted_s=0.5)
    assert world.count["message cut off"] == 100 - len(got)
    assert got == list(range(100))[-len(got) :]
    assert 45 <= len(got) <= 55


def test_message_to_a_dead_node_is_dropped_and_the_next_life_gets_the_next() -> None:
    """A message is run by the life that the target has when it arrives, or by none."""
    world, got = World(0), list[str]()
    a, b = world.node("a", idle), world.node("b", idle)
    a.start()
    b.start()

    async def send() -> None:
        b.crash(restart_after_s=1.0)
        world.deliver("a", "b", lambda: got.append("to the dead"))
        await asyncio.sleep(2.0)
        world.deliver("a", "b", lambda: got.append("to the second life"))
        await asyncio.sleep(1.0)

    world.run(send())
    assert got == ["to the second life"]
    assert world.count["message to a dead node"] == 1


def test_heal_ends_faults_and_starts_everyone() -> None:
    """After heal nothing is lost, nobody is parted, and every node is up."""
    world, got = World(0, faults=NetworkFaults(loss=1.0)), list[int]()
    nodes = [world.node(name, idle) for name in "ab"]

    async def nemesis() -> None:
        world.partition("a", "b")
        world.heal()
        assert all(node.is_up for node in nodes)
        world.deliver("a", "b", lambda: got.append(1))
        await asyncio.sleep(1.0)

    world.run(nemesis())
    assert got == [1]


# -- byte streams --------------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """Keeps what it is told; the future ends with the connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.story: list[str] = []
        self.data = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.keeps_open_after_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.story.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.story.append("eof")
        return self.keeps_open_after_eof

    def pause_writing(self) -> None:
        self.story.append("pause")

    def resume_writing(self) -> None:
        self.story.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.story.append(f"lost {type(exc).__name__}" if exc else "lost")
        self.lost.set_result(exc)


async def connected(runtime: SimRuntime) -> tuple[Recorder, Recorder]:
    """Return both ends of a new connection, the client's first."""
    servers: list[Recorder] = []

    def accept() -> Recorder:
        servers.append(Recorder())
        return servers[-1]

    listener = await runtime.network.listen(accept, "127.0.0.1", 0)
    client = await runtime.network.connect(Recorder, "localhost", listener.port)
    assert isinstance(client, Recorder)
    while not servers:
        await asyncio.sleep(0.001)
    listener.close()
    return client, servers[0]


def simulated(test: Callable[[SimRuntime], Any]) -> Callable[[], None]:
    """Run a test's coroutine under twenty seeds, in weather that delays and repeats."""

    def under_seeds() -> None:
        for seed in range(20):
            run(test, seed=seed, faults=NetworkFaults(loss=0.1, tail=0.1, tail_s=2.0))

    under_seeds.__doc__, under_seeds.__name__ = test.__doc__, test.__name__
    return under_seeds


@simulated
async def test_bytes_arrive_in_order_both_ways(runtime: SimRuntime) -> None:
    """What is written arrives complete and in order, whatever the pieces."""
    client, server = await connected(runtime)
    sent = b"".join(b"%d," % number for number in range(30_000))
    for start in range(0, len(sent), 9_999):
        client.transport.write(sent[start : start + 9_999])
        server.transport.writelines([b"ab", b"c"])
    await asyncio.sleep(60.0)
    assert server.data == sent
    assert client.data == b"abc" * (len(sent) // 9_999 + 1)
    assert client.transport.get_write_buffer_size() == 0
    client.transport.close()
    assert client.transport.is_closing()
    assert await client.lost is None
    assert await server.lost is None
    assert server.story == ["made", "eof", "lost"]


@simulated
async def test_close_sends_what_is_buffered_first(runtime: SimRuntime) -> None:
    """close() loses nothing that was written before, and the peer sees an orderly end."""
    client, server = await connected(runtime)
    client.transport.write(b"x" * 300_000)
    client.transport.close()
    client.transport.write(b"too late")
    assert await server.lost is None
    assert server.data == b"x" * 300_000
    assert await client.lost is None


@simulated
async def test_end_waits_behind_unread_bytes(runtime: SimRuntime) -> None:
    """A receiver that pauses gets the bytes and then the end, once it reads again."""
    client, server = await connected(runtime)
    server.transport.pause_reading()
    assert not server.transport.is_reading()
    client.transport.write(b"x" * 200_000)
    await asyncio.sleep(10.0)
    assert server.data == b""
    client.transport.close()
    await asyncio.sleep(10.0)
    server.transport.resume_reading()
    await asyncio.gather(client.lost, server.lost)
    assert server.data == b"x" * 200_000
    assert server.story == ["made", "eof", "lost"]


@simulated
async def test_slow_reader_pauses_the_writer(runtime: SimRuntime) -> None:
    """Above the high-water mark the writer is paused, below the low one it is resumed."""
    client, server = await connected(runtime)
    client.transport.set_write_buffer_limits(high=100_000, low=10_000)
    server.transport.pause_reading()
    client.transport.write(b"x" * 100_000)
    assert client.story == ["made"]
    client.transport.write(b"x" * 300_000)
    assert client.story == ["made", "pause"]
    await asyncio.sleep(30.0)
    assert client.story == ["made", "pause"]
    server.transport.resume_reading()
    await asyncio.sleep(60.0)
    assert client.story == ["made", "pause", "resume"]
    assert len(server.data) == 400_000
    client.transport.abort()
    await asyncio.gather(client.lost, server.lost)


@simulated
async def test_half_close_keeps_the_other_direction(runtime: SimRuntime) -> None:
    """After write_eof the peer may still answer."""
    client, server = await connected(runtime)
    server.keeps_open_after_eof = True
    client.transport.write(b"question")
    client.transport.write_eof()
    with pytest.raises(RuntimeError, match="after write_eof"):
        client.transport.write(b"more")
    await asyncio.sleep(10.0)
    assert server.story == ["made", "eof"]
    server.transport.write(b"answer")
    server.transport.close()
    await asyncio.gather(client.lost, server.lost)
    assert (server.data, client.data) == (b"question", b"answer")


@simulated
async def test_abort_resets_the_peer(runtime: SimRuntime) -> None:
    """abort() drops what is buffered; the peer's connection is reset."""
    client, server = await connected(runtime)
    client.transport.write(b"x" * 500_000)
    client.transport.abort()
    assert await client.lost is None
    assert isinstance(await server.lost, ConnectionResetError)


@simulated
async def test_writing_to_a_closed_peer_is_reset(runtime: SimRuntime) -> None:
    """Who writes on after the peer has closed is told so by a reset."""
    client, server = await connected(runtime)
    client.keeps_open_after_eof = True
    server.transport.close()
    await server.lost
    await asyncio.sleep(10.0)
    client.transport.write(b"anybody there?")
    assert isinstance(await client.lost, ConnectionResetError)


@simulated
async def test_nobody_listening_is_refused(runtime: SimRuntime) -> None:
    """Connecting to a port without a listener is refused; a taken port cannot be listened on."""
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        await runtime.network.connect(Recorder, "127.0.0.1", 9)
    listener = await runtime.network.listen(Recorder, "127.0.0.1", 8000)
    assert (listener.host, listener.port) == ("127.0.0.1", 8000)
    with pytest.raises(OSError, match="Address already in use"):
        await runtime.network.listen(Recorder, "0.0.0.0", 8000)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await runtime.network.connect(Recorder, "127.0.0.1", 8000)


@simulated
async def test_addresses_are_known(runtime: SimRuntime) -> None:
    """Each end knows its own and its peer's address."""
    client, server = await connected(runtime)
    for mine, yours in ((client, server), (server, client)):
        peername = mine.transport.get_extra_info("peername")
        assert peername == yours.transport.get_extra_info("sockname")
        assert peername[0] == "127.0.0.1"
    client.transport.close()
    await asyncio.gather(client.lost, server.lost)


@simulated
async def test_asyncio_streams_run_on_it(runtime: SimRuntime) -> None:
    """asyncio's own stream classes, with their flow control, work over the simulated network."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper() * 1000)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        done.set_result(None)

    def protocol() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), serve, loop=loop)

    listener = await runtime.network.listen(protocol, "127.0.0.1", 0)
    reader = asyncio.StreamReader(loop=loop)
    ours = asyncio.StreamReaderProtocol(reader, loop=loop)
    await runtime.network.connect(lambda: ours, "127.0.0.1", listener.port)
    transport: Any = ours._transport  # type: ignore[attr-defined]
    writer = asyncio.StreamWriter(transport, ours, reader, loop)
    for number in range(50):
        writer.write(b"line %d\n" % number)
    writer.write_eof()
    text = await reader.read()
    assert text.count(b"\n") == 50_000
    writer.close()
    await writer.wait_closed()
    await done


def test_failing_protocol_ends_its_stream_and_the_run() -> None:
    """An exception in data_received resets the stream and is not kept silent."""

    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("cannot parse")

    async def main(runtime: SimRuntime) -> None:
        listener = await runtime.network.listen(Broken, "127.0.0.1", 0)
        client: Any = await runtime.network.connect(Recorder, "127.0.0.1", listener.port)
        client.transport.write(b"hello")
        assert isinstance(await client.lost, ConnectionResetError)

    with pytest.raises(Unhandled, match="data_received"):
        run(main)


# -- streams between nodes -----------------------------------------------------------------------


class Pair:
    """A client node with a connection to a server node."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.clients: list[Recorder] = []
        self.servers: list[Recorder] = []
        self.errors: list[str] = []
        self.client = self.world.node("client", self._connect)
        self.server = self.world.node("server", self._listen)
        self.server.start()
        self.client.start()

    async def _listen(self, runtime: SimRuntime) -> None:
        def accept() -> Recorder:
            self.servers.append(Recorder())
            return self.servers[-1]

        await runtime.network.listen(accept, "127.0.0.1", 80)

    async def _connect(self, runtime: SimRuntime) -> None:
        await asyncio.sleep(0.1)
        try:
            client: Any = await runtime.network.connect(Recorder, "127.0.0.1", 80)
        except OSError as error:
            self.errors.append(type(error).__name__)
        else:
            self.clients.append(client)


def test_crash_resets_the_peer_and_tells_the_dead_nothing() -> None:
    """The peer of a crashed node is reset after a while; the dead node's protocol hears nothing."""
    for seed in range(10):
        pair = Pair(seed)
        pair.world.later(1.0, pair.server.crash)
        pair.world.run(asyncio.sleep(5.0))
        assert pair.clients[0].story == ["made", "lost ConnectionResetError"]
        assert pair.servers[0].story == ["made"]


def test_what_is_in_flight_arrives_though_its_sender_has_died() -> None:
    """Bytes on their way when their sender loses its power arrive, and then the reset."""
    for seed in range(10):
        pair = Pair(seed)

        def send_and_die(pair: Pair = pair) -> None:
            pair.clients[0].transport.write(b"the last")
            pair.client.crash()

        pair.world.later(1.0, send_and_die)
        pair.world.run(asyncio.sleep(5.0))
        assert pair.servers[0].data == b"the last"
        assert pair.servers[0].story == ["made", "lost ConnectionResetError"]


class Chatting(Pair):
    """A client that says three words, one a second."""

    async def _connect(self, runtime: SimRuntime) -> None:
        await super()._connect(runtime)
        for data in (b"one ", b"two ", b"three"):
            self.clients[0].transport.write(data)
            await asyncio.sleep(1.0)


def test_a_power_cut_can_be_set_right_after_a_send() -> None:
    """`sends` counts the writes of a node's life, so that `on_step` can end it right after one."""
    pair = Chatting(0)
    pair.world.on_step = lambda node: node.crash() if node.sends == 2 else None
    pair.world.run(asyncio.sleep(5.0))
    assert pair.servers[0].data == b"one two "
    assert pair.client.sends == 0


def test_crash_behind_a_partition_is_noticed_by_writing_only() -> None:
    """A reset that a partition swallows is lost; who writes afterwards learns of it."""
    pair = Pair(0)

    async def nemesis() -> None:
        await asyncio.sleep(1.0)
        pair.world.partition("client", "server", heal_after_s=10.0)
        pair.server.crash()
        await asyncio.sleep(500.0)
        assert pair.clients[0].story == ["made"]
        pair.clients[0].transport.write(b"still there?")
        await asyncio.sleep(1.0)
        assert pair.clients[0].story == ["made", "lost ConnectionResetError"]

    pair.world.run(nemesis())


def test_partition_delays_bytes_until_it_heals() -> None:
    """Bytes written into a partition arrive once it has healed."""
    pair = Pair(0)

    async def nemesis() -> None:
        await asyncio.sleep(1.0)
        pair.world.partition("client", "server", heal_after_s=10.0)
        pair.clients[0].transport.write(b"patience")
        await asyncio.sleep(9.0)
        assert pair.servers[0].data == b""
        await asyncio.sleep(15.0)
        assert pair.servers[0].data == b"patience"

    pair.world.run(nemesis())


def test_endless_partition_loses_the_stream() -> None:
    """After two minutes without an answer the writer's connection is lost."""
    pair = Pair(0)

    async def nemesis() -> None:
        await asyncio.sleep(1.0)
        pair.world.partition("client", "server")
        pair.clients[0].transport.write(b"hello?")
        await asyncio.sleep(200.0)
        assert pair.clients[0].story == ["made", "lost TimeoutError"]
        assert pair.servers[0].story == ["made"]

    pair.world.run(nemesis())


def test_connecting_into_a_partition_waits_and_gives_up() -> None:
    """Connecting waits while parted, succeeds after healing, and gives up after two minutes."""
    for parted_s, errors in ((30.0, []), (1000.0, ["TimeoutError"])):
        pair = Pair(0)
        pair.world.later(0.05, pair.world.partition, "client", "server", parted_s)
        pair.world.run(asyncio.sleep(300.0))
        assert pair.errors == errors
        assert len(pair.clients) == (not errors)


def test_port_of_a_crashed_node_is_free_for_its_next_life() -> None:
    """A crash frees the port; connecting meanwhile is refused."""
    pair = Pair(0)
    pair.world.later(0.05, pair.server.crash, 2.0)
    pair.world.later(5.0, pair.client.crash, 1.0)
    pair.world.run(asyncio.sleep(10.0))
    assert pair.errors == ["ConnectionRefusedError"]
    assert [client.story for client in pair.clients] == [["made"]]
