"""Which page is where: for each path what it asks for, and how that is drawn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from synchromesh.console.advice import fetch_advice, render_advice
from synchromesh.console.databases import fetch_database, render_database
from synchromesh.console.edge import fetch_edge, render_edge
from synchromesh.console.lab import fetch_lab, render_lab
from synchromesh.console.markup import Markup
from synchromesh.console.messages import (
    fetch_message,
    fetch_messages,
    render_message,
    render_messages,
)
from synchromesh.console.overview import (
    fetch_now,
    fetch_service,
    fetch_services,
    render_now,
    render_service,
    render_services,
)
from synchromesh.console.parts import PageQuery
from synchromesh.console.sagas import fetch_saga, fetch_sagas, render_saga, render_sagas
from synchromesh.console.service_map import fetch_map, render_map
from synchromesh.console.source import Source, Told
from synchromesh.console.traces import fetch_trace, fetch_traces, render_trace, render_traces


@dataclass(frozen=True, slots=True)
class ConsolePage:
    """A page: `fetch` returns its data, which is its JSON twin too; `render` draws them.

    `is_live`: it is kept up to date while it is open.
    """

    title: str
    fetch: Callable[[Source, PageQuery], Awaitable[Told]]
    render: Callable[[Told, PageQuery], Markup]
    is_live: bool = True


# By the first segment of the path: the page of it alone, and that of one thing below it.
PAGES: dict[str, ConsolePage] = {
    "now": ConsolePage("Now", fetch_now, render_now),
    "map": ConsolePage("Map", fetch_map, render_map),
    "services": ConsolePage("Services", fetch_services, render_services),
    "traces": ConsolePage("Traces", fetch_traces, render_traces),
    "sagas": ConsolePage("Sagas", fetch_sagas, render_sagas),
    "messages": ConsolePage("Messages", fetch_messages, render_messages),
    "edge": ConsolePage("Edge", fetch_edge, render_edge),
    "lab": ConsolePage("Lab", fetch_lab, render_lab),
    "advice": ConsolePage("Advice", fetch_advice, render_advice, is_live=False),
}
PAGES_OF_ONE: dict[str, ConsolePage] = {
    "databases": ConsolePage("Database", fetch_database, render_database, is_live=False),
    "messages": ConsolePage("Message", fetch_message, render_message, is_live=False),
    "services": ConsolePage("Service", fetch_service, render_service),
    "traces": ConsolePage("Trace", fetch_trace, render_trace),
    "sagas": ConsolePage("Saga", fetch_saga, render_saga),
}


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page that was asked for.

    Attributes:
        name: of the one thing that it shows; "" where it shows all.
        here: the path of the navigation that it belongs to.
        is_json: whether its data are asked for.
    """

    page: ConsolePage
    name: str
    here: str
    is_json: bool


def find_page(path: str) -> FoundPage | None:
    """Return the page of a path, or None.

    Example:
        >>> found = find_page("/services/orders.json")
        >>> found.page.title, found.name, found.is_json
        ('Service', 'orders', True)
    """
    is_json = path.endswith(".json")
    first, _, rest = path.removesuffix(".json")[1:].partition("/")
    name = unquote(rest)
    page = (PAGES_OF_ONE if name else PAGES).get(first or "now")
    if page is None or (first and path.endswith("/")):
        return None
    here = {"": "/", "now": "/", "databases": "/services"}.get(first, f"/{first}")
    return FoundPage(page, name, here, is_json)
