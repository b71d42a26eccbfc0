"""Renders output for people: tables, histories of sagas, and waterfalls of traces.

It needs rich, so a command imports it only when it prints such a thing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from synchromesh.cli.output import OutputClosed, visible
from synchromesh.codec import to_datetime
from synchromesh.system.control.status_parts import FaultStatus
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.trace_tree import tree_of

BAR_COLUMNS = 32
BAR_COLUMNS_MIN = 8
PLAIN_COLUMNS = 160
BODY_CHARS = 80

# Any other status is red.
_COLOURS = {
    "ok": "green",
    "completed": "green",
    "healthy": "green",
    "closed": "green",
    "running": "cyan",
    "queued": "cyan",
    "sleeping": "cyan",
    "undone": "yellow",
    "half_open": "yellow",
    "isolated": "yellow",
    "disabled": "yellow",
}


class PipeConsole(Console):
    """A console that leaves a broken pipe to the entry point, and shows control characters.

    What is rendered may be anybody's, such as the text of an error; colours are not part of it.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield what is drawn, with control characters of texts as escapes."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(visible(text), style)

    def on_broken_pipe(self) -> None:
        """Raise `OutputClosed`."""
        raise OutputClosed


def console() -> Console:
    """Return the console that commands print to; plain and wide where it is not a terminal."""
    found = PipeConsole(highlight=False)
    return found if found.is_terminal else PipeConsole(highlight=False, width=PLAIN_COLUMNS)


def time_of_day(at: str | None) -> str:
    """Return the time of day of an ISO 8601 timestamp, in UTC; "" for none."""
    return dt.datetime.fromisoformat(at).strftime("%H:%M:%S.%f")[:-3] if at else ""


def styled(status: str) -> Text:
    """Render a status in its colour."""
    return Text(status, style=_COLOURS.get(status, "red"))


def duration_text(seconds: float | None) -> str:
    """Format a duration; "" for none.

    Example:
        >>> duration_text(0.25), duration_text(59.6), duration_text(3660.0), duration_text(None)
        ('0.2 s', '59.6 s', '61 m', '')
    """
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} m"


def plain_table(*headings: str) -> Table:
    """Return a table without lines; on a narrow terminal its cells wrap, uncut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def faults_table(faults: list[FaultStatus]) -> Table:
    """Render the injected faults, and how many attempts each has struck."""
    has_why = any(fault.why for fault in faults)
    reasons = ["by", "why"] * has_why
    table = plain_table("broken on purpose", "how", "still", "struck", *reasons)
    for fault in faults:
        still = duration_text(fault.left_s) or "until healed"
        said = [Text(fault.who), Text(fault.why)] * has_why
        table.add_row(fault.target, fault.what, still, str(fault.struck), *said)
    return table


def sagas_table(runs: list[dict[str, Any]]) -> Table:
    """Render saga runs, one a row."""
    table = plain_table("saga", "name", "status", "started", "ended", "owner", "reason")
    for column in table.columns:
        # The others have room for words on a narrow screen.
        column.no_wrap = column.header not in ("name", "reason")
    for run in runs:
        table.add_row(
            Text(run["id"]),
            f"{run['service']}.{run['name']}",
            styled(run["status"]),
            time_of_day(run["started_at"]),
            time_of_day(run["ended_at"]),
            Text(run["owner"]),
            Text(run["reason"]),
        )
    return table


def projections_table(found: list[dict[str, Any]]) -> Table:
    """Render projections, a generation a row."""
    table = plain_table("projection", "generation", "is", "at", "behind", "skipped", "parked")
    for each in found:
        state = Text(each["state"], style="green" if each["state"] == "live" else "")
        if each["is_waiting"]:
            state = Text(f"{each['state']}, waits for code of v{each['version']}", style="yellow")
        parked = each["parked"]
        why = Text("-")
        if parked:
            where = f"{parked['position']} ({parked['name']})" if parked["position"] else "the log"
            since = time_of_day(to_datetime(parked["since_us"]).isoformat())
            why = Text(f"at {where} since {since}: {parked['error']}", style="red")
        table.add_row(
            Text(f"{each['service']}.{each['name']}"),
            f"{each['generation']} (v{each['version']})",
            state,
            str(each["position"]),
            str(each["behind"]),
            str(each["skipped"]),
            why,
        )
    return table


def events_table(found: list[dict[str, Any]]) -> Table:
    """Render events, one a row, with the beginning of their bodies."""
    table = plain_table("at", "event", "name", "stream", "body")
    for each in found:
        body = msgspec.json.encode(each["body"]).decode()
        table.add_row(
            time_of_day(each["recorded_at"]),
            Text(f"{each['service']}:{each['position']}"),
            Text(each["name"]),
            Text(f"{each['stream']}#{each['version']}"),
            Text(body if len(body) <= BODY_CHARS else f"{body[:BODY_CHARS]}..."),
        )
    return table


def print_story(out: Console, story: Mapping[str, Any]) -> None:
    """Print one run of a saga: each step, attempt and undo with its time, and why."""
    head = f"saga {story['id']}  {story['service']}.{story['name']} v{story['version']}  "
    out.print(Text(head), styled(story["status"]), sep="")
    if story["reason"]:
        out.print(f"why: {story['reason']}", markup=False)
    out.print(f"trace {story['trace_id']}")
    table = plain_table("at", "what", "step", "attempt", "why")
    for line in story["lines"]:
        attempt = str(line["attempt"] or "")
        table.add_row(
            time_of_day(line["at"]), line["kind"], line["step"], attempt, Text(line["why"])
        )
    out.print(table)
    if story["not_undone"]:
        out.print(f"not undone: {', '.join(story['not_undone'])}", style="red", markup=False)


def waterfall(spans: list[SpanRecord], columns: int) -> Table:
    """Render a trace as a tree of spans with bars over one time scale.

    A span whose parent was lost, or belongs to another process's buffer, stands at the root. Where
    there is little room bars are drawn smaller, and then names of spans are cut.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("span", "service", "status", "took", ""):
        is_number = heading == "took"
        table.add_column(
            heading,
            justify="right" if is_number else "left",
            min_width=10 if is_number else None,
            no_wrap=heading != "span",
        )
    if not spans:
        return table
    tree = [
        (Text(f"{'  ' * depth}{span.kind} {span.name}", no_wrap=True, overflow="ellipsis"), span)
        for depth, span in tree_of(spans).walk()
    ]
    begin_us = min(span.started_us for span in spans)
    end_us = max(span.started_us + span.took_us for span in spans)
    bars = _bar_columns(tree, columns)
    scale = bars / max(1, end_us - begin_us)
    for name, span in tree:
        left = min(int((span.started_us - begin_us) * scale), bars - 1)
        width = min(max(1, round(span.took_us * scale)), bars - left)
        table.add_row(
            name,
            span.service,
            styled(span.status),
            _took(span),
            Text(" " * left + "█" * width, style=styled(span.status).style).append(
                _notes(span), style="dim"
            ),
        )
    return table


def why(spans: list[SpanRecord]) -> list[Text]:
    """Return why spans failed, in the order of the waterfall.

    The same words are told once, of the span that has them first: those above it repeat them.
    """
    told: list[str] = []
    lines: list[Text] = []
    for _, span in reversed(tree_of(spans).walk() if spans else []):
        error = span.attributes.get("error", "")
        if error and not any(known in error for known in told):
            told.append(error)
            lines.append(Text(f"{span.service}, {span.kind} {span.name}: {error}"))
    return lines[::-1]


def _notes(span: SpanRecord) -> str:
    """Return what is out of the ordinary: attempts, a hedge, and which of several instances."""
    attributes = span.attributes
    attempts, instance = attributes.get("attempts", "1"), attributes.get("instance", "")
    notes = []
    if attempts not in {"0", "1"}:
        notes.append(f"{attempts} attempts")
    if "hedge" in attributes:
        notes.append(f"hedged to {attributes['hedge']}")
    if instance and (notes or "#" in instance):
        notes.append(f"answered by {instance}" if span.status == "ok" else f"last {instance}")
    return f"  {', '.join(notes)}" if notes else ""


def _bar_columns(tree: list[tuple[Text, SpanRecord]], columns: int) -> int:
    """Return the number of columns left for the bars, if possible."""
    others = (
        max(len(name) for name, _ in tree),
        max(len("service"), *(len(span.service) for _, span in tree)),
        max(len("status"), *(len(span.status) for _, span in tree)),
        max(10, *(len(_took(span)) for _, span in tree)),
    )
    gap = 2
    left = columns - sum(others) - gap * len(others)
    return max(BAR_COLUMNS_MIN, min(BAR_COLUMNS, left))


def _took(span: SpanRecord) -> str:
    return f"{span.took_us / 1000:.1f} ms"
