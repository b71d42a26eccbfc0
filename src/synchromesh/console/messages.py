"""The page Messages: what subscribers have not got, what was set aside, and projections."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import PageQuery, clock, link, parts, section, state, table, verb
from synchromesh.console.source import Source, Told, read

LISTED_MAX = 100


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
            link("/services", each["service"].partition("#")[0], f"{each['service']}."
                 f"{each['name']}"),
            each["generation"], state(each["state"]), each["position"], each["behind"],
            state(f"at {each['parked']['position']}", "bad") if each["parked"] else None,
        )
        for each in told["projections"]
    ]  # fmt: skip
    return parts(
        tag("h1", "Messages, events, projections"),
        section("Set aside", _set_aside(told, asked)),
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


def _set_aside(told: Told, asked: PageQuery) -> Markup:
    rows = []
    for each in told["set_aside"]:
        service, _, number = str(each["ref"]).partition(":")
        which = {"service": service, "number": number}
        rows.append(
            (
                each["ref"],
                state(each["state"]),
                each["event"],
                each["subscriber"],
                each["attempts"] or None,
                clock(each["first_at"]),
                each["error"],
                parts(
                    verb(
                        asked, "messages.replay", f"Replay {each['ref']}", which,
                        effects=["It is handled again; those behind it follow by themselves."],
                    ),
                    verb(
                        asked, "messages.drop", f"Drop {each['ref']}", which,
                        effects=["It is discarded unhandled; the next one of its key follows."],
                    ),
                ),
            )
        )  # fmt: skip
    headings = ("message", "state", "event", "by", "attempts", "since", "error", "do")
    return table("Messages that were set aside", headings, rows)
