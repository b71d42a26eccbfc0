"""Routes: literal tables, no server."""

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
