"""Whom a request comes from, also through proxies, and what upstreams are told of it.

A client can write any header. So the fields that say for whom a request was passed on are read from
proxies that are trusted by their address alone, from the right, where each has added what it saw:
the first address that is not a trusted proxy's is the client's. A proxy writes one kind of fields
and may let a client's own of the other kind pass, so that one kind alone is read. What upstreams
get is written anew.

A pure machine. Source: RFC 7239; X-Forwarded-For, -Proto and -Host as proxies are known to use
them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from synchromesh.errors import ConfigError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
ProxyNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
# A field as it came, its name in lower case.
_Raw: TypeAlias = tuple[bytes, bytes]

_FORWARDED, _FOR, _PROTO, _HOST = (
    b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host",
)  # fmt: skip
Kind: TypeAlias = Literal["x-forwarded", "forwarded"]
# The fields that say for whom a request was passed on.
KINDS: Final[Mapping[Kind, frozenset[bytes]]] = {
    "x-forwarded": frozenset({_FOR, _PROTO, _HOST}),
    "forwarded": frozenset({_FORWARDED}),
}
# More of them, names and values together, counts for nothing.
TOLD_BYTES_MAX: Final = 4096
# More hops than this are no chain of proxies.
HOPS_MAX: Final = 32
# So many answers are kept, and none that takes more than these.
_KEPT_MAX: Final = 4096
_KEPT_HOST_BYTES_MAX: Final = 255
_KEPT_TOLD_BYTES_MAX: Final = 1024

_AUTHORITY = re.compile(
    r"[A-Za-z0-9._-]{1,255}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?"
)
_SCHEMES = frozenset({"http", "https"})
_PORT = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE = re.compile(rf"\[([0-9A-Fa-f:.]+)\]{_PORT}|([0-9.]+){_PORT}|([0-9A-Fa-f:.]+)")
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_PAIR = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})")
_BLANKS = re.compile(r"[ \t]*")
_ESCAPED = re.compile(r"\\(.)")


class ClientOrigin(msgspec.Struct, frozen=True, gc=False):
    """Says whom a request comes from.

    Attributes:
        address: of the client, "" where it is not known; the last proxy's where that does not say.
        client: by whom it is counted: the address, of IPv6 its network.
        scheme: which the client used, "http" or "https".
        host: which it asked, with a port where it named one; "" where that is not known.
        lines: what an upstream is told of it, as it stands on the wire.
    """

    address: str
    client: str
    scheme: str
    host: str
    lines: bytes

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Return what an upstream is told of it, field by field."""
        lines = self.lines.decode("ascii").split("\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


class _Said(msgspec.Struct, frozen=True):
    """What the fields say; None where they say nothing."""

    place: _Place | None = None
    scheme: str | None = None
    host: str | None = None


_NOTHING = _Said()
# What is kept by: the address of the peer, the Host, and the fields of one of `KINDS` as they came.
_Key: TypeAlias = tuple[str, bytes, tuple[_Raw, ...]]


def read_proxies(texts: Iterable[object]) -> tuple[ProxyNetwork, ...]:
    """Return trusted proxies, each an address or a network such as "10.0.0.0/8".

    Raises:
        ConfigError: one is neither; the message names them all.

    Example:
        >>> read_proxies(["10.0.0.7", "fd00::/8"])
        (IPv4Network('10.0.0.7/32'), IPv6Network('fd00::/8'))
    """
    found: list[ProxyNetwork] = []
    mistakes: list[str] = []
    for text in texts:
        try:
            if not isinstance(text, str):
                raise ValueError("it is no text")
            network = ipaddress.ip_network(text)
        except ValueError as error:
            mistakes.append(
                f"{str(text)[:60]!r} is no address of a proxy ({error}); write one such as "
                '"10.0.0.7", or a network such as "10.0.0.0/8"'
            )
            continue
        if not network.prefixlen:
            mistakes.append(
                f"{text!r} trusts everybody, and then a client may say that it is any other; "
                "name the addresses of the proxies"
            )
        found.append(network)
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return tuple(found)


class Origins:
    """Tells whom requests come from; what it has found is kept, and bounded.

    Args:
        proxies: whose word is taken.
        by: which fields they write: "x-forwarded" for `X-Forwarded-For`, `-Proto` and `-Host`,
            "forwarded" for `Forwarded`. The others may be a client's own, and are not read.
        scheme: of the gateway's own listener.

    Example:
        >>> origins = Origins(read_proxies(["10.0.0.7"]))
        >>> told = ((b"x-forwarded-for", b"203.0.113.5, 192.0.2.1"),)
        >>> origins.of("10.0.0.7:4711", b"shop", told).address
        '192.0.2.1'
        >>> origins.of("203.0.113.5:80", b"shop", told).address
        '203.0.113.5'
    """

    def __init__(
        self,
        proxies: Sequence[ProxyNetwork] = (),
        *,
        by: Kind = "x-forwarded",
        scheme: str = "http",
    ) -> None:
        self._proxies = tuple(proxies)
        self._scheme = scheme
        self._trusted: dict[str, bool] = {}
        # Read by the fast way; see `key`.
        self.kept: dict[_Key, ClientOrigin] = {}
        # The fields that count, none where nobody is trusted.
        self.told_by: frozenset[bytes] = KINDS[by] if proxies else frozenset()

    def of(self, peer: str, host: bytes, told: tuple[_Raw, ...]) -> ClientOrigin:
        """Return whom a request comes from.

        Args:
            peer: `host:port` of the connection's other end.
            host: the Host field, b"" where there is none.
            told: the fields of `told_by`, in their order.
        """
        key = (peer.rpartition(":")[0], host, told)
        found = self.kept.get(key)
        if found is None:
            found = self._found(*key)
            if len(host) <= _KEPT_HOST_BYTES_MAX and _size(told) <= _KEPT_TOLD_BYTES_MAX:
                if len(self.kept) >= _KEPT_MAX:
                    self.kept.clear()
                self.kept[key] = found
        return found

    def of_request(self, peer: str, headers: Iterable[tuple[str, str]]) -> ClientOrigin:
        """Return whom a request comes from whose fields are at hand as texts of latin-1."""
        wire = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return self.of_pairs(peer, wire)

    def of_pairs(self, peer: str, pairs: Sequence[_Raw]) -> ClientOrigin:
        """Return whom a request comes from whose fields are as they came."""
        host = next((value for name, value in pairs if name == b"host"), b"")
        return self.of(peer, host, tuple(pair for pair in pairs if pair[0] in self.told_by))

    def is_trusted(self, address: str) -> bool:
        """Tell whether an address is that of a trusted proxy."""
        known = self._trusted.get(address)
        if known is None:
            if len(self._trusted) >= _KEPT_MAX:
                self._trusted.clear()
            known = self._trusted[address] = self._is_proxy(_address(address))
        return known

    def counted_for(self, peer: str) -> str:
        """Return for whom a connection is counted: nobody, "", where it is a trusted proxy's."""
        origin = self.of(peer, b"", ())
        return "" if self.is_trusted(origin.address) else origin.client

    def __repr__(self) -> str:
        return f"<Origins behind {', '.join(map(str, self._proxies)) or 'no proxy'}>"

    def _found(self, peer: str, host: bytes, told: tuple[_Raw, ...]) -> ClientOrigin:
        own = peer.partition("%")[0]
        parsed = _address(own)
        if parsed is not None:
            own = str(parsed)
        said, told = _NOTHING, tuple(pair for pair in told if pair[0] in self.told_by)
        is_passed_on = bool(told) and self.is_trusted(own)
        if is_passed_on and _size(told) <= TOLD_BYTES_MAX:
            read = self._by_forwarded if _FORWARDED in self.told_by else self._by_x_fields
            said = read(own, told)
        name = host.decode("latin-1") if said.host is None else said.host
        place = said.place or _Place(own, -1, is_named=not is_passed_on)
        return _origin(
            place,
            self._scheme if said.scheme is None else said.scheme,
            name if _AUTHORITY.fullmatch(name) else "",
        )

    def _is_proxy(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)

    def _by_forwarded(self, peer: str, told: tuple[_Raw, ...]) -> _Said:
        """Return what `Forwarded` says; one that is malformed says nothing."""
        text = ",".join(_values(told, _FORWARDED))
        elements = _elements(text)
        if not elements:
            return _NOTHING
        hops = [element.get("for", "") for element in elements]
        place = self._place(peer, hops)
        element = elements[place.index]
        return _Said(place, _scheme(element.get("proto")), _authority(element.get("host")))

    def _by_x_fields(self, peer: str, told: tuple[_Raw, ...]) -> _Said:
        """Return what `X-Forwarded-For`, `-Proto` and `-Host` say."""
        hops = _listed(told, _FOR)
        schemes, hosts = _listed(told, _PROTO), _listed(told, _HOST)
        place = self._place(peer, hops) if hops else None

        def beside(values: list[str]) -> str | None:
            """What was said with the client's address, where each hop has said something."""
            if not values:
                return None
            is_each = place is not None and len(values) == len(hops)
            return values[place.index if place is not None and is_each else -1]

        return _Said(place, _scheme(beside(schemes)), _authority(beside(hosts)))

    def _place(self, peer: str, hops: Sequence[str]) -> _Place:
        """Return where the client stands in a chain, and its address.

        From the right: what is no address ends the chain, and so does the first hop that is no
        trusted proxy; of a chain of proxies alone the first is the client.
        """
        address, index = peer, len(hops) - 1
        for number in range(len(hops) - 1, max(-1, len(hops) - 1 - HOPS_MAX), -1):
            index, parsed = number, _node(hops[number])
            if parsed is None:
                return _Place(address, index, is_named=False)
            address = str(parsed)
            if not self._is_proxy(parsed):
                return _Place(address, index)
        return _Place(address, index, is_named=index == 0)


class _Place(msgspec.Struct, frozen=True):
    """Where a client stands in a chain; not named is a proxy that stands for it."""

    address: str
    index: int
    is_named: bool = True


def _origin(place: _Place, scheme: str, host: str) -> ClientOrigin:
    address = place.address
    parsed = _address(address)
    told, node = "unknown", "unknown"
    if parsed is not None and place.is_named:
        told = str(parsed)
        node = told if parsed.version == 4 else f'"[{told}]"'
    lines = f"x-forwarded-for: {told}\r\nx-forwarded-proto: {scheme}\r\n"
    forwarded = f"for={node};proto={scheme}"
    if host:
        lines += f"x-forwarded-host: {host}\r\n"
        forwarded += f';host="{host}"'
    lines += f"forwarded: {forwarded}\r\n"
    return ClientOrigin(address, _counted(address, parsed), scheme, host, lines.encode("ascii"))


def _counted(address: str, parsed: Address | None) -> str:
    """Return what a client cannot change at will: of IPv6 that is the network."""
    if parsed is None or parsed.version == 4:
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))


def _size(told: Iterable[_Raw]) -> int:
    return sum(len(name) + len(value) for name, value in told)


def _values(told: Iterable[_Raw], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in told if key == name]


def _listed(told: Iterable[_Raw], name: bytes) -> list[str]:
    """Return the members of a list, which may come in several fields."""
    parts = (part.strip(" \t") for value in _values(told, name) for part in value.split(","))
    return [part for part in parts if part]


def _elements(text: str) -> list[dict[str, str]]:
    """Return the elements of `Forwarded`, names in lower case; none where it is malformed.

    Each character is looked at so many times and no more, whatever the text.
    """
    found: list[dict[str, str]] = []
    element: dict[str, str] = {}
    at = 0
    while True:
        at = _past_blanks(text, at)
        matched = _PAIR.match(text, at)
        if matched is not None:
            name, value = matched[1].lower(), matched[2]
            if name in element:
                return []
            element[name] = _ESCAPED.sub(r"\1", value[1:-1]) if value[0] == '"' else value
            # Blanks around a semicolon are not in the grammar, and are sent all the same.
            at = _past_blanks(text, matched.end())
        mark = text[at : at + 1]
        if mark != ";":
            if element:
                found.append(element)
            if mark != ",":
                return [] if mark else found
            element = {}
        at += 1


def _past_blanks(text: str, at: int) -> int:
    matched = _BLANKS.match(text, at)
    assert matched is not None, "it matches nothing, too"
    return matched.end()


def _node(text: str) -> Address | None:
    """Return the address of a hop, with or without a port; None for one that is hidden or wrong."""
    matched = _NODE.fullmatch(text)
    if matched is None:
        return None
    return _address(matched[1] or matched[2] or matched[3])


def _address(text: str) -> Address | None:
    """Return an address; one of IPv4 that is written as IPv6 is the IPv4 that it is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _scheme(text: str | None) -> str | None:
    lowered = None if text is None else text.lower()
    return lowered if lowered in _SCHEMES else None


def _authority(text: str | None) -> str | None:
    return text if text is not None and _AUTHORITY.fullmatch(text) else None
