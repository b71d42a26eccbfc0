"""The reference page of a gateway: plain HTML, whatever its texts are."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from typing import Protocol
from urllib.parse import unquote

import pytest
from gateway import gateway as servo_works
from msgspec import Struct

import gateway_fakes
from kinds_app import GATEWAY
from synchromesh import Aggregate, Branch, Contract, Gateway, Rate, Route, query
from synchromesh.errors import Rejection
from synchromesh.gateway import Cache, Each, OpenApi, check
from synchromesh.gateway.reference import POLICY, reference_page
from unit.test_openapi import document_of

HOSTILE = "</style></p><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & 'x' \\ ]]>"


class Seen(HTMLParser):
    """Keeps the tags and the attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.style = ""
        self.inside = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.inside = tag
        if tag != "meta":
            self.open.append(tag)
        # A paragraph holds words alone: a browser would close it before anything else.
        assert "p" not in self.open[:-1] or tag in {"a", "code", "span", "b"}, self.open
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.style += data
            self.inside = ""


def seen(page: bytes) -> Seen:
    """Read a page as a browser would."""
    parser = Seen()
    parser.feed(page.decode())
    parser.close()
    return parser


class Nasty(Rejection, code="nasty", status=410):
    __doc__ = HOSTILE


class Odd(Struct):
    __doc__ = HOSTILE
    text: str = HOSTILE


class Hostile(Contract, Protocol, service="hostile", version="1.0"):
    @query("GET /odd", raises=(Nasty,))
    async def odd(self, text: str = HOSTILE) -> Odd: ...


Hostile.odd.stub.__doc__ = f"{HOSTILE}\n\n{HOSTILE}"


@pytest.mark.parametrize("gateway", [servo_works, GATEWAY], ids=["servo-works", "every kind"])
def test_the_page_is_plain_and_whole(gateway: Gateway) -> None:
    """Every link leads to a part of it; its one style is the one that its policy names."""
    page = reference_page(document_of(gateway))
    found = seen(page)
    assert len(page) < 200_000
    assert found.open == []
    assert not found.tags & {"script", "link", "iframe", "img", "object", "form", "base"}
    assert found.attributes <= {"lang", "charset", "name", "content", "class", "id", "href",
                                "aria-label"}  # fmt: skip
    assert len(found.ids) == len(set(found.ids))
    assert {unquote(link) for link in found.links} <= {f"#{name}" for name in found.ids}
    hashed = b64encode(sha256(found.style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{hashed}'" in POLICY
    assert "prefers-color-scheme:dark" in found.style
    assert all(route.route.split(" ")[1] in page.decode() for route in gateway.routes)


def test_a_type_is_shown_by_its_own_name() -> None:
    """A generic one with its arguments; where it is defined stands at the type itself."""
    page = reference_page(document_of(GATEWAY)).decode()
    assert '<a href="#type-kinds_app.Page-of-kinds_app.Tree">Page-of-Tree</a>' in page
    assert '<a href="#type-kinds_app.Found">Found</a>' in page


def test_hostile_texts_stay_texts() -> None:
    """Docstrings, titles and defaults may hold anything: no tag comes of it."""
    about = OpenApi(title=HOSTILE, version=HOSTILE, description=HOSTILE, public=True)
    gateway = Gateway(routes=[Route("GET /odd", Hostile.odd, public=True)], openapi=about)
    assert check(gateway) == ()
    page = reference_page(document_of(gateway))
    plain = reference_page(document_of(Gateway(routes=gateway.routes, openapi=replace(
        about, title="t", version="v", description="d"))))  # fmt: skip
    found = seen(page)
    assert not found.tags & {"script", "img"}
    assert "onerror" not in found.attributes
    assert found.tags == seen(plain).tags
    assert page.count(b"&lt;script&gt;") >= 8


def test_a_page_shows_what_is_kept_and_what_is_asked_for_each() -> None:
    """An answer may be without a body, and an array have parts that are picked."""
    pick = {"city": "site.city"}
    names = Branch(gateway_fakes.Fleet.names, required=True)
    machines = Branch(
        gateway_fakes.Fleet.machine, args={"id": "each"}, each=Each("names"), pick=pick
    )
    gateway = Gateway(
        auth=[gateway_fakes.SHOP],
        routes=[
            Aggregate(
                "GET /m",
                branches={"names": names, "machines": machines},
                cache=Cache("1m"),
                rate=Rate("1/s"),
            ),
            Route("POST /orders", gateway_fakes.Orders.place, strict=True),
        ],
        openapi=OpenApi(reference="/reference"),
    )
    assert check(gateway) == ()
    page = reference_page(document_of(gateway))
    assert b"<code>304</code>" in page
    assert b"<code>city</code>" in page
    assert b"stands twice" in page
    parser = seen(page)
    assert parser.open == []
    assert {unquote(link[1:]) for link in parser.links} <= set(parser.ids)
