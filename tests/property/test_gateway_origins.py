"""Chains of proxies: whatever a client writes, it is who its proxy saw."""

from __future__ import annotations

import ipaddress

from hypothesis import assume, given
from hypothesis import strategies as st

from synchromesh.gateway.origin import KINDS, Kind, Origins, _elements, read_proxies

TOLD_BY: frozenset[bytes] = frozenset().union(*KINDS.values())
TRUSTED = read_proxies(["10.0.0.0/8", "fd00::/8"])
PROXIES = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"), st.ip_addresses(network="fd00::/8")
)  # fmt: skip
CLIENTS = st.ip_addresses().filter(
    lambda address: (
        not any(address in network for network in TRUSTED)
        and not (address.version == 6 and address.ipv4_mapped)
    )
)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = st.integers(0, 65_535).map(str)
# What a client may write into a list without ending it; quotes make a `Forwarded` malformed.
GARBAGE = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'))


@st.composite
def hops(draw: st.DrawFn, address: Address) -> str:
    """An address as `X-Forwarded-For` may have it."""
    if address.version == 4:
        return draw(st.sampled_from([str(address), f"{address}:{draw(PORTS)}"]))
    spelt = draw(st.sampled_from([str(address), address.exploded, str(address).upper()]))
    return draw(st.sampled_from([spelt, f"[{spelt}]", f"[{spelt}]:{draw(PORTS)}"]))


@st.composite
def elements(draw: st.DrawFn, address: Address) -> str:
    """An address as `Forwarded` may have it, among other pairs."""
    node = str(address) if address.version == 4 else f"[{address}]"
    if draw(st.booleans()):
        node = f"{node}:{draw(PORTS)}"
    is_bare = address.version == 4 and ":" not in node
    value = node if is_bare and draw(st.booleans()) else f'"{node}"'
    name = draw(st.sampled_from(["for", "For", "FOR"]))
    others = draw(st.lists(st.sampled_from(["proto=https", "by=_p"]), unique=True))
    return ";".join(draw(st.permutations([f"{name}={value}", *others])))


@given(st.data(), CLIENTS, st.lists(PROXIES, max_size=4), PROXIES, st.booleans())
def test_a_client_is_whom_its_proxy_saw(
    data: st.DataObject, client: Address, between: list[Address], peer: Address, is_forwarded: bool
) -> None:
    """Whatever stands left of it, and however the hops are written."""
    written = elements if is_forwarded else hops
    chain = [data.draw(written(address)) for address in (client, *between)]
    forged = data.draw(st.lists(written(data.draw(CLIENTS | PROXIES)), max_size=3))
    if not is_forwarded:
        forged += [part for text in data.draw(st.lists(GARBAGE)) for part in text.split(",")]
    by: Kind = "forwarded" if is_forwarded else "x-forwarded"
    name = b"forwarded" if is_forwarded else b"x-forwarded-for"
    comma = data.draw(st.sampled_from([",", ", ", " ,\t"]))
    value = comma.join([*forged, *chain]).encode()
    assume(len(value) < 4000)
    origins = Origins(TRUSTED, by=by)
    assert origins.of(f"{peer}:80", b"h", ((name, value),)).address == str(client)
    assert origins.of(f"{client}:80", b"h", ((name, value),)).address == str(client)


@given(
    st.sampled_from(["10.0.0.1:80", "192.0.2.1:80", "box:1", ""]),
    st.binary(max_size=40),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(TOLD_BY)),
            st.one_of(
                st.binary(max_size=60),
                st.text('for="\\;, []:.0127fd_', max_size=60).map(str.encode),
            ),
        ),
        max_size=5,
    ),
    st.sampled_from(sorted(KINDS)),
)
def test_nothing_that_is_written_breaks_it(
    peer: str, host: bytes, told: list[tuple[bytes, bytes]], by: Kind
) -> None:
    """Every line that an upstream is told is one field with a value of our own alphabet."""
    found = Origins(TRUSTED, by=by).of(peer, host, tuple(told))
    assert found.scheme in {"http", "https"}
    lines = found.lines.split(b"\r\n")
    assert lines.pop() == b""
    names = [line.partition(b": ")[0] for line in lines]
    assert set(names) <= TOLD_BY
    assert len(names) == len(set(names)) >= 3
    assert found.lines.isascii()
    assert not {*b"\r\n"} & {*b"".join(lines)}
    for name, value in found.fields:
        if name == "x-forwarded-for" and value != "unknown":
            assert str(ipaddress.ip_address(value)) == value


WORDS = st.text("abz09!#$%&'*+.^_`|~-", min_size=1, max_size=8)
BLANKS = st.text(" \t", max_size=4)
QUOTED = st.text('ab ,;=()"\\\t', max_size=8)
PAIRS = st.dictionaries(WORDS, WORDS | QUOTED, max_size=4)


@given(st.data(), st.lists(PAIRS, max_size=4))
def test_forwarded_is_read_as_it_was_written(
    data: st.DataObject, elements: list[dict[str, str]]
) -> None:
    """Quoted where it must be and elsewhere, with blanks and semicolons that say nothing."""

    def written(name: str, value: str) -> str:
        is_word = bool(value) and not set(value) & set('ab ,;=()"\\\t') - set("ab")
        if is_word and data.draw(st.booleans()):
            return f"{name}={value}"
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{name}="{escaped}"'

    def spaced(mark: str) -> str:
        return f"{data.draw(BLANKS)}{mark}{data.draw(BLANKS)}"

    parts: list[str] = []
    for element in elements:
        pairs = [written(name, value) for name, value in element.items()]
        parts.append("".join(f"{pair}{spaced(';')}" for pair in pairs))
    text = "".join(f"{part}{spaced(',')}" for part in parts)
    assert _elements(text) == [element for element in elements if element]
    assert _elements(f"{text}(") == []
    assert _elements(f'{text}a="') == []


@given(CLIENTS, CLIENTS, PROXIES, st.booleans())
def test_the_other_kind_is_never_heard(
    one: Address, other: Address, peer: Address, is_forwarded: bool
) -> None:
    """Whatever a client writes there, it is whom its proxy saw."""
    node = str(other) if other.version == 4 else f'"[{other}]"'
    told = ((b"x-forwarded-for", str(one).encode()), (b"forwarded", f"for={node}".encode()))
    origins = Origins(TRUSTED, by="forwarded" if is_forwarded else "x-forwarded")
    expected = str(other if is_forwarded else one)
    assert origins.of(f"{peer}:80", b"h", told).address == expected
