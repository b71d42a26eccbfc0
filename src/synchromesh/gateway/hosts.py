"""Routes by host: which of them a request may have, by the host that it asks. A pure table.

The host decides first, and then the path: the routes of that very host, then those of the patterns
that it fits, the longest first, and then those without a host. So what one host has no route for is
answered as on any other.

Source: RFC 9110, sections 4.2.3 and 7.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.http import HttpRequest, RawPair

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_HOST: Final = b"host"
ANY_BELOW: Final = "*."


def is_host_pattern(text: str) -> bool:
    """Tell whether a text is a host in lower case, or `*.` and one, for all that are below it.

    Example:
        >>> [is_host_pattern(text) for text in ("a.example", "*.example", "a.example:80")]
        [True, True, False]
    """
    return len(text) <= 253 and _PATTERN.fullmatch(text) is not None


def hosts_meet(one: str, other: str) -> bool:
    """Tell whether a request can ask a host that has both; "" is every host.

    Example:
        >>> hosts_meet("a.example", "*.example"), hosts_meet("a.example", "b.example")
        (True, False)
    """
    if not one or not other or one == other:
        return True
    return _fits(one, other) or _fits(other, one)


def host_of(pairs: Iterable[RawPair]) -> str:
    """Return the host that a request asks, in lower case and without a port; "" for none.

    Example:
        >>> host_of([(b"accept", b"*/*"), (b"host", b"Shop.Example.:8443")])
        'shop.example'
    """
    return plain_host(
        next((value for name, value in pairs if name == _HOST), b"").decode("latin-1")
    )


def plain_host(text: str) -> str:
    """Return what a Host names, in lower case and without a port."""
    if not text.startswith("["):  # an address of IPv6 has no patterns
        text = text.partition(":")[0]
    return text.lower().removesuffix(".")


@dataclass(frozen=True, slots=True, eq=False)
class HostRoutes:
    """The routes that a request to one host may have, the closest first.

    Attributes:
        tables: those of the host or a pattern each, and last those without one.
        entries: all of them.
        closest: those of the first table.
    """

    tables: tuple[Routes[CompiledRoute], ...]
    entries: Sequence[CompiledRoute]
    closest: Sequence[CompiledRoute]

    def find(self, method: str, path: str, raw: str = "") -> Match[CompiledRoute] | NoMatch:
        """Find the route of a request, as `Routes.find` does; a closer host goes first."""
        allowed: set[str] = set()
        for table in self.tables:
            found = table.find(method, path, raw)
            if isinstance(found, Match):
                return found
            allowed.update(found.allowed)
        return NoMatch(tuple(sorted(allowed)))


def table_of(entries: Iterable[CompiledRoute]) -> Routes[CompiledRoute]:
    """Return what finds routes by method and path, whatever their hosts."""
    table: Routes[CompiledRoute] = Routes(has_empty_places=False)
    for entry in entries:
        table.add(entry.template.method, entry.template.path, entry)
    return table


class Hosts:
    """Finds the routes of a host.

    Args:
        entries: the routes of a gateway, some of them with a host.

    Attributes:
        every: what there is to be found, one for each host and pattern, and one for all others.
    """

    def __init__(self, entries: Sequence[CompiledRoute]) -> None:
        groups: dict[str, list[CompiledRoute]] = {"": []}
        for entry in entries:
            groups.setdefault(entry.host, []).append(entry)
        tables = {host: table_of(own) for host, own in groups.items()}
        self._by_pattern: dict[str, HostRoutes] = {}
        for pattern in groups:
            fitting = sorted((each for each in groups if _fits(pattern, each)), key=len)
            chain = list(dict.fromkeys((pattern, *reversed(fitting), "")))
            self._by_pattern[pattern] = HostRoutes(
                tuple(tables[each] for each in chain),
                tuple(entry for each in chain for entry in groups[each]),
                tuple(groups[pattern]),
            )

    @property
    def every(self) -> Sequence[HostRoutes]:
        """What there is to be found."""
        return tuple(self._by_pattern.values())

    def of(self, host: str) -> HostRoutes:
        """Return the routes of a host, as `host_of` tells it."""
        found = self._by_pattern.get(host)
        if found is None and ".." not in f".{host}":  # an empty label is below nothing
            _, dot, rest = host.partition(".")
            while found is None and dot:
                found = self._by_pattern.get(ANY_BELOW + rest)
                _, dot, rest = rest.partition(".")
        return found or self._by_pattern[""]

    def asked(self, request: HttpRequest) -> HostRoutes:
        """Return the routes of the host that a request asks."""
        return self.of(plain_host(request.headers.get("host", "")))

    def __repr__(self) -> str:
        return f"<Hosts {', '.join(filter(None, self._by_pattern))}>"


def _fits(host: str, pattern: str) -> bool:
    """Tell whether what has a host, or a longer pattern, is below a pattern."""
    return pattern.startswith(ANY_BELOW) and host != pattern and host.endswith(pattern[1:])
