"""The path under which a gateway tells clients of its health: before the engine, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from gateway_fakes import ROUTES, SHOP, Plant, behind
from synchromesh.gateway import Forward, Gateway
from synchromesh.gateway.checking import read
from synchromesh.gateway.health import HealthDoor, health_mistakes
from synchromesh.http import Headers, HttpExchange, HttpRequest

REST = Forward("ANY /{path...}", to="orders", path="/{path...}", public=True)
ENTRIES = read(Gateway(auth=[SHOP], routes=[*ROUTES, REST])).entries


class Writer:
    """Takes the answer of an exchange."""

    peer = "10.0.0.1:4711"

    def __init__(self) -> None:
        self.said: list[tuple[bytes, bytes]] = []

    def answered(self, head: bytes, body: bytes) -> None:
        self.said.append((head, body))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is for answers in parts")


def asked(writer: Writer, method: str, target: str) -> HttpExchange:
    return HttpExchange(
        writer, method.encode(), target.encode(), [(b"host", b"api")], b"", is_plain=True
    )


def request(method: str, target: str) -> HttpRequest:
    path, _, query = target.partition("?")
    return HttpRequest(method, target, path, query, Headers([("host", "api")]), b"")


def test_it_answers_for_its_path_alone() -> None:
    """On either way, with a query too; every other path is the engine's, and so is no span made."""

    async def main(plant: Plant) -> None:
        now = {"ready": True}
        door = HealthDoor(plant.engine, "/healthz", lambda: now["ready"])
        begin, writer = door.begin_exchange, Writer()
        assert begin(asked(writer, "GET", "/healthz"))
        assert not begin(asked(writer, "GET", "/healthz?x=1"))
        assert not begin(asked(writer, "POST", "/healthz"))
        assert not begin(asked(writer, "GET", "/healthzy"))
        for now["ready"], status in ((True, 200), (False, 503)):
            assert (await door(request("GET", "/healthz?x=1"))).status == status
            assert (await door(request("HEAD", "/healthz"))).status == status
            assert begin(asked(writer, "GET", "/healthz"))
        assert [head.split(b" ")[1] for head, _ in writer.said] == [b"200", b"200", b"503"]
        assert writer.said[-1][1] == b'{"status":"draining"}'
        assert (await door(request("POST", "/healthz"))).headers.get("allow") == "GET, HEAD"
        assert (await door(request("GET", "/healthzy"))).status == 404
        assert (await door(request("GET", "/fleet/M-1"))).status == 200
        assert [span.name for span in plant.system.spans if span.kind == "gateway"] == [
            "GET /fleet/{id}"
        ]

    behind(main)


def test_what_is_passed_on_does_not_take_it() -> None:
    """A rest that matches it is not asked: the body of such a request is nobody's stream."""

    async def main(plant: Plant) -> None:
        door = HealthDoor(plant.engine, "/healthz", lambda: True)
        assert plant.engine.body_max("POST", "/healthz", ()) is not None
        assert door.body_max("POST", "/healthz", ()) is None
        assert door.body_max("POST", "/other", ()) == plant.engine.body_max("POST", "/other", ())
        assert not door.begin_exchange(asked(Writer(), "GET", "/healthz?x"))

    behind(main, gateway=Gateway(auth=[SHOP], routes=[REST]))


@pytest.mark.parametrize("path", ["", "/healthz", "/a/b/c", "/orders", "/fleet", "/.a"])
def test_a_path_that_no_route_has_is_free(path: str) -> None:
    """Neither a POST, nor a longer path, nor the rest of a `Forward` has it by name."""
    assert list(health_mistakes(path, ENTRIES)) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/fleet/health", "GET /fleet/{id}"),
        ("/machines/health", "GET /machines/{id}"),
        ("health", "write a path"),
        ("/health/", "write a path"),
        ("/{x}", "write a path"),
        ("/health?x", "write a path"),
        ("/a/..", "without segments of dots"),
        ("/./health", "without segments of dots"),
    ],
)
def test_a_path_that_a_route_has_is_named(path: str, said: str) -> None:
    """A route is not robbed of a path; what is none is named as well."""
    (mistake,) = health_mistakes(path, ENTRIES)
    assert mistake.startswith("[gateway] health")
    assert said in mistake
