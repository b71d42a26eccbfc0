"""`synchromesh call`: make one call to a running system and show its answer and its trace."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import msgspec

from synchromesh.cli.control import ControlClient
from synchromesh.cli.operating import here_alone
from synchromesh.cli.output import print_error, print_json
from synchromesh.errors import SynchromeshError

FINDING = 1


@click.command()
@click.argument("operation")
@click.argument("arguments", nargs=-1)
@click.option("--key", default="", help="The idempotency key of a command; a new one by default.")
@click.option(
    "--timeout",
    "timeout_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.0, 300.0, min_open=True),
    help="Seconds to wait.",
)
@click.option("--principal", default="", help="On whose behalf the call is made.")
@click.option("--scope", "scopes", multiple=True, help="What they may do, such as orders:write.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def call(
    folder: Path,
    operation: str,
    arguments: tuple[str, ...],
    key: str,
    timeout_s: float,
    principal: str,
    scopes: tuple[str, ...],
    is_json: bool,
) -> int:
    """Call OPERATION (service.name) with ARGUMENTS (name=value).

    Where an operation takes one record, its fields are named directly; an object or a list is
    written as JSON. Exits 1 when the call was refused or failed.
    """
    if math.isnan(timeout_s):
        raise click.UsageError("--timeout is not a number of seconds")
    texts: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{argument!r} is not an argument; write name=value")
        if name in texts:
            raise click.UsageError(f"argument {name!r} is given twice")
        texts[name] = value
    control = here_alone(
        folder,
        "an operator is no client; ask the gateway, or call a service by a credential of a client "
        "(synchromesh client add)",
    )
    request = {
        "operation": operation,
        "arguments": texts,
        "key": key,
        "timeout_s": timeout_s,
        "principal": principal,
        "scopes": scopes,
    }
    answer = control.post("/call", request, within_s=timeout_s)
    trace = _trace_of(control, answer["trace_id"])
    is_answer = answer["problem"] is None
    if is_json:
        print_json({**answer, "spans": trace["spans"]})
        return 0 if is_answer else FINDING
    from synchromesh.cli.show import console, waterfall
    from synchromesh.telemetry import SpanRecord

    out = console()
    if is_answer:
        out.print_json(data=answer["result"])
    else:
        problem = answer["problem"]
        out.print(f"[red]{problem['code']}[/red] ({problem['status']}): ", end="")
        out.print(problem["detail"], markup=False)
    out.print(f"\ntrace {answer['trace_id']}")
    out.print(waterfall(msgspec.convert(trace["spans"], list[SpanRecord]), out.width))
    return 0 if is_answer else FINDING


def _trace_of(control: ControlClient, trace_id: str) -> dict[str, Any]:
    """Fetch a trace; a failure must not keep the answer from being printed."""
    try:
        trace: dict[str, Any] = control.get(f"/traces/{trace_id}")
    except SynchromeshError as error:
        print_error(f"synchromesh: the trace cannot be shown: {error.message}")
        return {"trace_id": trace_id, "spans": []}
    return trace
