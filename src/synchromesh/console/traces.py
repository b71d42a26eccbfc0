"""The pages Traces and Trace: what was asked for from outside, and the waterfall of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import (
    PageQuery,
    choice,
    clock_us,
    link,
    milliseconds,
    notes,
    parts,
    search,
    section,
    service_of,
    services_of,
    state,
    table,
    text_field,
)
from synchromesh.console.source import Source, Told
from synchromesh.errors import BadRequest
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.trace_tree import tree_of

LISTED_MAX = 100
# More rows would make the page longer than 200 kB; the command line shows all.
ROWS_MAX = 250
# Later spans are not asked for, so that a long trace does not hold the loop.
SPANS_MAX = 400
DEPTH_MAX = 12
_BAR_WIDTH = 400
_FAILED = "failed"


async def fetch_traces(source: Source, asked: PageQuery) -> Told:
    """Return the newest requests from outside that fit a search.

    Raises:
        BadRequest: the least duration is no number.
    """
    text, ended = asked.query.get("q", "").strip(), asked.query.get("ended", "")
    least_us = _milliseconds(asked.query.get("least_ms", "")) * 1000
    spans = (await source.ask("GET", "/traces"))["spans"]
    found = [
        span for span in spans
        if _fits(span, text) and span["took_us"] >= least_us
        and ended in ("", _FAILED if span["status"] != "ok" else "ok")
    ]  # fmt: skip
    return {
        "search": {"q": text, "ended": ended, "least_ms": asked.query.get("least_ms", "")},
        "looked_at": len(spans),
        "traces": found[:LISTED_MAX],
    }


def render_traces(told: Told, _: PageQuery) -> Markup:
    """Draw the page Traces."""
    wanted = told["search"]
    rows = [
        (
            clock_us(span["started_us"]),
            link("/traces", span["trace_id"], f"{span['kind']} {span['name']}"),
            span["service"],
            state(span["status"]),
            milliseconds(span["took_us"] / 1e6),
        )
        for span in told["traces"]
    ]
    return parts(
        tag("h1", "Traces"),
        search(
            "/traces",
            text_field("Name, service, status or trace", "q", wanted["q"]),
            choice("Ended", "ended", ("", "ok", _FAILED), wanted["ended"]),
            text_field("At least, in ms", "least_ms", wanted["least_ms"]),
        ),
        table(
            "Requests from outside, the newest first",
            ("at", "request", "asked by", "status", "took"),
            rows,
        ),
        tag("p", f"Of the newest {told['looked_at']} that are kept.", class_="none"),
    )


async def fetch_trace(source: Source, asked: PageQuery) -> Told:
    """Return the first spans of a trace, and which services there are."""
    told = await source.ask("GET", f"/traces/{quote(asked.name, safe='')}?first={SPANS_MAX}")
    return {**told, "services": services_of(await source.ask("GET", "/status"))}


def render_trace(told: Told, _: PageQuery) -> Markup:
    """Draw the waterfall of a trace."""
    spans = msgspec.convert(told["spans"], list[SpanRecord])
    tree = tree_of(spans)
    walked = tree.walk()
    begin_us = min(tree.began_us.values())
    all_us = max(1, max(tree.ended_us(span) for _, span in walked) - begin_us)
    missing, all_of_it = list(tree.missing), f"synchromesh trace {told['trace_id']} shows them"
    has_more = told.get("has_more", False)
    if has_more:
        missing.append(f"spans later than the first {len(spans)} are left out; {all_of_it}")
    if len(walked) > ROWS_MAX:
        missing.append(f"{len(walked) - ROWS_MAX} spans are not drawn; {all_of_it}")
    rows = [
        (
            tag(
                "span", f"{span.kind} {span.name}", class_=f"d{min(depth, DEPTH_MAX)}",
                title=_notes(span.attributes) or None,
            ),
            link("/services", service, span.service)
            if span.kind == "handle" and service in told["services"] else span.service,
            state(span.status),
            milliseconds(span.took_us / 1e6),
            _bar(
                (tree.began_us[span.span_id] - begin_us) / all_us, span.took_us / all_us,
                is_ok=span.status == "ok",
            ),
        )
        for depth, span in walked[:ROWS_MAX]
        for service in [service_of(span.service)]
    ]  # fmt: skip
    return parts(
        tag("h1", f"{tree.root.kind} {tree.root.name}"),
        tag("p", "Trace ", tag("code", told["trace_id"]),
            f", {'the first ' if has_more else ''}{len(spans)} spans, "
            f"{milliseconds(all_us / 1e6)} from the first to the last."),
        notes(missing, "busy") if missing else None,
        table("Waterfall", ("span", "service", "status", "took", "when"), rows),
        section("Why spans failed", notes(_failures(spans)) if _failures(spans) else
            tag("p", state("none failed", "good"))),
        tag("p", "Where the time went: ", tag("code", f"synchromesh why {told['trace_id']}")),
    )  # fmt: skip


def _fits(span: Mapping[str, Any], text: str) -> bool:
    words = (span["name"], span["service"], span["status"], span["kind"], span["trace_id"])
    return not text or any(text.lower() in word.lower() for word in words)


def _milliseconds(text: str) -> float:
    try:
        return float(text or 0)
    except ValueError:
        raise BadRequest(f"{text[:40]!r} is no number of milliseconds, such as 250") from None


def _bar(left: float, share: float, *, is_ok: bool) -> Markup:
    width = max(2.0, share * _BAR_WIDTH)
    x = min(left * _BAR_WIDTH, _BAR_WIDTH - 2)
    return tag(
        "svg",
        tag("rect", x=f"{x:.1f}", y="2", width=f"{min(width, _BAR_WIDTH - x):.1f}", height="8"),
        viewBox=f"0 0 {_BAR_WIDTH} 12",
        class_="bar" if is_ok else "bar failed",
        aria_hidden="true",
        preserveAspectRatio="none",
    )


def _notes(attributes: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in attributes.items() if key != "error")


def _failures(spans: list[SpanRecord]) -> list[str]:
    """Return why spans failed, each reason once."""
    told: dict[str, str] = {}
    for span in spans:
        if error := span.attributes.get("error", ""):
            told.setdefault(error, f"{span.service}, {span.kind} {span.name}: {error}")
    return list(told.values())[:20]
