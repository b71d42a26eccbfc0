"""What is found of a service that nobody registers: by DNS, or in a file.

What was found last stays listed, marked stale, where nothing can be read and where nothing is in
it: that the source is wrong is likelier than that all have gone at once, and where they have, there
is nothing to lose. A pure machine.

Source: RFC 2782 (SRV: priorities and weights).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.errors import DiscoveryError

FOUND_MAX = 256
PORT_MAX = 65_535

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NAME_MAX = 253


def is_host_name(text: str) -> bool:
    """Tell whether a URL may have a text as its host: a name, or an address of IPv4.

    Example:
        >>> is_host_name("a.internal."), is_host_name("a/b"), is_host_name("me@a")
        (True, False, False)
    """
    return len(text) <= _NAME_MAX and _NAME.fullmatch(text) is not None


class FoundPlace(NamedTuple):
    """One place: its URL, and its share of the calls where the source gives one."""

    url: str
    weight: int | None = None


class SrvRecord(NamedTuple):
    """An SRV record: where a service is, of which priority, and its share of those."""

    priority: int
    weight: int
    port: int
    target: str

    @property
    def fault(self) -> str:
        """Why no URL can be made of it, in words; "" where one can, or where it names nobody."""
        if self.is_nobody:
            return ""
        if not is_host_name(self.target):
            return "its target is no name of a host"
        return "" if 1 <= self.port <= PORT_MAX else f"its port is none of 1 to {PORT_MAX}"

    @property
    def is_nobody(self) -> bool:
        """Whether it says that the service is decidedly not there: a single "." (RFC 2782)."""
        return self.target in (".", "")


class FoundList:
    """Keeps the list of one service by what a reader finds.

    Args:
        service: whose list it is.
        found_max: of more places none is taken.

    Attributes:
        why_stale: why the last reading came to nothing; "" where it did not.

    Example:
        >>> found = FoundList("stock")
        >>> found.take([FoundPlace("http://10.0.0.7:8080")])
        True
        >>> found.fail("no answer"), found.take([])
        (True, False)
        >>> found.resolved.is_stale, [each.url for each in found.resolved.endpoints]
        (True, ['http://10.0.0.7:8080'])
    """

    def __init__(self, service: str, *, found_max: int = FOUND_MAX) -> None:
        self.service = service
        self.why_stale = ""
        self._found_max = found_max
        self._endpoints: tuple[Endpoint, ...] = ()

    @property
    def resolved(self) -> Resolved:
        """The list.

        Raises:
            DiscoveryError: nothing was ever found.
        """
        if not self._endpoints:
            why = self.why_stale or "it has not been read yet"
            raise DiscoveryError(f"it is not known where {self.service!r} is: {why}")
        return Resolved(self._endpoints, is_stale=bool(self.why_stale))

    @property
    def is_empty(self) -> bool:
        """True until something was found."""
        return not self._endpoints

    def take(self, places: Iterable[FoundPlace]) -> bool:
        """Take over what was found; return whether the list is another one, or stale or not."""
        weights = {each.url: each.weight for each in places}
        if not weights:
            return self.fail("nothing is there")
        if len(weights) > self._found_max:
            return self.fail(f"{len(weights)} are there, and may be {self._found_max} at most")
        endpoints = tuple(
            Endpoint(f"{self.service}#{url.partition('://')[2]}", self.service, url, weight=weight)
            for url, weight in sorted(weights.items())
        )
        is_other = endpoints != self._endpoints or bool(self.why_stale)
        self._endpoints, self.why_stale = endpoints, ""
        return is_other

    def fail(self, why: str) -> bool:
        """Note that nothing was found; return whether it was not so before."""
        is_other = not self.why_stale
        self.why_stale = why
        return is_other

    def __repr__(self) -> str:
        state = "stale" if self.why_stale else "fresh"
        return f"<FoundList {self.service}: {len(self._endpoints)}, {state}>"


def places_of_srv(records: Iterable[SrvRecord], scheme: str, path: str = "") -> list[FoundPlace]:
    """Return the places that SRV records name: those of the best priority, by their weights.

    Weights that are all alike say nothing, so that calls go to who answers sooner. A weight of 0
    is the least share that there is. A record with a fault is passed over: whoever writes records
    says a host and a port, and not which path of which other host a call goes to.

    Example:
        >>> here, there = SrvRecord(1, 5, 80, "a."), SrvRecord(2, 5, 80, "b.")
        >>> places_of_srv([here, there, here._replace(weight=0, port=81)], "http", "/v1")
        [FoundPlace(url='http://a:80/v1', weight=5), FoundPlace(url='http://a:81/v1', weight=1)]
        >>> places_of_srv([here._replace(target="."), here._replace(target="c/d?")], "http")
        []
    """
    there = [each for each in records if not each.is_nobody and not each.fault]
    best = min((each.priority for each in there), default=0)
    first = [each for each in there if each.priority == best]
    is_even = len({each.weight for each in first}) < 2
    return [
        FoundPlace(
            f"{scheme}://{each.target.rstrip('.').lower()}:{each.port}{path}",
            None if is_even else max(1, each.weight),
        )
        for each in first
    ]
