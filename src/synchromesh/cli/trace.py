"""`synchromesh trace`: the waterfall of one trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import msgspec

from synchromesh.cli.operating import client_of
from synchromesh.cli.output import print_json, print_line

if TYPE_CHECKING:
    from synchromesh.telemetry import SpanRecord


@click.command()
@click.argument("trace_id", metavar="ID|last")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def trace(folder: Path, trace_id: str, is_json: bool) -> int:
    """Show the spans of a trace by its id; `last` is the last call or request from outside.

    Below them stands why one failed, in the words that clients are not told. What the code of a
    handler raised itself has none here: `synchromesh logs --trace ID` has them.

    Of a stopped system, too.
    """
    answer, spans = spans_of(folder, trace_id)
    if is_json:
        print_json(answer)
        return 0
    from synchromesh.cli.show import console, waterfall, why

    out = console()
    out.print(f"trace {answer['trace_id']}")
    out.print(waterfall(spans, out.width))
    for line in why(spans):
        out.print(line)
    print_line(f"where the time went: synchromesh why {answer['trace_id']}")
    return 0


def spans_of(folder: Path, trace_id: str) -> tuple[dict[str, Any], list[SpanRecord]]:
    """Return the answer about a trace, or the `last`, of a system that runs or not; and its spans.

    Raises:
        SynchromeshError: there is none, or the system does not answer.
    """
    from synchromesh.telemetry import SpanRecord

    answer: dict[str, Any]
    path, client = f"/traces/{quote(trace_id, safe='')}", client_of(folder)
    if client is not None:
        answer = client.get(path)
    else:
        from synchromesh.system.control.stopped import read_trace

        answer = read_trace(folder, trace_id)
    return answer, msgspec.convert(answer["spans"], list[SpanRecord])
