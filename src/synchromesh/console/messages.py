"""The page Messages: what subscribers have not got, what was set aside, and projections."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import (
    PageQuery,
    clock,
    link,
    parts,
    section,
    service_of,
    state,
    table,
    verb,
)
from synchromesh.console.payloads import shown_payload
from synchromesh.console.source import Source, Told, read
from synchromesh.errors import BadRequest

LISTED_MAX = 50


async def fetch_messages(source: Source, _: PageQuery) -> Told:
    """Return lags, messages that were set aside, and projections, of all services."""
    status = await source.ask("GET", "/status")
    answers = await read(source, "messages.list", limit=LISTED_MAX)
    found = sorted((m for own in answers for m in own), key=lambda m: str(m["first_at"]))
    return {
        "lag": [
            {"publisher": name, "subscriber": subscriber, "behind": behind}
            for name, own in status["services"].items()
            for subscriber, behind in own["behind"].items()
        ],
        "set_aside": found[:LISTED_MAX],
        "set_aside_count": sum(own["parked"] for own in status["services"].values()),
        "projections": [
            {"service": name, **each}
            for name, own in status["services"].items()
            for each in own["projections"]
        ],
    }


def render_messages(told: Told, asked: PageQuery) -> Markup:
    """Draw the page Messages."""
    lag = [
        (
            each["publisher"], each["subscriber"],
            state(str(each["behind"]), "busy") if each["behind"] else "0",
        )
        for each in told["lag"]
    ]  # fmt: skip
    projections = [
        (
            link("/services", service_of(each["service"]), f"{each['service']}.{each['name']}"),
            each["generation"], state(each["state"]), each["position"], each["behind"],
            state(f"at {each['parked']['position']}", "bad") if each["parked"] else None,
        )
        for each in told["projections"]
    ]  # fmt: skip
    return parts(
        tag("h1", "Messages, events, projections"),
        section(
            "Set aside",
            _set_aside(told, asked),
            tag(
                "p",
                f"Of {told['set_aside_count']}; synchromesh messages list shows all.",
                class_="none",
            )
            if told["set_aside_count"] > len(told["set_aside"])
            else None,
        ),
        section("Lag", table("Events behind", ("publisher", "subscriber", "events"), lag)),
        section(
            "Projections",
            table(
                "Projections",
                ("projection", "generation", "state", "position", "behind", "parked"),
                projections,
            ),
        ),
    )


async def fetch_message(source: Source, asked: PageQuery) -> Told:
    """Return one message that was set aside, by its reference, such as "stock:17".

    Personal values of what it carries are not among it.

    Raises:
        BadRequest: it is no reference, or there is no such message.
    """
    service, colon, number = asked.name.partition(":")
    if not colon or not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise BadRequest(f"{asked.name[:80]!r} is no message; expected one such as stock:17")
    ((found, *_),) = await read(source, "messages.show", service=service, number=int(number))
    return {**found, "payload": shown_payload(found["payload"])}


def render_message(told: Told, asked: PageQuery) -> Markup:
    """Draw the page of a message."""
    facts = [
        ("Event", f"{told['event']}, at {told['position']} of {told['source']}"),
        ("State", state(told["state"])),
        ("Refused by", told["subscriber"]),
        ("Key", told["key"]),
        ("Id", told["message_id"]),
        ("Trace", link("/traces", told["trace_id"]) if told["trace_id"] else None),
        ("Attempts", told["attempts"]),
        ("Since", clock(told["first_at"])),
        ("Last", clock(told["last_at"])),
        ("Error", told["error"]),
        ("Why", told["text"]),
    ]
    return parts(
        tag("h1", f"Message {told['ref']}"),
        section("What it is", table("Message", ("what", "value"), facts)),
        section("What it carries", tag("pre", told["payload"], tabindex="0")),
        section("What can be done", _verbs(asked, told["ref"])),
    )


def _verbs(asked: PageQuery, ref: str) -> Markup:
    service, _, number = ref.partition(":")
    which = {"service": service, "number": number}
    return parts(
        verb(
            asked, "messages.replay", f"Replay {ref}", which,
            effects=["It is handled again; those behind it follow by themselves."],
        ),
        verb(
            asked, "messages.drop", f"Drop {ref}", which,
            effects=["It is discarded unhandled; the next one of its key follows."],
        ),
    )  # fmt: skip


def _set_aside(told: Told, asked: PageQuery) -> Markup:
    rows = [
        (
            link("/messages", each["ref"]),
            state(each["state"]),
            each["event"],
            each["subscriber"],
            each["attempts"] or None,
            clock(each["first_at"]),
            each["error"],
            _verbs(asked, each["ref"]),
        )
        for each in told["set_aside"]
    ]
    headings = ("message", "state", "event", "by", "attempts", "since", "error", "do")
    return table("Messages that were set aside", headings, rows)
