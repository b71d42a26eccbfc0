"""The router finds what looking through all templates one by one would find."""

from __future__ import annotations

from itertools import combinations
from urllib.parse import quote, unquote

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.calls.routes import ANY, Match, NoMatch, Routes
from synchromesh.gateway.router import Template, clash_of, clashes, find

METHODS = ("GET", "PUT")
PARTS = st.one_of(
    st.lists(st.sampled_from("ab{"), max_size=3),
    st.lists(st.sampled_from("ab{"), max_size=2).map(lambda parts: [*parts, "..."]),
)
WRITTEN = st.tuples(st.sampled_from((*METHODS, ANY)), PARTS)
TEMPLATES = st.lists(WRITTEN, max_size=6)
SEGMENTS = st.one_of(
    st.sampled_from(["a", "b", "%61", "", "a%2Fb"]),
    st.text("ab/é %", max_size=3).map(lambda text: quote(text, safe="")),
)


def written(method: str, parts: list[str]) -> Template:
    """Write a template, its places numbered."""
    forms = {"{": "{{p{}}}", "...": "{{p{}...}}"}
    named = [forms.get(part, part).format(at) for at, part in enumerate(parts)]
    return Template.of(f"{method} /{'/'.join(named)}")


def by_hand(templates: list[Template], path: str) -> list[tuple[list[int], Template, list[str]]]:
    """Return each template that matches, the places of it, and what they hold, the best first."""
    raw = path.split("/")[1:]
    segments = [unquote(segment) for segment in raw]
    found = []
    for template in templates:
        steps = template.steps
        if len(segments) <= len(steps) if template.has_rest else len(segments) != len(steps):
            continue
        pairs = list(zip(steps, segments, strict=False))
        if all(segment if part == "{}" else part == segment for part, segment in pairs):
            held = [segment for part, segment in pairs if part == "{}"]
            rank = [int(part == "{}") for part, _ in pairs]
            if template.has_rest:
                held.append("/".join(raw[len(steps) :]))
                rank.append(2)
            found.append(([*rank, 3 * (template.method == ANY)], template, held))
    return sorted(found, key=lambda match: match[0])


@given(TEMPLATES, st.sampled_from(METHODS), st.lists(SEGMENTS, min_size=1, max_size=3))
def test_the_router_is_a_search_through_all_templates(
    routes: list[tuple[str, list[str]]], method: str, segments: list[str]
) -> None:
    """Of all templates that match, the one with the earliest names is found, or none."""
    templates: list[Template] = []
    for route in routes:
        template = written(*route)
        if not any(clash_of(template, other) for other in templates):
            templates.append(template)
    table: Routes[Template] = Routes(has_empty_places=False)
    for template in templates:
        table.add(template.method, template.path, template)
    path = "/" + "/".join(segments)
    matches = by_hand(templates, path)
    own = [match for match in matches if match[1].method in (method, ANY)]
    found = find(table, method, path)
    if not own:
        allowed = {match[1].method for match in matches}
        allowed |= {"HEAD"} if "GET" in allowed else set()
        assert found == NoMatch(tuple(sorted(allowed)))
        return
    _, best, held = own[0]
    assert isinstance(found, Match)
    assert found.target == best
    values = list(found.places.values())
    if best.has_rest:
        assert values.pop() == held.pop(), "a rest is as it came, and not decoded at all"
    assert [unquote(value) for value in values] == held


@given(st.lists(st.tuples(st.just("GET"), PARTS), max_size=5))
def test_templates_that_do_not_clash_are_told_apart(routes: list[tuple[str, list[str]]]) -> None:
    """Where no two templates clash, of those that match a path one is closer at every segment."""
    templates = list({written(*route) for route in routes})
    if any(clash_of(one, other) for one, other in combinations(templates, 2)):
        return
    for path in ("/a", "/b", "/a/a", "/a/b", "/b/a", "/a/a/a", "/a/b/a", "/b/a/b", "/b/b/b"):
        matches = by_hand(templates, path)
        for _, template, _ in matches[1:]:
            best = matches[0][1].steps
            assert len(best) >= len(template.steps)
            assert all(a == b or b == "{}" for a, b in zip(best, template.steps, strict=False))


@given(st.lists(WRITTEN, max_size=12))
def test_clashes_are_those_that_comparing_all_pairs_finds(
    routes: list[tuple[str, list[str]]],
) -> None:
    """The same pairs in the same order, each with the same path."""
    templates = [written(*route) for route in routes]
    assert clashes(templates) == [
        (one, other, path)
        for one, other in combinations(range(len(templates)), 2)
        if (path := clash_of(templates[one], templates[other]))
    ]
