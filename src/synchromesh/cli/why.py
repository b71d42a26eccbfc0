"""`synchromesh why`: where the time of a request went, what failed first, and what followed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli import actions
from synchromesh.cli.output import print_json
from synchromesh.cli.saga import FINDING, NEED_PERSON, service_option
from synchromesh.cli.trace import spans_of
from synchromesh.errors import SynchromeshError

if TYPE_CHECKING:
    from rich.console import Console

    from synchromesh.telemetry import SpanRecord
    from synchromesh.telemetry.explanation import Explanation, SpanFailure

SAGAS_MAX = 3
# A share of the time that is shown as one with others of the kind.
SMALL = 0.005
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
# What a person asks of a run: what it came to, not each of its attempts.
_TOLD = ("rejected", "turned", "undone", "stuck", "repaired")


@click.command()
@click.argument("wanted", metavar="TRACE|SAGA|last")
@service_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def why(folder: Path, wanted: str, service: str, is_json: bool) -> int:
    """Explain a request by its trace, or a run of a saga by its id, on one screen.

    Where the time went, what failed first and what followed from it, what stood in, and what was
    undone. `last` is the last call or request from outside. Of a stopped system, too. What no span
    tells, such as one that still runs, is said to be missing.

    Exits 1 when a saga of it is stuck, or waits for code.
    """
    story: dict[str, Any] | None = None
    if wanted != "last" and not _TRACE_ID.fullmatch(wanted):
        (story,) = actions.read(folder, "saga.show", id=wanted, service=service).values()
    spans = _spans(folder, wanted if story is None else story["trace_id"], story)
    explained = _explained(spans, story)
    stories = [] if story is None else [story]
    for each in () if explained is None else explained.sagas[:SAGAS_MAX]:
        of, _, saga_id = each.partition(":")
        if all((of, saga_id) != (told["service"], told["id"]) for told in stories):
            # Its database may be of another day than the spans.
            with suppress(SynchromeshError):
                stories += actions.read(folder, "saga.show", id=saga_id, service=of).values()
    if is_json:
        told = [{**each, "failed_first": first_failure(each["lines"])} for each in stories]
        print_json({"trace": explained, "sagas": told})
    else:
        from synchromesh.cli.show import console

        print_why(console(), explained, stories)
    return FINDING if any(told["status"] in NEED_PERSON for told in stories) else 0


def _spans(folder: Path, trace_id: str, story: dict[str, Any] | None) -> list[SpanRecord]:
    """Return the spans of a trace; of a saga, whose records say more, there may be none left."""
    try:
        return spans_of(folder, trace_id)[1]
    except SynchromeshError:
        if story is None:
            raise
        return []


def _explained(spans: Sequence[SpanRecord], story: dict[str, Any] | None) -> Explanation | None:
    from synchromesh.telemetry.explanation import explain, saga_of

    if not spans:
        return None
    run = f"{story['service']}:{story['id']}" if story is not None else None
    lives = [span for span in spans if run is not None and saga_of(span) == run]
    return explain(spans, max(lives, key=lambda life: life.took_us).span_id if lives else "")


def first_failure(lines: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Return which step of a run failed first, and why, as its records tell; None where none did.

    What is recorded of a step is its start and its outcome. Of one that did not answer there is no
    outcome: that another attempt was begun, or that the run turned meanwhile, says that it failed.
    """
    begun: dict[str, int] = {}
    for line in lines:
        kind, step, attempt = line["kind"], line["step"], line.get("attempt", 0)
        if kind == "rejected":
            return step, line["why"] or "it was refused, and no reason was recorded"
        if kind == "begun" and step in begun:
            had_none = f"attempt {attempt - 1 or 1} had no outcome, and another was begun"
            return step, line["why"].removeprefix("after ") or had_none
        if kind == "begun":
            begun[step] = attempt
        elif kind in ("done", "asleep"):
            begun.pop(step, None)
        elif kind in ("turned", "stuck"):
            # Its words begin with the step, where it knows one.
            named = line["why"].partition(": ")[0]
            step = next((each for each in begun if each == named), next(iter(begun), ""))
            why = line["why"].removeprefix(f"{step}: ") if step else line["why"]
            return step, why or "no outcome of it was recorded, and no reason"
    return None


def print_why(
    out: Console, explained: Explanation | None, stories: Sequence[dict[str, Any]]
) -> None:
    """Print an explanation, and what became of the sagas that it is about."""
    if explained is None:
        _say(out, "no spans of it are kept, so that nothing is known of its time")
    else:
        _print_time(out, explained)
        _print_failures(out, explained)
        _print_list(out, "what was cut", explained.cut)
        _print_list(out, "what stood in", explained.stood_in)
        # The records of a saga say the same, and are all there.
        _print_list(out, "what was undone", () if stories else explained.undone)
    for story in stories:
        _say(out, f"saga {story['id']}  {story['service']}.{story['name']}: {story['status']}")
        failed = first_failure(story["lines"])
        if failed is not None and story["status"] != "completed":
            _say(out, f"  failed first: {' '.join(filter(None, failed))}")
        if story["reason"]:
            _say(out, f"  because {story['reason']}")
        for line in story["lines"]:
            if line["kind"] in _TOLD and (line["step"] or line["why"]):
                _say(out, f"  {' '.join(filter(None, (line['kind'], line['step'], line['why'])))}")
        if story["not_undone"]:
            _say(out, f"  not undone: {', '.join(story['not_undone'])}")
    if explained is not None:
        _print_list(out, "not known", explained.missing)


def _print_time(out: Console, explained: Explanation) -> None:
    from rich.text import Text

    from synchromesh.cli.show import plain_table, styled

    head = f"{explained.name}  {explained.service}  {_ms(explained.took_us)}  "
    out.print(Text(head), styled(explained.status), sep="")
    _say(out, f"trace {explained.trace_id}, {explained.spans} spans")
    after_us = explained.ended_us - explained.took_us
    if after_us >= 1000:
        _say(out, f"what it began went on for {_ms(after_us)} after its answer")
    table = plain_table("where the time went", "", "", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    small_us = explained.took_us * SMALL
    for part in explained.parts:
        if part.took_us >= small_us:
            share = part.took_us / max(1, explained.took_us)
            table.add_row(part.why, _ms(part.took_us), f"{share:.0%}", Text(part.where))
    left_us = sum(part.took_us for part in explained.parts if part.took_us < small_us)
    if left_us:
        table.add_row("the rest, less than 1 % each", _ms(left_us), "", "")
    out.print(table)
    table = plain_table("critical path", "", "", "")
    table.columns[3].justify = "right"
    for step in explained.path:
        name = Text(f"{step.kind} {step.name}")
        table.add_row(name, step.service, styled(step.status), _ms(step.own_us))
    out.print(table)


def _print_failures(out: Console, explained: Explanation) -> None:
    first = explained.first_failure
    if first is None:
        return
    _say(out, "what failed first")
    _say(out, f"  {_told(first)}")
    _print_list(out, "what followed", [_told(each, first.why) for each in explained.followed])
    alike: dict[tuple[str, ...], list[SpanFailure]] = {}
    for each in explained.also_failed:
        alike.setdefault((each.service, each.kind, each.name, each.status), []).append(each)
    _print_list(
        out,
        "what failed besides",
        [
            f"{_told(each[0], first.why)}{f' ({len(each)} times)' if len(each) > 1 else ''}"
            for each in alike.values()
        ],
    )


def _told(failure: SpanFailure, known: str = "") -> str:
    """Say what failed, and why, unless in the words that are known already."""
    why = f": {failure.why}" if failure.why not in ("", known) else ""
    what = f"{failure.service}, {failure.kind} {failure.name}"
    return f"after {_ms(failure.after_us)}  {what}  {failure.status}{why}"


def _print_list(out: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        _say(out, title)
    for line in lines:
        _say(out, f"  {line}")


def _ms(took_us: int) -> str:
    return f"{took_us / 1000:.1f} ms"


def _say(out: Console, line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
