"""Which route a request means."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.gateway.router import Template, clash_of, find


def table(*routes: str) -> Routes[str]:
    made: Routes[str] = Routes(has_empty_places=False)
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
    assert find(routes, "POST", "/a/b") == NoMatch(("DELETE", "GET", "HEAD", "PUT"))
    assert find(routes, "POST", "/a/c") == NoMatch(("DELETE", "GET", "HEAD"))
    assert find(routes, "get", "/a/c") == NoMatch(("DELETE", "GET", "HEAD"))


def test_head_is_where_get_is() -> None:
    """Where there is no GET there is no HEAD."""
    routes = table("GET /a/{x}", "POST /c")
    assert find(routes, "HEAD", "/a/c") == Match("GET /a/{x}", {"x": "c"})
    assert find(routes, "HEAD", "/c") == NoMatch(("POST",))


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
        ("GET /a/{x...}", "GET /a/{y...}", "/a/x"),
        ("ANY /a", "ANY /a", "/a"),
        ("ANY /a/{x...}", "GET /a/{y...}", ""),
        ("ANY /{x...}", "GET /a/{y}/c", ""),
        ("ANY /a/{x...}", "GET /{y}/b", "/a/b"),
        ("ANY /a/{x...}", "GET /{y}", ""),
        ("ANY /a/{x...}", "GET /{y}/b/{z...}", "/a/b/x"),
        ("GET /a/{x...}", "PUT /{y}/b", ""),
        ("ANY /a/b/{x...}", "ANY /{y}/{z}", ""),
        ("ANY /a/b/{x...}", "ANY /{y}/{z...}", ""),
    ],
)
def test_routes_that_no_rule_tells_apart_are_found(one: str, other: str, path: str) -> None:
    """Two routes clash where each is the closer match at some segment, or neither at any."""
    assert clash_of(Template.of(one), Template.of(other)) == path
    assert clash_of(Template.of(other), Template.of(one)) == path


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/app/", ""),
        ("/app/a", "a"),
        ("/app/a/b/", "a/b/"),
        ("/app//a", "/a"),
        ("/%61pp/%61/%2F;b", "%61/%2F;b"),
        ("/app/a%2Fb%252F", "a%2Fb%252F"),
    ],
)
def test_a_rest_is_all_that_follows_as_it_came(path: str, rest: str) -> None:
    """It is neither decoded nor encoded anew, and may be empty; its prefix may be encoded."""
    found = find(table("ANY /app/{path...}"), "PROPFIND", path)
    assert found == Match("ANY /app/{path...}", {"path": rest})


@pytest.mark.parametrize("path", ["/app", "/appx/a", "/", "/APP/a", "/app%2Fa"])
def test_a_rest_begins_behind_its_prefix(path: str) -> None:
    """The prefix is whole segments, and the slash behind it is there."""
    assert find(table("ANY /app/{path...}"), "GET", path) == NoMatch()


def test_a_name_wins_over_a_place_a_place_over_a_rest_and_a_method_over_any() -> None:
    """What is taken out of an application goes elsewhere, and everything else still there."""
    routes = table("ANY /{p...}", "GET /a/{x}", "ANY /a/b", "POST /a/b", "GET /a/{x}/c/{q...}")
    assert find(routes, "GET", "/a/z") == Match("GET /a/{x}", {"x": "z"})
    assert find(routes, "PUT", "/a/z") == Match("ANY /{p...}", {"p": "a/z"})
    assert find(routes, "GET", "/a/b") == Match("ANY /a/b", {})
    assert find(routes, "POST", "/a/b") == Match("POST /a/b", {})
    assert find(routes, "GET", "/a/") == Match("ANY /{p...}", {"p": "a/"})
    assert find(routes, "GET", "/a/b/c/d/e") == Match("GET /a/{x}/c/{q...}", {"x": "b", "q": "d/e"})
    assert find(routes, "GET", "/a/b/d") == Match("ANY /{p...}", {"p": "a/b/d"})


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_any_method_is_none_that_echoes_or_tunnels(method: str) -> None:
    """TRACE would answer with what the gateway has added to a request."""
    every = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
    assert find(table("ANY /app/{path...}"), method, "/app/a") == NoMatch(every)


@pytest.mark.parametrize(
    "route", ["ANY /{a...}/b", "GET /a{b...}", "ANY /{...}", "any /a", "GET /{a...}{b}", "TRACE /a"]
)
def test_a_rest_is_the_end_of_a_path(route: str) -> None:
    """Nothing follows it, and nothing else is in its segment."""
    with pytest.raises(ConfigError, match="is not a route"):
        Template.of(route)


def test_ten_thousand_routes_are_looked_through_as_fast_as_ten() -> None:
    """A request takes as many steps whatever else there is."""
    steps: dict[int, int] = {}
    for count in (10, 10_000):
        routes = table(
            "ANY /{path...}", *(f"GET /s{n}/{{x}}/t{n}/{{y}}" for n in range(count)), "GET /s/{x}"
        )
        seen: list[str] = []

        def note(frame: FrameType, event: str, _: object, seen: list[str] = seen) -> None:
            if event == "call":
                seen.append(frame.f_code.co_name)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            find(routes, "GET", "/s7/a/t7/b")
            find(routes, "GET", "/s7/a/t8/b")
        finally:
            sys.setprofile(before)
        steps[count] = len(seen)
    assert steps[10_000] == steps[10] > 10
