"""Which route a request means."""

from __future__ import annotations

import pytest

from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.gateway.router import Template, clash_of, find


def table(*routes: str) -> Routes[str]:
    made: Routes[str] = Routes()
    for route in routes:
        template = Template.of(route)
        made.add(template.method, template.path, route)
    return made


@pytest.mark.parametrize(
    "path",
    ["/stock/%ff", "/stock/%C0%AF", "/stock/a%00b", "/stock/a%0d%0ab", "/%1b/x"],
)
def test_what_decodes_to_no_text_is_refused(path: str) -> None:
    """Overlong UTF-8, line ends, NUL and escapes are refused, wherever in a path they are."""
    with pytest.raises(BadRequest):
        find(table("GET /stock/{sku}"), "GET", path)


@pytest.mark.parametrize(
    "path",
    ["/stock/", "/stock", "/stock/a/", "/stock//a", "stock/a", "*", "", "/stock/a/b", "//stock/a"],
)
def test_no_path_matches_by_halves(path: str) -> None:
    """A place is one segment and not empty; a slash more or less is another path."""
    assert find(table("GET /stock/{sku}"), "GET", path) == NoMatch()


@pytest.mark.parametrize(
    ("path", "held"),
    [
        ("/stock/a%2Fb", "a%2Fb"),
        ("/stock/%2e%2e", ".."),
        ("/stock/%2E%2E%2Fadmin", "..%2Fadmin"),
        ("/stock/%61", "a"),
        ("/%73tock/a", "a"),
        ("/stock/%C3%A9", "%C3%A9"),
        ("/stock/a%252Fb", "a%252Fb"),
        ("/stock/a;b=c", "a;b=c"),
    ],
)
def test_a_path_is_split_before_it_is_decoded(path: str, held: str) -> None:
    """An encoded slash is a character of a value: it neither ends a place nor steps out of it."""
    found = find(table("GET /stock/{sku}", "GET /admin"), "GET", path)
    assert found == Match("GET /stock/{sku}", {"sku": held})


def test_another_method_is_told_what_there_is() -> None:
    """A known path under another method names those that it has, over all templates."""
    routes = table("GET /a/{x}", "DELETE /a/{x}", "PUT /a/b")
    assert find(routes, "POST", "/a/b") == NoMatch(("DELETE", "GET", "PUT"))
    assert find(routes, "POST", "/a/c") == NoMatch(("DELETE", "GET"))
    assert find(routes, "get", "/a/c") == NoMatch(("DELETE", "GET"))
    assert find(routes, "HEAD", "/a/c") == NoMatch(("DELETE", "GET"))


def test_a_name_wins_over_a_place_and_gives_way_where_it_leads_nowhere() -> None:
    """`/a/b/c` is found although `/a/b` begins with a name of its own."""
    routes = table("GET /a/b", "GET /a/{x}", "GET /a/{x}/c")
    assert find(routes, "GET", "/a/b") == Match("GET /a/b", {})
    assert find(routes, "GET", "/a/z") == Match("GET /a/{x}", {"x": "z"})
    assert find(routes, "GET", "/a/b/c") == Match("GET /a/{x}/c", {"x": "b"})


def test_the_same_route_is_taken_once() -> None:
    """Two routes that differ in the names of their places alone are the same one."""
    with pytest.raises(ConfigError, match="is taken"):
        table("GET /a/{x}", "GET /a/{y}")


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ("GET /a/{x}/c", "GET /a/b/{y}", "/a/b/c"),
        ("GET /{x}/b", "GET /a/{y}", "/a/b"),
        ("GET /a/{x}", "GET /a/{y}", "/a/x"),
        ("GET /a", "GET /a", "/a"),
        ("GET /a/{x}", "GET /a/b", ""),
        ("GET /a/{x}", "PUT /a/{x}", ""),
        ("GET /a/{x}", "GET /b/{x}", ""),
        ("GET /a", "GET /a/{x}", ""),
        ("GET /{x}/b/{z}", "GET /a/{y}/c", "/a/b/c"),
    ],
)
def test_routes_that_no_rule_tells_apart_are_found(one: str, other: str, path: str) -> None:
    """Two routes clash where each is the closer match at some segment, or neither at any."""
    assert clash_of(Template.of(one), Template.of(other)) == path
    assert clash_of(Template.of(other), Template.of(one)) == path
