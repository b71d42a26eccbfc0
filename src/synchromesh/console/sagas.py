"""The pages Sagas and Saga: runs, the story of one forwards and undone, and its repair."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from synchromesh.console.markup import Child, Markup, tag
from synchromesh.console.parts import (
    PageQuery,
    choice,
    clock,
    link,
    notes,
    parts,
    search,
    section,
    state,
    table,
    verb,
)
from synchromesh.console.payloads import shown_payload, too_long
from synchromesh.console.source import Source, Told, read
from synchromesh.errors import BadRequest

LISTED_MAX = 100
# More would make the page longer than 200 kB; the command line shows all.
LINES_MAX = 200
NAMED_MAX = 20
STEP_CHARS_MAX = 200
# The control API leaves out what is longer.
STEP_DECODED_MAX = 4_096
STATUSES = (
    "", "queued", "running", "compensating", "waiting", "sleeping", "completed", "undone", "stuck",
)  # fmt: skip
# What a record of a kind says: the run went on, turned, or needs a person.
_UNDOING = frozenset({"turned", "undo_begun", "undone"})
_BAD = frozenset({"stuck", "rejected"})
_LABELS = {
    "retry": "Try it again",
    "skip": "Take it as done by hand",
    "undo": "Undo the run",
    "cancel": "Cancel the run",
}
_WIDTH, _MARGIN = 900, 20


async def fetch_sagas(source: Source, asked: PageQuery) -> Told:
    """Return the newest runs of a status, or of any."""
    status = asked.query.get("status", "")
    answers = await read(source, "saga.list", status=status, limit=LISTED_MAX)
    runs = [run for own in answers for run in own]
    runs.sort(key=lambda run: str(run["started_at"]), reverse=True)
    return {"status": status, "runs": runs[:LISTED_MAX]}


def render_sagas(told: Told, _: PageQuery) -> Markup:
    """Draw the page Sagas."""
    rows = [
        (
            clock(run["started_at"]),
            link("/sagas", f"{run['service']}:{run['id']}", f"{run['service']}.{run['name']}"),
            state(run["status"]),
            run["reason"],
            run["owner"],
            clock(run["ended_at"]),
        )
        for run in told["runs"]
    ]
    return parts(
        tag("h1", "Sagas"),
        search("/sagas", choice("Status", "status", STATUSES, told["status"])),
        table(
            "Runs, the newest first",
            ("started", "saga", "status", "reason", "owner", "ended"),
            rows,
        ),
    )


async def fetch_saga(source: Source, asked: PageQuery) -> Told:
    """Return the newest part of the story of a run, such as "orders:A-1", and what verbs would do.

    Personal values of what it was given and gave are not among it.

    Raises:
        BadRequest: it is no run of a service.
        SynchromeshError: there is no such run.
    """
    service, _, id = asked.name.partition(":")  # noqa: A001
    if not (service and id):
        raise BadRequest(f"{asked.name[:80]!r} is no saga; expected one such as orders:A-1")
    wanted = {"service": service, "id": id, "lines": LINES_MAX, "payloads": True, "impacts": True}
    (story,) = await read(source, "saga.show", **wanted)
    return {"story": await _shown(story)}


async def _shown(story: Told) -> Told:
    payloads, steps = story["payloads"], list[str]()
    for each, left_out in zip(payloads["steps"], payloads["left_out"], strict=True):
        if left_out:
            steps.append(too_long(left_out))
        elif each:
            steps.append(shown_payload(each, STEP_CHARS_MAX, decoded_max=STEP_DECODED_MAX))
            await asyncio.sleep(0)
        else:
            steps.append("")
    return {
        **story,
        "not_undone": story["not_undone"][:NAMED_MAX],
        "not_undone_count": len(story["not_undone"]),
        "payloads": {
            "input": shown_payload(payloads["input"]),
            "result": shown_payload(payloads["result"]) if payloads["result"] else "",
            "steps": steps,
        },
    }


def render_saga(told: Told, asked: PageQuery) -> Markup:
    """Draw the page of a run."""
    story, lines = told["story"], told["story"]["lines"]
    payloads = story["payloads"]
    rows = [
        (
            clock(line["at"]),
            state(line["kind"], _kind(line["kind"])),
            line["step"],
            line["attempt"] or None,
            line["why"],
            tag("code", given) if given else None,
        )
        for line, given in zip(lines, payloads["steps"], strict=True)
    ]
    left_out = story["records"] - len(lines)
    shown_by = f"synchromesh saga show {story['id']} --service {story['service']}"
    more = f"{left_out} earlier records are not drawn; {shown_by} has them"
    owed = [f"not undone: {step}" for step in story["not_undone"]]
    if hidden := story["not_undone_count"] - len(owed):
        owed.append(f"and {hidden} more")
    return parts(
        tag("h1", f"{story['service']}.{story['name']}"),
        tag("p", "Saga ", tag("code", story["id"]), ", version ", story["version"], ": ",
            state(story["status"]), f" {story['reason']}"),
        tag("p", link("/traces", story["trace_id"], "Its trace")) if story["trace_id"] else None,
        notes(owed) if owed else None,
        notes([more], "busy") if left_out else None,
        timeline(lines),
        table("What was recorded", ("at", "what", "step", "attempt", "why", "gave"), rows),
        section(
            "What it was given and gave",
            tag("p", "Given:"), tag("pre", payloads["input"], tabindex="0"),
            [tag("p", "Gave:"), tag("pre", payloads["result"], tabindex="0")]
            if payloads["result"] else None,
        ),
        section("What you can do", *_verbs(told, asked)),
    )  # fmt: skip


def timeline(lines: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Draw a run over time: above what went forwards, below what was undone."""
    if not lines:
        return None
    times = [dt.datetime.fromisoformat(line["at"]).timestamp() for line in lines]
    began, lasted = times[0], max(times) - times[0] or 1.0
    room = _WIDTH - 2 * _MARGIN
    marks = [
        tag(
            "circle",
            tag("title", f"{line['kind']} {line['step']}"),
            cx=f"{_MARGIN + (at - began) / lasted * room:.1f}",
            cy=70 if line["kind"] in _UNDOING else 30,
            r=7,
            class_=_kind(line["kind"]),
        )
        for line, at in zip(lines, times, strict=True)
    ]
    return tag(
        "svg",
        tag("line", x1=_MARGIN, x2=_WIDTH - _MARGIN, y1=30, y2=30),
        tag("line", x1=_MARGIN, x2=_WIDTH - _MARGIN, y1=70, y2=70),
        marks,
        viewBox=f"0 0 {_WIDTH} 100",
        class_="timeline",
        role="img",
        aria_label=f"{len(lines)} records in {lasted:.1f} s, forwards above and undone below; "
        "the table has the same",
    )


def _kind(word: str) -> str:
    return "bad" if word in _BAD else "busy" if word in _UNDOING else "good"


def _verbs(told: Told, asked: PageQuery) -> list[Child]:
    story = told["story"]
    impacts = story["impacts"]
    not_done = tag(
        "label", tag("input", type="checkbox", name="not_done", value="yes"),
        " I have looked: what the run does not know was not done.",
    )  # fmt: skip
    allowed: list[Child] = [
        verb(
            asked, f"saga.{each['verb']}", _LABELS.get(each["verb"], each["verb"]),
            {"service": story["service"], "id": story["id"]}, effects=each["effects"],
            more=not_done if each["verb"] in ("retry", "undo") else None,
        )
        for each in impacts if each["is_allowed"]
    ]  # fmt: skip
    refused = [
        f"{_LABELS.get(each['verb'], each['verb'])}: {each['refused']}"
        for each in impacts
        if not each["is_allowed"]
    ]
    if why := story["not_judged"]:
        refused = [f"Nothing: its records cannot all be read: {why}"]
    return [*allowed, notes(refused, "none") if refused else None]
