"""What all pages are made of: the frame around them, tables, states, and forms that ask."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import quote

from synchromesh.console.markup import Child, Markup, join, tag

NAVIGATION = (
    ("/", "Now"),
    ("/map", "Map"),
    ("/services", "Services"),
    ("/traces", "Traces"),
    ("/sagas", "Sagas"),
    ("/messages", "Messages"),
    ("/edge", "Edge"),
    ("/lab", "Lab"),
    ("/advice", "Advice"),
)
_GOOD = frozenset({"ok", "closed", "completed", "running", "ready", "live"})
_BUSY = frozenset({"queued", "sleeping", "compensating", "undone", "standby", "half_open"})
# More would make a page longer than 200 kB, and hold the loop.
ROWS_MAX = 250
# A sign beside each colour: nobody has to tell colours apart.
_SIGNS = {"good": "✓", "busy": "…", "bad": "✕"}


@dataclass(frozen=True, slots=True)
class PageQuery:
    """What of a page was asked for.

    Attributes:
        name: what follows its path; "" for none.
        query: the first value of each parameter.
        form_token: what its forms carry.
    """

    name: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    form_token: str = ""


def frame(
    title: str, system: str, here: str, main: Child, *, live: str = "", has_chrome: bool = True
) -> bytes:
    """Return a whole page; `live` is where its main part is sent again when it has changed."""
    links = [
        tag(
            "a", label, href=path, accesskey=number,
            aria_current="page" if path == here else None,
        )
        for number, (path, label) in enumerate(NAVIGATION, 1)
    ]  # fmt: skip
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"{title} · {system}"),
            tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
            tag("link", rel="stylesheet", href="/static/console.css"),
            tag("script", src="/static/console.js", defer=True),
        ),
        tag(
            "body",
            tag("a", "Skip to the content", href="#main", class_="skip"),
            tag(
                "header",
                tag("p", system, class_="system"),
                tag("nav", links, aria_label="Pages") if has_chrome else None,
            ),
            tag("main", main, id="main", tabindex="-1", data_live=live or None),
        ),
        lang="en",
    )
    return f"<!doctype html>{page}".encode()


def table(label: str, headings: Sequence[str], rows: Iterable[Sequence[Child]]) -> Markup:
    """Return a table that scrolls by itself, or a line that says that there is nothing.

    Of more than `ROWS_MAX` rows the first are drawn, and how many are not is said.
    """
    left = iter(rows)
    drawn = [
        tag("tr", tag("th", first, scope="row"), [tag("td", cell) for cell in cells])
        for first, *cells in islice(left, ROWS_MAX)
    ]
    if not drawn:
        return tag("p", f"{label}: none.", class_="none")
    head = tag("thead", tag("tr", [tag("th", each, scope="col") for each in headings]))
    drawn_table = tag("table", tag("caption", label), head, tag("tbody", drawn))
    scrolled = tag(
        "div", drawn_table, class_="scroll", tabindex="0", role="region", aria_label=label
    )
    if not (more := sum(1 for _ in left)):
        return scrolled
    said = f"{more} more are not drawn; they are in the JSON of this page."
    return parts(scrolled, tag("p", said, class_="none"))


def service_of(instance: str) -> str:
    """Return the service of an instance, which may be a replica, such as "quoting#2"."""
    return instance.partition("#")[0]


def services_of(status: Mapping[str, Any]) -> list[str]:
    """Return the services that have a page, from the status of a system."""
    return list(dict.fromkeys(map(service_of, status["services"])))


def state(word: str, kind: str = "") -> Markup:
    """Return the name of a state, with its colour and sign: "good", "busy" or "bad"."""
    kind = kind or ("good" if word in _GOOD else "busy" if word in _BUSY else "bad")
    return tag("span", f"{_SIGNS[kind]} {word}", class_=kind)


def section(heading: str, *children: Child) -> Markup:
    """Return a part of a page, with its heading."""
    return tag("section", tag("h2", heading), children)


def link(path: str, name: str, label: str = "") -> Markup:
    """Return a link to what has a name, below a path."""
    return tag("a", label or name, href=f"{path}/{quote(name, safe='', errors='replace')}")


def verb(
    asked: PageQuery,
    name: str,
    label: str,
    fields: Mapping[str, str | int],
    *,
    effects: Sequence[str] = (),
    more: Child = None,
) -> Markup:
    """Return a form that asks before something is done: what it does, and why it is to be."""
    hidden = {"form_token": asked.form_token, **fields}
    return tag(
        "details",
        tag("summary", label),
        tag(
            "form",
            tag("ul", [tag("li", each) for each in effects]) if effects else None,
            [tag("input", type="hidden", name=key, value=value) for key, value in hidden.items()],
            more,
            tag(
                "label", "Why (it is recorded with your name) ",
                tag("input", name="why", required=True, maxlength=1000, autocomplete="off"),
            ),
            tag("button", label),
            method="post", action=f"/do/{name}",
        ),
        class_="verb",
    )  # fmt: skip


def search(action: str, *children: Child) -> Markup:
    """Return a form that asks for other rows of a page."""
    return tag("form", *children, tag("button", "Show"), method="get", action=action, role="search")


def text_field(label: str, name: str, value: str) -> Markup:
    """Return a field of a search."""
    made = tag("input", name=name, value=value, maxlength=200, autocomplete="off")
    return tag("label", label, " ", made)


def choice(label: str, name: str, options: Iterable[str], chosen: str = "") -> Markup:
    """Return a field with one of several words; "" is shown as "any"."""
    drawn = [tag("option", each or "any", value=each, selected=each == chosen) for each in options]
    return tag("label", label, " ", tag("select", drawn, name=name))


def tick(label: str, name: str) -> Markup:
    """Return a box to tick; unticked it is not in the form."""
    return tag("label", tag("input", type="checkbox", name=name, value="1"), " ", label)


def clock(at: str | None) -> Markup | None:
    """Return the time of day of an ISO 8601 timestamp, in UTC."""
    if not at:
        return None
    shown = dt.datetime.fromisoformat(at).strftime("%H:%M:%S.%f")[:-3]
    return tag("time", shown, datetime=at)


def clock_us(at_us: int) -> Markup | None:
    """Return the time of day of microseconds since 1970, in UTC."""
    return clock(dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC).isoformat())


def milliseconds(seconds: float) -> str:
    """Format what something took.

    Example:
        >>> milliseconds(0.00123), milliseconds(2.5)
        ('1.2 ms', '2500 ms')
    """
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def rate(per_s: float) -> str:
    """Format a rate.

    Example:
        >>> rate(0.25), rate(40.0)
        ('0.2/s', '40/s')
    """
    return f"{per_s:.1f}/s" if per_s < 10 else f"{per_s:.0f}/s"


def notes(texts: Iterable[str], kind: str = "bad") -> Markup:
    """Return a list of what a person should know."""
    return tag("ul", [tag("li", each) for each in texts], class_=f"notes {kind}")


def parts(*children: Child) -> Markup:
    """Join the parts of a page."""
    return join(children)
