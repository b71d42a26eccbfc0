"""Readers that find services which nobody registers: by names in DNS, or in a file.

    reader ── every few seconds ──▶ FoundList ──▶ who resolves, or watches

Each is a `Resolver` of one service by a `FoundResolver`, and what a reading may come to is told by
`found`. DNS is asked as the host is configured to: addresses by the system's own resolver, with its
`/etc/hosts` and search domains, and SRV records by dnspython, which that has no call for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from socket import SOCK_STREAM
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from synchromesh.discovery.endpoint import Resolved
from synchromesh.discovery.found import FoundList, FoundPlace, SrvRecord, places_of_srv
from synchromesh.errors import DiscoveryError, MissingExtra

WITHIN_S = 2.0
# Shorter, so that what DNS does not answer is told by its own reason.
SRV_WITHIN_S = 1.5
FILE_BYTES_MAX = 1_000_000

_log = logging.getLogger("synchromesh.discovery")

# Returns the addresses of a host and port. Raises OSError, or UnicodeError of what is no name.
AddressLookup = Callable[[str, int], Awaitable[Sequence[str]]]
# Returns the SRV records of a name. Raises DiscoveryError.
SrvLookup = Callable[[str], Awaitable[Sequence[SrvRecord]]]


class Reader(Protocol):
    """Finds the places of one service."""

    async def read(self) -> Sequence[FoundPlace]:
        """Return what is there now. Raises DiscoveryError."""
        ...


class FoundResolver:
    """A `Resolver` of one service by what a reader finds; `run` is a supervised loop.

    Args:
        service: its name.
        reader: finds its places.
        every_s: how often it reads.
        within_s: how long a reading may take.
        listed: told the list each time that it is another one, or stale or not.

    Example:
        >>> async def main() -> Resolved:
        ...     async def here(host: str, port: int) -> list[str]:
        ...         return ["10.0.0.7", "10.0.0.8"]
        ...     reader = DnsAddresses("http://stock.internal:8080", here)
        ...     resolver = FoundResolver("stock", reader, every_s=5.0)
        ...     await resolver.refresh()
        ...     return await resolver.resolve("stock")
        >>> [each.url for each in asyncio.run(main()).endpoints]
        ['http://10.0.0.7:8080', 'http://10.0.0.8:8080']
    """

    def __init__(
        self,
        service: str,
        reader: Reader,
        *,
        every_s: float,
        within_s: float = WITHIN_S,
        listed: Callable[[Resolved], None] = lambda _: None,
    ) -> None:
        self._reader = reader
        self._every_s, self._within_s = every_s, within_s
        self._listed = listed
        self._found = FoundList(service)
        self._reading: asyncio.Future[Sequence[FoundPlace]] | None = None
        self._changed = asyncio.Event()

    @property
    def why_stale(self) -> str:
        """Why what is listed may be old, in words; "" where it is not."""
        return self._found.why_stale

    async def resolve(self, service: str) -> Resolved:
        """Return the last known list; none of another service.

        Raises:
            DiscoveryError: nothing was ever found.
        """
        return self._found.resolved if service == self._found.service else Resolved(())

    async def changed(self, _: str = "", /) -> None:
        """Wait until the list may have changed."""
        await self._changed.wait()

    async def watch(self, service: str) -> AsyncGenerator[Resolved, None]:
        """Yield the current list, then each new one; a slow watcher skips to the latest.

        Raises:
            DiscoveryError: nothing was ever found.
        """
        latest: Resolved | None = None
        while True:
            resolved = await self.resolve(service)
            if resolved == latest:
                await self.changed()
                continue
            latest = resolved
            yield resolved

    async def refresh(self) -> None:
        """Read now; what it comes to is in the list, and in the log where that is another one."""
        found = self._found
        try:
            is_other = found.take(await self._read())
        except DiscoveryError as error:
            is_other = found.fail(error.message)
        if not is_other:
            return
        if why := found.why_stale:
            kept = "nothing is listed" if found.is_empty else "the last known list stays"
            _log.warning("%s is not found, and %s: %s", found.service, kept, why)
        else:
            urls = ", ".join(each.url for each in found.resolved.endpoints)
            _log.info("%s is at %s", found.service, urls)
        if not found.is_empty:
            self._listed(found.resolved)
        self._changed.set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Read again and again; only cancellation ends it."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.refresh()

    async def _read(self) -> Sequence[FoundPlace]:
        """Return what the reader finds in time.

        One that takes longer goes on, and is waited for by the next: a resolver that hangs holds
        one thread, and not one more each time. What it came to meanwhile counts where the one that
        is begun then is as slow: else the list would be stale and fresh in turn.
        """
        reading = self._reading
        come: asyncio.Future[Sequence[FoundPlace]] | None = None
        if reading is not None and reading.done():
            reading.exception()  # heard of, also where the next one is in time
            reading, come = None, reading
        if reading is None:
            reading = self._reading = asyncio.ensure_future(self._reader.read())
        done, _ = await asyncio.wait((reading,), timeout=self._within_s)
        if done:
            self._reading = None
            return reading.result()
        if come is not None:
            return come.result()
        raise DiscoveryError(f"{self._reader!r} has not answered within {self._within_s:g} s")

    def __repr__(self) -> str:
        return f"<FoundResolver {self._found!r} by {self._reader!r}>"


class DnsAddresses:
    """Each address that a host name has, A and AAAA, is a place.

    Args:
        url: "http://HOST:PORT", with a prefix of the path at most.
        lookup: asks for the addresses; by default the system's resolver.
    """

    def __init__(self, url: str, lookup: AddressLookup | None = None) -> None:
        parts = urlsplit(url)
        self._scheme, self._path = parts.scheme, parts.path.rstrip("/")
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        self._lookup = lookup or addresses_of

    async def read(self) -> Sequence[FoundPlace]:
        """Ask for the addresses. Raises DiscoveryError."""
        try:
            found = await self._lookup(self._host, self._port)
        except UnicodeError as error:  # of a label that is empty, or has above 63 characters
            raise DiscoveryError(
                f"{self._host[:80]!r} is no name of a host: {error}; correct it in "
                'discover = { dns = "http://HOST:PORT" }'
            ) from error
        except OSError as error:
            raise DiscoveryError(
                f"{self._host} has no address by DNS: {error.strerror or error}; see that it "
                f"resolves on this host, such as by: getent ahosts {self._host}"
            ) from error
        hosts = (f"[{each}]" if ":" in each else each for each in found)
        return [FoundPlace(f"{self._scheme}://{host}:{self._port}{self._path}") for host in hosts]

    def __repr__(self) -> str:
        return f"DNS for {self._host}"


class DnsServices:
    """Each SRV record of a name, of those with the best priority, is a place, by its weight.

    Args:
        url: "http://_SERVICE._PROTO.DOMAIN", with a prefix of the path at most.
        lookup: asks for the records; by default dnspython, as `/etc/resolv.conf` says.
    """

    def __init__(self, url: str, lookup: SrvLookup | None = None) -> None:
        parts = urlsplit(url)
        self._scheme, self._path = parts.scheme, parts.path.rstrip("/")
        self._name = parts.hostname or ""
        self._lookup = lookup or srv_of
        self._dropped = ""

    async def read(self) -> Sequence[FoundPlace]:
        """Ask for the records; those with a fault are dropped with a warning.

        Raises:
            DiscoveryError: there are none, or each has a fault.
        """
        records = await self._lookup(self._name)
        faulty = [each for each in records if each.fault]
        why = "; ".join(
            sorted(f"{each.target[:80]!r}, port {each.port}: {each.fault}" for each in faulty)
        )
        if faulty and len(faulty) == len(records):
            raise DiscoveryError(f"no SRV record of {self._name} is one to call: {why[:400]}")
        if why and why != self._dropped:  # once, and not with each reading
            _log.warning(
                "%s SRV records of %s are left out; correct them there: %s",
                len(faulty),
                self._name,
                why[:400],
            )
        self._dropped = why
        return places_of_srv(records, self._scheme, self._path)

    def __repr__(self) -> str:
        return f"DNS for SRV {self._name}"


class _Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    weight: int | None = None


class StaticFile:
    """Each URL in a JSON file is a place; it is read when it has changed.

        ["http://10.0.0.7:8080", {"url": "http://10.0.0.8:8080", "weight": 3}]

    Args:
        path: of the file.
        fault: says what is wrong with a URL, and what to do; "" for nothing.
    """

    def __init__(self, path: Path, fault: Callable[[str], str] = lambda _: "") -> None:
        self._path = path
        self._fault = fault

    async def read(self) -> Sequence[FoundPlace]:
        """Read the file. Raises DiscoveryError."""
        return self.there()

    def there(self) -> list[FoundPlace]:
        """Return the places in the file.

        Raises:
            DiscoveryError: it is missing, cannot be read, or a place in it is none.
        """
        path = self._path
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise DiscoveryError(f"{path} cannot be read: {error.strerror or error}") from error
        if len(data) > FILE_BYTES_MAX:
            raise DiscoveryError(f"{path} has more than {FILE_BYTES_MAX} bytes; a list of URLs is")
        try:
            listed = msgspec.json.decode(data, type=list[str | _Listed])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DiscoveryError(
                f"{path} is no list of URLs: {error}; write "
                '["http://HOST:PORT", {"url": "http://HOST:PORT", "weight": 3}]'
            ) from error
        places = [
            FoundPlace(each) if isinstance(each, str) else FoundPlace(each.url, each.weight)
            for each in listed
        ]
        for place in places:
            fault = self._fault(place.url)
            if place.weight is not None and place.weight < 1:
                fault = f"its weight is {place.weight}; make it 1 or more, or take it out"
            if fault:
                raise DiscoveryError(f"{path}: {place.url[:80]!r}: {fault}")
        if not places:
            raise DiscoveryError(f"{path} has no URL; write one at least")
        return places

    def __repr__(self) -> str:
        return str(self._path)


async def addresses_of(host: str, port: int) -> list[str]:
    """Return the addresses of a host by the system's resolver, each once.

    Raises:
        OSError: it has none, or nobody answers.
        UnicodeError: it is no name of a host.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    # An address with a zone is of one link alone, and none that a URL could have.
    every = (str(place[0]) for *_, place in found)
    return list(dict.fromkeys(each for each in every if "%" not in each))


async def srv_of(name: str) -> list[SrvRecord]:
    """Return the SRV records of a name, by the servers of `/etc/resolv.conf`.

    Raises:
        DiscoveryError: there are none, or no server answers.
    """
    import dns.asyncresolver
    import dns.exception
    import dns.resolver

    try:
        answer = await dns.asyncresolver.resolve(name, "SRV", lifetime=SRV_WITHIN_S, search=True)
    except dns.resolver.NXDOMAIN as error:
        raise DiscoveryError(f"DNS knows no name {name}; is it spelled right?") from error
    except dns.resolver.NoAnswer as error:
        raise DiscoveryError(
            f"DNS has no SRV records of {name}; is that what is at it, and not addresses?"
        ) from error
    except (dns.exception.DNSException, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DiscoveryError(f"DNS does not answer for SRV {name}: {why}") from error
    return [
        SrvRecord(each.priority, each.weight, each.port, each.target.to_text()) for each in answer
    ]


def check_srv() -> None:
    """Raise MissingExtra where dnspython is not installed."""
    try:
        import dns.asyncresolver  # noqa: F401
    except ImportError as error:
        raise MissingExtra("dns", needed_for="discover = { srv = ... }") from error
