"""Whom a request comes from: what counts, from whom, and what upstreams are told."""

from __future__ import annotations

import pytest

from synchromesh.errors import ConfigError
from synchromesh.gateway.origin import (
    HOPS_MAX,
    KINDS,
    TOLD_BYTES_MAX,
    ClientOrigin,
    Kind,
    Origins,
    read_proxies,
)

PROXY, CLIENT = "10.0.0.7", "203.0.113.5"
TRUSTED = read_proxies([PROXY, "10.1.0.0/16", "fd00::/8"])


def of(
    told: dict[str, str] | list[tuple[str, str]],
    peer: str = f"{PROXY}:4711",
    by: Kind = "x-forwarded",
) -> ClientOrigin:
    pairs = told.items() if isinstance(told, dict) else told
    wire = tuple((name.encode(), value.encode("latin-1")) for name, value in pairs)
    return Origins(TRUSTED, by=by).of(peer, b"gate:8080", wire)


def xff(value: str) -> str:
    return of({"x-forwarded-for": value}).address


def forwarded(value: str) -> str:
    return of({"forwarded": value}, by="forwarded").address


CHAINS = {
    "one": (CLIENT, CLIENT),
    "what a client has made up stands left of it": (f"192.0.2.1, {CLIENT}", CLIENT),
    "over other trusted proxies": (f"192.0.2.1, {CLIENT}, 10.1.2.3, fd00::1", CLIENT),
    "trusted proxies alone": ("10.1.2.3, 10.1.2.4", "10.1.2.3"),
    "with a port": (f"{CLIENT}:5671", CLIENT),
    "IPv6": ("2001:db8::7", "2001:db8::7"),
    "IPv6 in full": ("2001:0DB8:0:0:0:0:0:7", "2001:db8::7"),
    "IPv6 in brackets": ("[2001:db8::7]", "2001:db8::7"),
    "IPv6 with a port": ("[2001:db8::7]:443", "2001:db8::7"),
    "IPv4 as IPv6": (f"::ffff:{CLIENT}", CLIENT),
    "a proxy as IPv6": (f"{CLIENT}, ::ffff:10.1.2.3", CLIENT),
    "blanks and empty members": (f" ,, \t{CLIENT} ,", CLIENT),
    "unknown": ("unknown", PROXY),
    "what is behind unknown": (f"{CLIENT}, unknown, 10.1.2.3", "10.1.2.3"),
    "no address": ("nobody", PROXY),
    "a zone": ("fe80::1%eth0", PROXY),
    "leading zeros": ("203.0.113.05", PROXY),
    "a port that is none": (f"{CLIENT}:123456", PROXY),
    "nothing": ("", PROXY),
    "a network": ("203.0.113.0/24", PROXY),
}


@pytest.mark.parametrize(("value", "address"), CHAINS.values(), ids=CHAINS.keys())
def test_the_first_hop_from_the_right_that_is_no_trusted_proxy_counts(
    value: str, address: str
) -> None:
    """What cannot be told is whoever said so: no client chooses by it who it is."""
    assert xff(value) == address


ELEMENTS = {
    "one": (f"for={CLIENT}", CLIENT),
    "a quoted one": (f'for="{CLIENT}"', CLIENT),
    "a quoted port": (f'for="{CLIENT}:80"', CLIENT),
    "IPv6": ('for="[2001:db8::7]:4711"', "2001:db8::7"),
    "any case, any order": (f'By=10.1.1.1;PROTO=http;FOR="{CLIENT}"', CLIENT),
    "a chain": (f'for=192.0.2.1, for={CLIENT};proto=https, for="[fd00::1]"', CLIENT),
    "an obfuscated port": (f'for="{CLIENT}:_a1"', CLIENT),
    "an escape": ('for="203.0\\.113.5";host="a\\"b"', CLIENT),
    "a comma in quotes": (f'for=192.0.2.1;x="a, for=192.0.2.9", for={CLIENT}', CLIENT),
    "blanks around semicolons": (f"for={CLIENT} ; proto=https; by=_x", CLIENT),
    "unknown": ("for=unknown", PROXY),
    "hidden": (f"for={CLIENT}, for=_gazonk", PROXY),
    "nobody for whom": ("proto=https", PROXY),
    "IPv6 without quotes": ("for=[2001:db8::7]", PROXY),
    "for twice": (f"for=192.0.2.1;for={CLIENT}", PROXY),
    "a quote that is left open": (f'for="{CLIENT}', PROXY),
    "a quote that a client has left open": (f'for="192.0.2.1, for={CLIENT}', PROXY),
    "more behind a quote": (f'for="{CLIENT}"x', PROXY),
    "no pair": (f"for={CLIENT}, nonsense", PROXY),
    "nothing": ("", PROXY),
}


@pytest.mark.parametrize(("value", "address"), ELEMENTS.values(), ids=ELEMENTS.keys())
def test_forwarded_is_read_as_its_grammar_says(value: str, address: str) -> None:
    """Quoted or not, in any case; what is malformed counts wholly for nothing (RFC 7239)."""
    assert forwarded(value) == address


@pytest.mark.parametrize("peer", ["203.0.113.9:80", "10.2.0.1:80", "2001:db8::1:80", "", "box:80"])
def test_nobody_else_is_believed(peer: str) -> None:
    """Of a peer that is no trusted proxy the fields say nothing, not even a scheme."""
    told = {
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "evil",
        "forwarded": "for=192.0.2.1;proto=https;host=evil",
    }
    for by in KINDS:
        found = of(told, peer, by)
        assert found.address == peer.rpartition(":")[0]
        assert (found.scheme, found.host) == ("http", "gate:8080")


@pytest.mark.parametrize("peer", [f"::ffff:{PROXY}:80", "fd00::99:80", "fd00::99%eth0:80"])
def test_a_proxy_is_known_however_its_address_is_written(peer: str) -> None:
    """A socket of both families writes IPv4 as IPv6, and may name a zone."""
    assert of({"x-forwarded-for": CLIENT}, peer).address == CLIENT


def test_scheme_and_host_are_those_that_the_client_used() -> None:
    """Beside the client's address where each hop said one, else as the proxy said last."""
    assert (of({}).scheme, of({}).host) == ("http", "gate:8080")
    found = of({"x-forwarded-proto": "HTTPS", "x-forwarded-host": "shop.example:8443"})
    assert (found.address, found.scheme, found.host) == (PROXY, "https", "shop.example:8443")
    chain = {
        "x-forwarded-for": f"192.0.2.1, {CLIENT}, 10.1.0.1",
        "x-forwarded-proto": "http, https, http",
        "x-forwarded-host": "evil, shop.example, inner",
    }
    found = of(chain)
    assert (found.scheme, found.host) == ("https", "shop.example")
    found = of(chain | {"x-forwarded-proto": "https", "x-forwarded-host": "evil, inner"})
    assert (found.scheme, found.host) == ("https", "inner")
    value = f'for=192.0.2.1;proto=http, for={CLIENT};proto=https;host="a.b:1"'
    found = of({"forwarded": value}, by="forwarded")
    assert (found.scheme, found.host) == ("https", "a.b:1")


@pytest.mark.parametrize("value", ["javascript", "wss", "", "http\x00", "https,"])
def test_a_scheme_or_host_that_is_none_counts_for_nothing(value: str) -> None:
    """It is the listener's own then, and the Host that was asked."""
    found = of({"x-forwarded-proto": f"{value} x", "x-forwarded-host": f"{value}<x>"})
    assert (found.scheme, found.host) == ("http", "gate:8080")


OWN = {
    "another address": "for=192.0.2.1;proto=ftp",
    "the same address": f"for={CLIENT};host=evil.example;proto=http",
    "a host alone": "host=evil.example",
    "nonsense": "x",
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN.keys())
def test_a_clients_own_field_of_the_other_kind_says_nothing(own: str) -> None:
    """Its proxy lets it pass; it can neither add to what the proxy says, nor take from it."""
    said = {"x-forwarded-for": CLIENT, "x-forwarded-proto": "https"}
    assert of(said | {"forwarded": own}) == of(said)
    assert of({"forwarded": own}) == of({})
    other = {"x-forwarded-for": "192.0.2.1", "x-forwarded-host": "evil.example"}
    for_it = {"forwarded": f"for={CLIENT};proto=https"}
    assert of(other | for_it, by="forwarded") == of(for_it, by="forwarded")


HIDDEN: dict[str, tuple[Kind, str]] = {
    "unknown": ("x-forwarded", "unknown"),
    "no address": ("x-forwarded", f"{CLIENT}, nobody"),
    "unknown behind another proxy": ("x-forwarded", f"{CLIENT}, unknown, 10.1.2.3"),
    "a chain without an end": ("x-forwarded", ", ".join([CLIENT, *["10.1.0.1"] * HOPS_MAX])),
    "more than is read": ("x-forwarded", f"{'1.1.1.1, ' * 500}{CLIENT}"),
    "hidden": ("forwarded", "for=_gazonk"),
    "malformed": ("forwarded", f"for={CLIENT};("),
    "nobody for whom": ("forwarded", "proto=https"),
}


@pytest.mark.parametrize(("by", "value"), HIDDEN.values(), ids=HIDDEN.keys())
def test_upstreams_are_not_told_that_a_proxy_is_the_client(by: Kind, value: str) -> None:
    """Its address is the inside's; where the client is not named it is unknown."""
    found = of({"x-forwarded-for" if by == "x-forwarded" else "forwarded": value}, by=by)
    assert found.fields[0] == ("x-forwarded-for", "unknown")
    assert found.fields[-1][1].startswith("for=unknown;")
    assert b"10." not in found.lines
    assert found.client.startswith("10.")
    # What asks by itself is the client, and so is the first of a chain of proxies alone.
    assert of({}, by=by).fields[0] == ("x-forwarded-for", PROXY)
    assert of({"x-forwarded-for": "10.1.2.3"}).fields[0] == ("x-forwarded-for", "10.1.2.3")


HOSTILE = {
    "semicolons": "a=b" + "; " * 1500 + "(",
    "semicolons without blanks": ";" * 4000 + "(",
    "blanks behind a comma": "a=b," + " " * 4000 + "(",
    "blanks behind a pair": "a=b" + " \t" * 1900 + "(",
    "commas": ", " * 2000 + "(",
    "pairs": "for=a;" * 600 + "(",
    "a word": "a" * 4000,
    "an open quote": 'for="' + "\\a" * 1900,
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_client_makes_up_costs_little(value: str) -> None:
    """Read by backtracking some of these would not end: the time doubled with each semicolon."""
    assert len(value) < TOLD_BYTES_MAX - 10
    assert forwarded(value) == PROXY
    # All the same without its mistake, and with what counts at its end.
    whole = value.removesuffix("(")
    if whole != value and "for" not in value:
        assert forwarded(f"{whole},for={CLIENT}") == CLIENT


def test_what_is_too_long_counts_for_nothing() -> None:
    """Names and values together, over several fields."""
    room = TOLD_BYTES_MAX - len("x-forwarded-for") * 2 - len(CLIENT)
    fits = [("x-forwarded-for", "1" * room), ("x-forwarded-for", CLIENT)]
    assert of(fits).address == CLIENT
    assert of([("x-forwarded-for", "1" * (room + 1)), fits[1]]).address == PROXY
    # A client's own of the other kind does not count against it.
    assert of([*fits, ("forwarded", "x" * 30_000)]).address == CLIENT


def test_a_field_may_come_in_parts() -> None:
    """Several fields are one list, in their order."""
    told = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", f"{CLIENT}, 10.1.0.1")]
    assert of(told).address == CLIENT
    parts = [("forwarded", "for=192.0.2.1"), ("forwarded", f"for={CLIENT}")]
    assert of(parts, by="forwarded").address == CLIENT


def test_a_chain_is_followed_so_far() -> None:
    """Who writes thousands of trusted hops makes nobody walk them."""
    hops = [CLIENT, *(["10.1.0.1"] * HOPS_MAX)]
    assert xff(", ".join(hops)) == "10.1.0.1"
    assert xff(", ".join(hops[:HOPS_MAX])) == CLIENT


def test_upstreams_are_told_anew() -> None:
    """One address, one scheme and one host, in both kinds of fields; nothing that came passes."""
    found = of({"x-forwarded-for": f"evil, {CLIENT}", "x-forwarded-proto": "https"})
    assert found.fields == [
        ("x-forwarded-for", CLIENT),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gate:8080"),
        ("forwarded", f'for={CLIENT};proto=https;host="gate:8080"'),
    ]
    six = of({"x-forwarded-for": "2001:db8::7"})
    assert six.fields[0] == ("x-forwarded-for", "2001:db8::7")
    assert six.fields[-1][1].startswith('for="[2001:db8::7]";proto=http;')
    nobody = Origins().of("", b"", ())
    assert nobody.lines == (
        b"x-forwarded-for: unknown\r\nx-forwarded-proto: http\r\n"
        b"forwarded: for=unknown;proto=http\r\n"
    )
    assert Origins(scheme="https").of("", b"", ()).scheme == "https"


def test_a_client_is_counted_by_what_it_cannot_change() -> None:
    """Of IPv6 that is the network, for a client has many addresses there."""
    assert of({"x-forwarded-for": CLIENT}).client == CLIENT
    assert of({"x-forwarded-for": "2001:db8::7"}).client == "2001:db8::/64"
    assert Origins().of("box:80", b"", ()).client == "box"


def test_what_is_kept_is_bounded() -> None:
    """Clients come and go; each is found again."""
    origins = Origins(read_proxies([PROXY]))
    for number in range(10_000):
        told = ((b"x-forwarded-for", b"192.0.2.%d:%d" % (number % 250, number)),)
        assert origins.of(f"{PROXY}:1", b"h", told).address == f"192.0.2.{number % 250}"
        assert not origins.is_trusted(f"192.0.2.{number}")
    assert len(origins.kept) <= 4096
    assert len(origins._trusted) <= 4096


def test_what_is_large_is_not_kept() -> None:
    """One client would fill the memory by it; it is answered all the same."""
    origins = Origins(TRUSTED)
    told = ((b"x-forwarded-for", CLIENT.encode()),)
    for number in range(20):
        host, padding = b"h%d" % number, b"1" * 1000 + b"%d, " % number
        assert origins.of(f"{PROXY}:1", host * 128, told).address == CLIENT
        large = ((b"x-forwarded-for", padding + CLIENT.encode()),)
        assert origins.of(f"{PROXY}:1", host, large).address == CLIENT
    assert not origins.kept
    origins.of(f"{PROXY}:1", b"h" * 255, told)
    assert len(origins.kept) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proxy.local", "'proxy.local' is no address of a proxy"),
        ("10.0.0.1/8", "has host bits set"),
        ("10.0.0.0/33", "is no address"),
        ("0.0.0.0/0", "trusts everybody"),
        ("::/0", "trusts everybody"),
        ("", "is no address"),
        (7, "it is no text"),
    ],
)
def test_a_proxy_that_is_none_is_named(text: object, words: str) -> None:
    """With what is wrong, and with all the others that are."""
    with pytest.raises(ConfigError) as refused:
        read_proxies([text, "nonsense", PROXY])
    assert words in refused.value.message
    assert "'nonsense'" in refused.value.message
    assert PROXY not in refused.value.message.replace('such as "10.0.0.7"', "")
