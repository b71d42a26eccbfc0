"""`synchromesh trace`: the waterfall of one trace."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from synchromesh.cli.control import ControlClient
from synchromesh.cli.output import print_json
from synchromesh.system.config.rundir import RunDir


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
    if RunDir(folder).is_running():
        answer = ControlClient(folder).get(f"/traces/{quote(trace_id, safe='')}")
    else:
        from synchromesh.system.control.stopped import read_trace

        answer = read_trace(folder, trace_id)
    if is_json:
        print_json(answer)
        return 0
    from synchromesh.cli.show import console, decode_spans, waterfall, why

    out = console()
    out.print(f"trace {answer['trace_id']}")
    spans = decode_spans(answer)
    out.print(waterfall(spans, out.width))
    for line in why(spans):
        out.print(line)
    return 0
