"""Paths and names as regular expressions of RE2, which knows no lookahead. A pure machine.

Envoy matches a whole text. What is odd about a path is looked for once, before any route: behind
that every path is plain, and the expressions of routes need not tell one spelling from another.

Source: the syntax of RE2; RFC 3986, section 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from synchromesh.gateway.router import Template

_PLACE = re.compile(r"\{([a-z_][a-z0-9_]*)(\.\.\.)?\}")

# Any path but those that every server takes for the same: what is encoded, backslashes, parameters,
# empty segments and segments of dots are for the gateway to judge.
ODD_PATH: Final = r".*(?:[^A-Za-z0-9_.~!$&'()*+,=:@/-]|//).*|.*/\.\.?(?:/.*)?|[^/].*"


def path_pattern(path: str) -> str:
    """Return what matches the plain paths of a template, each place as a group.

    Example:
        >>> path_pattern("/stock/{sku}/parts")
        '/stock/([^/]+)/parts'
        >>> path_pattern("/app/{path...}")
        '/app/(.*)'
    """
    return _PLACE.sub(
        lambda place: "(.*)" if place[2] else "([^/]+)",
        "/".join(part if part.startswith("{") else re.escape(part) for part in path.split("/")),
    )


def substitution(path: str, there: str) -> str:
    r"""Return what puts the groups of one template into another with the same places.

    Example:
        >>> substitution("/a/{x}/{y}", "/b/{y}/{x}")
        '/b/\\2/\\1'
    """
    numbers = {place[1]: number for number, place in enumerate(_PLACE.finditer(path), 1)}
    return _PLACE.sub(lambda place: f"\\{numbers[place[1]]}", there)


def closeness(template: Template) -> tuple[tuple[int, ...], bool]:
    """Return what sorts templates so that the first which matches is the closest one.

    Example:
        >>> paths = ("ANY /a/{x...}", "GET /a/{x}", "ANY /a/b", "GET /a/b")
        >>> [each.path for each in sorted(map(Template.of, paths), key=closeness)]
        ['/a/b', '/a/b', '/a/{x}', '/a/{x...}']
    """
    kinds = [int(step == "{}") for step in template.steps]
    return (*kinds, *([2] if template.has_rest else [])), template.method == "ANY"


def all_but(names: Iterable[str]) -> str:
    """Return what matches every name of a header but these, and none that begins with a colon.

    Example:
        >>> expression = re.compile(all_but(["a", "ab"]))
        >>> [name for name in ("a", "ab", "abc", "b", ":path") if expression.fullmatch(name)]
        ['abc', 'b']
    """
    tree: dict[str, dict] = {}  # type: ignore[type-arg]
    for name in names:
        node = tree
        for char in name:
            node = node.setdefault(char, {})
        node[""] = {}
    return _others(tree, no_first=":")


def _others(tree: dict[str, dict], no_first: str = "") -> str:  # type: ignore[type-arg]
    """Return what matches every text that leaves a tree, or ends where no name of it does."""
    chars = sorted(char for char in tree if char)
    left_out = "".join(re.escape(char) for char in [*chars, *no_first])
    ways = [f"[^{left_out}].*" if left_out else ".+"]
    ways += [re.escape(char) + _others(tree[char]) for char in chars]
    text = f"(?:{'|'.join(ways)})"
    return text if "" in tree or no_first else f"{text}?"
