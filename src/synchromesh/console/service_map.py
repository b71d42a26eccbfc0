"""The page Map: services in layers, callers left of what they call, and what goes over edges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from synchromesh.console.markup import Child, Markup, tag
from synchromesh.console.overview import edges_table, health_of
from synchromesh.console.parts import ROWS_MAX, PageQuery, milliseconds, parts, rate, service_of
from synchromesh.console.source import Source, Told

# More nodes than that are drawn as groups of what their names begin with.
NODES_MAX = 25
OTHERS = "others"
_COLUMN, _ROW, _WIDTH, _HEIGHT = 260, 76, 150, 44
_ORDER = ("bad", "busy", "good")
_SIGNS = {"good": "✓", "busy": "!", "bad": "✕"}

Edge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class MapPlace:
    """Where the corner of a node is, from the top left."""

    x: int
    y: int


def layers(nodes: Sequence[str], edges: Iterable[Edge]) -> dict[str, int]:
    """Return how far from the left each node stands: behind all that call it.

    An edge that closes a circle counts for nothing, so that each circle is cut where it is reached
    first, from the nodes that nobody calls, in the order of names.

    Example:
        >>> layers(["a", "b", "c"], [("a", "b"), ("b", "c"), ("c", "a"), ("a", "c")])
        {'a': 0, 'b': 1, 'c': 2}
    """
    below: dict[str, list[str]] = {node: [] for node in sorted(nodes)}
    called = set()
    for caller, callee in sorted(set(edges)):
        if caller != callee and caller in below and callee in below:
            below[caller].append(callee)
            called.add(callee)
    ended: list[str] = []
    state: dict[str, int] = {}
    forward: list[Edge] = []
    for start in sorted(below, key=lambda node: (node in called, node)):
        pending = [] if start in state else [(start, below[start][::-1])]
        state.setdefault(start, 1)
        while pending:
            node, left = pending[-1]
            if not left:
                state[node] = 2
                ended.append(node)
                pending.pop()
                continue
            callee = left.pop()
            if state.get(callee) != 1:
                forward.append((node, callee))
            if callee not in state:
                state[callee] = 1
                pending.append((callee, below[callee][::-1]))
    depth = dict.fromkeys(below, 0)
    for node in reversed(ended):
        for caller, callee in forward:
            if caller == node:
                depth[callee] = max(depth[callee], depth[node] + 1)
    return depth


def layout(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, MapPlace]:
    """Return the places of nodes; the same ones for the same system.

    In a layer a node stands at about the height of what calls it.
    """
    columns: dict[int, list[str]] = {}
    for node, depth in layers(nodes, edges).items():
        columns.setdefault(depth, []).append(node)
    heights: dict[str, float] = {}
    for depth in sorted(columns):
        column = columns[depth]
        if depth:
            callers = {node: [heights[a] for a, b in edges if b == node and a in heights]
                       for node in column}  # fmt: skip
            mean = {node: sum(own) / len(own) if own else 0.0 for node, own in callers.items()}
            column.sort(key=lambda node: (mean[node], node))
        heights.update({node: row for row, node in enumerate(column)})
    return {
        node: MapPlace(20 + depth * _COLUMN, 20 + row * _ROW)
        for depth, column in columns.items()
        for row, node in enumerate(column)
    }


def grouped(nodes: Iterable[str], alone: Collection[str] = ()) -> dict[str, str]:
    """Return the group of each node: what its name begins with, up to "_" or "-".

    Of more groups than `NODES_MAX` the last ones, by name, are one. Nodes that are to stand `alone`
    come before all groups, and are named by a space before their names, as no group is.

    Example:
        >>> grouped(["a_1", "a_2", "b_1"], alone=["a_1", "a_2"])
        {'a_1': ' a_1', 'a_2': ' a_2', 'b_1': 'b'}
    """
    group = {
        node: f" {node}" if node in alone else node.replace("-", "_").partition("_")[0]
        for node in nodes
    }
    names = sorted(set(group.values()))
    kept = set(names if len(names) <= NODES_MAX else names[: NODES_MAX - 1])
    return {node: own if own in kept else OTHERS for node, own in group.items()}


async def fetch_map(source: Source, asked: PageQuery) -> Told:
    """Return the nodes with their states, and the edges with what went over them.

    Of one node that is in focus, or of all of a group, it is those, and what they call or are
    called by.
    """
    status, work = await source.ask("GET", "/status"), await source.work()
    nodes = _nodes(status)
    edges = _edges(status, work["edges"])
    for edge in edges:
        for name in (edge["caller"], edge["callee"]):
            nodes.setdefault(name, "good")
        if edge["breaker"] not in ("", "closed"):
            nodes[edge["callee"]] = _worse(nodes[edge["callee"]], "busy")
    focus, group = asked.query.get("focus", ""), asked.query.get("group", "")
    members = [focus] if focus in nodes else []
    if not members and len(nodes) > NODES_MAX:
        members = sorted(node for node, own in grouped(nodes).items() if own == group)
    if members:
        inside = set(members)
        edges = [e for e in edges if e["caller"] in inside or e["callee"] in inside]
        near = inside.union(name for e in edges for name in (e["caller"], e["callee"]))
        nodes = {name: own for name, own in nodes.items() if name in near}
    return {
        "focus": focus if focus in members else "",
        "group": group if members and focus not in members else "",
        "members": members,
        "nodes": nodes,
        "edges": edges,
        "over_s": work["over_s"],
    }


def render_map(told: Told, _: PageQuery) -> Markup:
    """Draw the page Map."""
    nodes: dict[str, str] = told["nodes"]
    is_grouped = len(nodes) > NODES_MAX
    # A group stands for itself, and so does a node; the names of these begin with a space.
    group = grouped(nodes, told["members"] if is_grouped else nodes)
    drawn: dict[str, str] = {}
    for node, kind in sorted(nodes.items()):
        drawn[group[node]] = _worse(drawn.get(group[node], "good"), kind)
    between = _between(told["edges"], group)
    # What the table has no room for has the least to do.
    listed = sorted(told["edges"], key=lambda e: (-e["failed_per_s"], -e["per_s"]))
    first = sorted(listed[:ROWS_MAX], key=lambda e: (e["caller"], e["callee"]))
    shown = told["focus"] or told["group"]
    return parts(
        tag("h1", "Map"),
        tag("p", f"Only {shown} and its neighbours. ", tag("a", "Show all", href="/map"))
        if shown else tag("p", "A name shows what it stands for, with its neighbours alone."),
        tag("p", f"{len(nodes)} parts, drawn as groups; the table has each edge.")
        if is_grouped else None,
        picture(drawn, between),
        edges_table({**told, "edges": [*first, *listed[ROWS_MAX:]]}),
    )  # fmt: skip


def _between(edges: Iterable[Mapping[str, Any]], group: Mapping[str, str]) -> dict[Edge, Told]:
    """Return what goes between groups: rates are sums, and all else is the worst of its edges."""
    found: dict[Edge, Told] = {}
    for each in edges:
        edge = (group.get(each["caller"], ""), group.get(each["callee"], ""))
        if not all(edge) or edge[0] == edge[1]:
            continue
        made = found.setdefault(
            edge, {"per_s": 0.0, "failed_per_s": 0.0, "p99_s": 0.0, "breaker": ""}
        )
        made["per_s"] += each["per_s"]
        made["failed_per_s"] += each["failed_per_s"]
        made["p99_s"] = max(made["p99_s"], each["p99_s"])
        if each["breaker"] not in ("", "closed"):
            made["breaker"] = each["breaker"]
    return found


def picture(nodes: Mapping[str, str], edges: Mapping[Edge, Mapping[str, Any]]) -> Markup:
    """Draw nodes and edges as SVG; what goes over an edge is written on it.

    A name that begins with a space is that of a node, and any other that of a group.
    """
    places = layout(list(nodes), list(edges))
    width = max((place.x for place in places.values()), default=0) + _WIDTH + 20
    height = max((place.y for place in places.values()), default=0) + _HEIGHT + 20
    return tag(
        "svg",
        [
            _edge(places[a], places[b], figures)
            for (a, b), figures in sorted(edges.items())
            if a in places and b in places
        ],
        [_node(name, kind, places[name]) for name, kind in sorted(nodes.items())],
        viewBox=f"0 0 {width} {height}",
        class_="map",
        role="group",
        aria_label="Services and what calls what; the table below has the same edges",
    )


def _node(name: str, kind: str, place: MapPlace) -> Markup:
    what, name = ("focus", name[1:]) if name.startswith(" ") else ("group", name)
    return tag(
        "a",
        tag("rect", x=place.x, y=place.y, width=_WIDTH, height=_HEIGHT, rx=8, class_=kind),
        tag("text", name[:18], x=place.x + 10, y=place.y + 27),
        tag(
            "text", _SIGNS[kind], x=place.x + _WIDTH - 20, y=place.y + 27, class_=kind,
            aria_hidden="true",
        ),
        href=f"/map?{urlencode({what: name}, errors='replace')}",
        aria_label=f"{name}: {kind}",
    )  # fmt: skip


def _edge(start: MapPlace, end: MapPlace, figures: Mapping[str, Any]) -> Child:
    x1, y1, x2, y2 = start.x + _WIDTH, start.y + _HEIGHT // 2, end.x, end.y + _HEIGHT // 2
    middle = (x1 + x2) // 2
    if x2 - x1 > _COLUMN:
        # Past the nodes between them, in the gap below the row that it comes from.
        gap, bend = y1 + _ROW // 2, (_COLUMN - _WIDTH) // 2
        near, far = x1 + bend, x2 - bend
        line = (
            f"M{x1} {y1}C{near} {y1} {x1 + 10} {gap} {near} {gap}L{far} {gap}"
            f"C{x2 - 10} {gap} {far} {y2} {x2} {y2}"
        )
        middle, label_y = (near + far) // 2, gap - 4
    else:
        line = f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
        label_y = (y1 + y2) // 2 - 4
    failed = bool(figures.get("failed_per_s")) or figures.get("breaker", "closed") not in (
        "", "closed",
    )  # fmt: skip
    path = tag(
        "path", d=line,
        class_="edge bad" if failed else "edge",
    )  # fmt: skip
    if not figures.get("per_s"):
        return path
    said = f"{rate(figures['per_s'])}, {milliseconds(figures['p99_s'])}"
    return [path, tag("text", said, x=middle - 40, y=label_y, class_="figure")]


def _nodes(status: Told) -> dict[str, str]:
    nodes: dict[str, str] = {}
    for name, own in status["services"].items():
        kind = "good" if health_of(own) == "ready" else "bad"
        service = service_of(name)
        nodes[service] = _worse(nodes.get(service, kind), kind)
    for name, own in status["externals"].items():
        nodes[name] = "bad" if own["down"] else "good"
    for name, own in status["joined"].items():
        nodes[name] = "good" if own else "bad"
    if status["gateway"] is not None:
        nodes["gateway"] = "good"
    return nodes


def _edges(status: Told, work: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what has a breaker, or had calls of late."""
    idle = {"per_s": 0.0, "failed_per_s": 0.0, "p50_s": 0.0, "p99_s": 0.0}
    found: dict[Edge, dict[str, Any]] = {}
    for caller, own in {**status["services"], **status["clients"]}.items():
        for callee, breaker in own["breakers"].items():
            name = service_of(caller)
            made = found.setdefault(
                (name, callee), {"caller": name, "callee": callee, **idle, "breaker": "closed"}
            )
            if breaker["state"] != "closed":
                made["breaker"] = breaker["state"]
    for each in work:
        edge = (each["caller"], each["callee"])
        made = found.setdefault(edge, {"breaker": "", **each})
        made.update(each)
    return [found[edge] for edge in sorted(found)]


def _worse(one: str, other: str) -> str:
    return min(one, other, key=_ORDER.index)
