"""`synchromesh gateway mirror`: what has come of copies of requests, and where answers differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from synchromesh.cli.operating import control_of
from synchromesh.cli.output import print_json, print_line

if TYPE_CHECKING:
    from synchromesh.system.control.mirror_status import DifferentStatus, MirrorStatus

FINDING = 1


@click.command(short_help="Show where mirrored upstreams answer differently.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def mirror(folder: Path, is_json: bool) -> int:
    """Show what has come of the copies that routes with a Mirror send, and the last differences.

    Counts begin with the gateway's start. Exits 1 where answers differed, or copies failed.
    """
    import msgspec

    from synchromesh.system.control.status import Status

    status = msgspec.convert(control_of(folder).get("/status"), Status)
    gateways = [status.gateway] if status.gateway is not None else []
    mirrors = [each for one in (status.gateways.values() or gateways) for each in one.mirrors]
    if is_json:
        print_json(msgspec.to_builtins(mirrors))
    elif not mirrors:
        print_line("no route of the gateway has a mirror")
    else:
        _show(mirrors)
    return FINDING if any(each.different or each.failed for each in mirrors) else 0


def _show(mirrors: list[MirrorStatus]) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    names = ("same", "different", "failed", "dropped", "too long", "unanswered")
    table = plain_table("route", "from", "to", *names)
    for each in mirrors:
        counts = [str(getattr(each, name.replace(" ", "_"))) for name in names]
        table.add_row(*map(Text, (each.route, each.first, each.to, *counts)))
    console().print(table)
    for each in mirrors:
        if each.last_failure:
            print_line(f"{each.route}: the last copy that failed: {each.last_failure}")
        for kept in each.kept:
            print_line(f"{each.route}: {_told(kept)}")


def _told(kept: DifferentStatus) -> str:
    from synchromesh.codec import to_datetime

    at = to_datetime(kept.at_us).strftime("%H:%M:%S")
    asked = f" {kept.target}" if kept.target else ""
    found = []
    for each in kept.differences:
        values = (
            f": {each.first or '-'} / {each.mirror or '-'}" if each.first or each.mirror else ""
        )
        found.append(f"{each.where or '/'} ({each.why}{values})")
    return f"{at} UTC, trace {kept.trace_id}{asked}: {', '.join(found)}"
