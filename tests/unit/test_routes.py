"""Routes: literal tables, no server."""

import tracemalloc

import pytest

from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.errors import ConfigError


@pytest.fixture
def routes() -> Routes[str]:
    table = Routes[str]()
    table.add("GET", "/stock/{sku}", "one")
    table.add("GET", "/stock/all", "all")
    table.add("POST", "/stock", "add")
    table.add("PUT", "/stock/{sku}/shelf/{shelf}", "put")
    table.add("GET", "/stock/all/names", "names")
    return table


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/stock/SX90", Match("one", {"sku": "SX90"})),
        ("GET", "/stock/a%2Fb", Match("one", {"sku": "a%2Fb"})),
        ("GET", "/stock/", Match("one", {"sku": ""})),
        ("GET", "/stock/all", Match("all", {})),
        ("GET", "/stock/all/names", Match("names", {})),
        ("PUT", "/stock/all/shelf/7", Match("put", {"sku": "all", "shelf": "7"})),
        ("GET", "/stock", NoMatch(("POST",))),
        ("DELETE", "/stock/all", NoMatch(("GET", "HEAD"))),
        ("HEAD", "/stock/all/names", Match("names", {})),
        ("HEAD", "/stock", NoMatch(("POST",))),
        ("GET", "/stocks", NoMatch()),
        ("GET", "/stock/a/b", NoMatch()),
        ("GET", "", NoMatch()),
        ("OPTIONS", "*", NoMatch()),
    ],
)
def test_a_path_finds_the_operation_that_it_names(
    routes: Routes[str], method: str, path: str, expected: object
) -> None:
    """Names win over places, and places are tried where a name leads nowhere."""
    assert routes.find(method, path) == expected


def test_a_route_is_taken_once(routes: Routes[str]) -> None:
    """A second owner of a route is refused, also where its places have other names."""
    with pytest.raises(ConfigError, match="taken by one"):
        routes.add("GET", "/stock/{id}", "other")


def test_many_places_do_not_make_a_search_long() -> None:
    """A long path of places is found at once; the tree has one way to go."""
    table = Routes[str]()
    template = "/" + "/".join(f"{{p{n}}}" for n in range(40))
    table.add("GET", template, "long")
    assert table.find("GET", "/a" * 40) == Match("long", {f"p{n}": "a" for n in range(40)})
    assert table.find("GET", "/a" * 41) == NoMatch()


def test_a_request_that_is_looked_for_again_is_not_searched_again(routes: Routes[str]) -> None:
    """Its head is judged by its route, and it is answered by it; what is found is the same."""
    found = routes.find("GET", "/stock/SX90")
    assert routes.find("GET", "/stock/SX90") is found
    assert routes.find("GET", "/stock/SX91") == Match("one", {"sku": "SX91"})
    assert routes.find("HEAD", "/stock/SX91") == Match("one", {"sku": "SX91"})
    assert routes.find("PUT", "/stock/SX91") == NoMatch(("GET", "HEAD"))
    routes.add("PUT", "/stock/{sku}", "replace")
    assert routes.find("PUT", "/stock/SX91") == Match("replace", {"sku": "SX91"})
    routes.add("ANY", "/app/{path...}", "app")
    assert routes.find("GET", "/app/a", "/app/%61") == Match("app", {"path": "%61"})
    assert routes.find("GET", "/app/a") == Match("app", {"path": "a"})


def test_routes_share_what_they_have_in_common() -> None:
    """A search waits for memory above all: a route is to touch little of it."""
    templates = [f"/things-{n}/{{id}}/parts/{{part}}" for n in range(1000)]
    table = Routes[str]()
    is_traced = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for template in templates:
            table.add("GET", template, "one")
        each = (tracemalloc.get_traced_memory()[0] - before) / len(templates)
    finally:
        if not is_traced:
            tracemalloc.stop()
    assert each < 1200  # bytes; 1600 where each node has tables and texts of its own
    assert table.find("GET", "/things-7/a/parts/b") == Match("one", {"id": "a", "part": "b"})
    assert table.find("GET", "/things-7/a") == NoMatch()
