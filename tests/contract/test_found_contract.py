"""What every reader of a service that nobody registers promises: by A, by SRV, and by a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from socket import EAI_NONAME, gaierror
from typing import cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from synchromesh.discovery import MemoryRegistry, Resolved, Resolver, WatchableResolver
from synchromesh.discovery.found import SrvRecord
from synchromesh.discovery.readers import (
    SRV_WITHIN_S,
    WITHIN_S,
    DnsAddresses,
    DnsServices,
    FoundResolver,
    Reader,
    StaticFile,
    addresses_of,
    srv_of,
)
from synchromesh.errors import DiscoveryError
from synchromesh.system.config.discover_section import DiscoverSection
from synchromesh.testing import SimRuntime, run

EVERY_S = 5.0


class Source:
    """What a reader reads: hosts by number, or a reason why it cannot be read."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.path = kind, folder / "stock.json"
        self.hosts: list[int] = []
        self.why = ""
        self.asked, self.takes_s = 0, 0.0
        self.under_way = self.asked_at_once = 0
        self.put()

    def put(self, *hosts: int, why: str = "") -> None:
        """Say what is there from now on."""
        self.hosts, self.why = list(hosts), why
        self.path.write_text(why or json.dumps([f"http://10.0.0.{each}:80" for each in hosts]))

    def reader(self) -> Reader:
        if self.kind == "dns":
            return DnsAddresses("http://stock.internal", self.addresses)
        if self.kind == "srv":
            return DnsServices("http://_stock._tcp.internal", self.records)
        return StaticFile(self.path)

    async def addresses(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("stock.internal", 80)
        await self._answer(OSError)
        return [f"10.0.0.{each}" for each in self.hosts]

    async def records(self, name: str) -> list[SrvRecord]:
        assert name == "_stock._tcp.internal"
        await self._answer(DiscoveryError)
        return [SrvRecord(1, 1, 80, f"10.0.0.{each}.") for each in self.hosts]

    async def _answer(self, failure: Callable[[str], Exception]) -> None:
        self.asked += 1
        self.under_way += 1
        self.asked_at_once = max(self.asked_at_once, self.under_way)
        await asyncio.sleep(self.takes_s)
        self.under_way -= 1
        if self.why:
            raise failure(self.why)


@pytest.fixture(params=["dns", "srv", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return Source(request.param, tmp_path)


def hosts(resolved: Resolved) -> list[int]:
    return [int(each.url.split(".")[3].partition(":")[0]) for each in resolved.endpoints]


def reading(source: Source, main: Callable[[FoundResolver], object]) -> None:
    """Run with a resolver that reads again and again, in virtual time."""

    async def running(_: SimRuntime) -> None:
        resolver = FoundResolver("stock", source.reader(), every_s=EVERY_S)
        task = asyncio.create_task(resolver.run())
        await main(resolver)  # type: ignore[misc]
        task.cancel()

    run(running)


def test_it_is_a_resolver_that_can_be_watched(source: Source) -> None:
    """As a registry is: callers wait for what it finds, and another service is none of its."""
    source.put(2, 1)

    async def main(found: FoundResolver) -> None:
        resolver: Resolver = found
        assert isinstance(found, WatchableResolver)
        await found.changed("stock")
        resolved = await resolver.resolve("stock")
        assert hosts(resolved) == [1, 2]
        assert not resolved.is_stale
        assert {each.service for each in resolved.endpoints} == {"stock"}
        assert len({each.instance for each in resolved.endpoints}) == 2
        assert await resolver.resolve("other") == Resolved(())

    reading(source, main)


def test_who_watches_hears_of_each_change_within_an_interval(source: Source) -> None:
    """What comes, and what goes; an instance keeps its name while others come and go."""
    source.put(1)

    async def main(found: FoundResolver) -> None:
        await found.refresh()
        async with aclosing(found.watch("stock")) as lists:
            before = await anext(lists)
            source.put(1, 2)
            began_s = asyncio.get_running_loop().time()
            both = await anext(lists)
            assert asyncio.get_running_loop().time() - began_s <= EVERY_S
            source.put(2)
            assert hosts(await anext(lists)) == [2]
        assert hosts(both) == [1, 2]
        assert before.endpoints[0] in both.endpoints

    reading(source, main)


@pytest.mark.parametrize("why", ["no such name", ""])
def test_what_was_found_last_stays_where_nothing_is(source: Source, why: str) -> None:
    """It is marked stale, with the reason; that it is read again is told as a change, too."""
    source.put(1, 2)

    async def main(found: FoundResolver) -> None:
        await found.refresh()
        source.put(why=why)
        await found.changed()
        kept = await found.resolve("stock")
        assert (hosts(kept), kept.is_stale) == ([1, 2], True)
        assert found.why_stale
        source.put(1, 2)
        await found.changed()
        again = await found.resolve("stock")
        assert (hosts(again), again.is_stale, found.why_stale) == ([1, 2], False, "")

    reading(source, main)


def test_what_was_never_found_is_an_error_that_says_why(source: Source) -> None:
    """As of a registry that never answered; nobody takes it for a service without instances."""
    source.put(why="refused by the server")

    async def main(found: FoundResolver) -> None:
        await found.refresh()
        with pytest.raises(DiscoveryError, match=r"not known where 'stock' is: .*(refused|list)"):
            await found.resolve("stock")

    reading(source, main)


def test_a_resolver_that_hangs_is_asked_once_at_a_time(tmp_path: Path) -> None:
    """It is stale meanwhile, with that reason; the answer counts when it comes, and no sooner is
    the next one begun.
    """
    source = Source("dns", tmp_path)
    source.put(1)

    async def main(found: FoundResolver) -> None:
        await found.refresh()
        source.put(2)
        source.takes_s = 4 * EVERY_S
        await found.changed()
        assert "has not answered within 2 s" in found.why_stale
        source.takes_s = 0.0
        await found.changed()
        assert hosts(await found.resolve("stock")) == [2]
        assert (source.asked, source.asked_at_once) == (3, 1)

    reading(source, main)


@pytest.mark.parametrize("kind", ["dns", "srv"])
def test_a_lookup_that_takes_a_little_too_long_does_not_flap(tmp_path: Path, kind: str) -> None:
    """Each reading brings what the one before came to; one that is quick again is taken at once."""
    source = Source(kind, tmp_path)
    source.put(1)
    source.takes_s = 2.1

    async def main(found: FoundResolver) -> None:
        await found.refresh()
        assert "has not answered within 2 s" in found.why_stale
        for number in (2, 3, 4):
            source.put(number)
            await asyncio.sleep(EVERY_S)
            await found.refresh()
            assert found.why_stale == ""
            assert hosts(await found.resolve("stock")) == [number]
        source.takes_s = 0.0
        await asyncio.sleep(EVERY_S)
        source.put(5)
        await found.refresh()
        assert hosts(await found.resolve("stock")) == [5]

    async def alone(_: SimRuntime) -> None:
        await main(FoundResolver("stock", source.reader(), every_s=EVERY_S))

    run(alone)


def test_srv_is_given_up_by_its_own_reason_first() -> None:
    """The reading that it is part of still waits then, so it is no chance which is told."""
    assert SRV_WITHIN_S < WITHIN_S


def test_weights_and_priorities_of_srv_are_those_of_the_calls(tmp_path: Path) -> None:
    """Only those of the best priority are listed; weights that are all alike say nothing."""

    async def main(_: SimRuntime) -> None:
        async def mixed(_: str) -> list[SrvRecord]:
            return [
                SrvRecord(1, 3, 80, "a.internal."),
                SrvRecord(1, 0, 81, "B.internal."),
                SrvRecord(2, 9, 82, "spare.internal."),
            ]

        async def even(_: str) -> list[SrvRecord]:
            return [SrvRecord(1, 33, 80, f"{each}.internal.") for each in "ab"]

        for records, weights in ((mixed, {"a": 3, "b": 1}), (even, {"a": None, "b": None})):
            found = FoundResolver("stock", DnsServices("http://_s._tcp.x/v1", records), every_s=1.0)
            await found.refresh()
            there = (await found.resolve("stock")).endpoints
            assert {each.url[7]: each.weight for each in there} == weights
            assert all(each.url.endswith("/v1") for each in there)

    run(main)


@pytest.mark.parametrize(
    ("target", "port"),
    [
        ("evil.example/a", 80), ("a?b", 80), ("a#b", 80), ("me@evil.example", 80), ("a:1", 80),
        (r"a\\b.", 80), ("a b.", 80), ("a..b.", 80), ("a" * 64, 80), ("a.", 0), ("a.", 65_536),
    ],
)  # fmt: skip
def test_a_record_that_makes_no_url_is_left_out(
    caplog: pytest.LogCaptureFixture, target: str, port: int
) -> None:
    """With one warning, whatever its priority; where no other is there, the error says why."""
    faulty = SrvRecord(1, 1, port, target)

    async def main(_: SimRuntime) -> None:
        async def lookup(_: str) -> list[SrvRecord]:
            return records

        records = [faulty, SrvRecord(2, 1, 80, "good.internal.")]
        reader = DnsServices("http://_s._tcp.x/v1", lookup)
        for _again in range(2):
            assert [each.url for each in await reader.read()] == ["http://good.internal:80/v1"]
        (warned,) = [each.getMessage() for each in caplog.records]
        assert "1 SRV records of _s._tcp.x are left out" in warned
        records = [faulty]
        with pytest.raises(DiscoveryError, match=r"no SRV record of _s\._tcp\.x is one to call"):
            await reader.read()

    run(main)


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["a..internal", "a" * 64 + ".internal"])
async def test_a_host_that_is_no_name_is_told_with_its_key(host: str) -> None:
    """The system's resolver raises a UnicodeError for it, which is no OSError."""
    with pytest.raises(DiscoveryError, match=r"is no name of a host: .* discover = \{ dns = "):
        await DnsAddresses(f"http://{host}:80").read()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "is no list of URLs"),
        ('{"urls": []}', "is no list of URLs"),
        ('["http://a:99999"]', "the port is none"),
        ('["https://a"]', "by http:// alone"),
        ('[{"url": "http://a", "weight": 0}]', "its weight is 0"),
        ("[]", "has no URL"),
        (json.dumps([f"http://a:{each}" for each in range(1, 300)]), "may be 256 at most"),
    ],
)
def test_a_file_that_is_wrong_is_told_and_changes_nothing(
    tmp_path: Path, text: str, why: str
) -> None:
    """The message has the place and the mend; so has that of a file that is not there."""
    path = tmp_path / "stock.json"
    path.write_text('["http://a", {"url": "http://b", "weight": 3}]')

    async def main(_: SimRuntime) -> None:
        reader = DiscoverSection(file="stock.json").reader(tmp_path)
        found = FoundResolver("stock", reader, every_s=1.0)
        await found.refresh()
        before = (await found.resolve("stock")).endpoints
        assert [each.weight for each in before] == [None, 3]
        path.write_text(text)
        await found.refresh()
        assert why in found.why_stale
        assert (await found.resolve("stock")).endpoints == before
        path.unlink()
        await found.refresh()
        assert "cannot be read" in found.why_stale

    run(main)


def test_a_list_that_is_stale_is_stale_in_the_registry_too() -> None:
    """So that `status` and other processes know it."""

    async def main(_: SimRuntime) -> None:
        async def here(host: str, port: int) -> list[str]:
            if failed:
                raise OSError("no")
            return ["10.0.0.1"]

        failed = False
        registry = MemoryRegistry(verify=lambda shown: None)
        found = FoundResolver(
            "stock", DnsAddresses("http://stock", here), every_s=1.0,
            listed=lambda each: registry.fix(*each.endpoints, is_stale=each.is_stale),
        )  # fmt: skip
        for failed in (False, True, False):
            await found.refresh()
            assert (await registry.resolve("stock")).is_stale is failed

    run(main)


class NameServer(asyncio.DatagramProtocol):
    """Answers SRV questions on loopback: two records of one name, none of another."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        name = question.question[0].name.to_text()
        if name.startswith("_stock."):
            records = ("1 5 8080 a.internal.", "1 5 8081 b.internal.")
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *records))
        elif not name.startswith("_empty."):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), address)


@pytest.mark.anyio
async def test_srv_records_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real question and answer; what there is not is told for what it is."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
    found = await srv_of("_stock._tcp.internal")
    assert {(each.target, each.port, each.weight) for each in found} == {
        ("a.internal.", 8080, 5),
        ("b.internal.", 8081, 5),
    }
    with pytest.raises(DiscoveryError, match="knows no name _other"):
        await srv_of("_other._tcp.internal")
    with pytest.raises(DiscoveryError, match="no SRV records of _empty"):
        await srv_of("_empty._tcp.internal")
    transport.abort()
    await asyncio.sleep(0)


@pytest.mark.anyio
async def test_addresses_are_those_of_the_systems_resolver() -> None:
    """Each once; a name that has none says what to look at."""
    assert "127.0.0.1" in await addresses_of("localhost", 80)

    async def none(host: str, port: int) -> list[str]:
        raise gaierror(EAI_NONAME, "Name or service not known")

    with pytest.raises(DiscoveryError, match=r"by DNS: Name or service .*: getent ahosts no-such"):
        await DnsAddresses("http://no-such", none).read()
