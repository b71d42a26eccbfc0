"""`synchromesh restart`: restarts a part of a system without losing a call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from synchromesh.cli.actions import why_option
from synchromesh.cli.operating import ReplicasClient, control_of
from synchromesh.cli.output import print_json, print_line
from synchromesh.durations import duration
from synchromesh.system.config.rundir import user

if TYPE_CHECKING:
    from synchromesh.system.control.successors import Followed

FINDING = 1


@click.command()
@click.argument("name")
@click.option(
    "--break", "is_break", is_flag=True, help="Go on where contracts break; needs --reason."
)
@click.option("--reason", default="", help="Why a contract is broken; recorded with your name.")
@click.option(
    "--within",
    default="5m",
    show_default=True,
    help="How long it may take; of replicas that run by themselves, each one's successor.",
)
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def restart(
    folder: Path, name: str, is_break: bool, reason: str, within: str, why: str, is_json: bool
) -> int:
    """Restart a part, as after a change of its code, or one that was given up.

    NAME is a service, an external one, the gateway, or a background child as `status` names it,
    such as `orders/projection/open`. What was given up is tried at once, and its failures are over.

    With `synchromesh dev --split` a service has a process, which is replaced. The old one answers
    what it has taken; calls that come meanwhile go to its replicas, or are held by their callers
    until the new one is ready. Replicas are replaced one after the other; NAME may be one of them,
    such as `quoting#2`. Of `gateway` the new one serves beside the old one until that has answered.
    Where a new one cannot be loaded, the old one stays.

    In a system of one process a service is stopped and started anew on the same code, and calls
    are held meanwhile; changed code is taken up by --split, by --reload, or by a new `dev`.

    With --split the old one also stays where contracts would break: the new one no longer offers
    what others that run expect of it, or expects of them what they do not offer. Exits 1 then, with
    a line for each. With --break the new one is let in all the same; status and the log say who did
    that, and why.

    Replicas by `synchromesh run` are asked to end, one by one: each leaves the registry, answers
    what it has taken and ends, and whoever runs it starts the next one. Once that is registered,
    the next one is asked. Exits 1 with the reason where none comes in time, and leaves the others
    as they are. A background child is restarted with its replica.
    """
    if is_break != bool(reason.strip()):
        raise click.UsageError("--break and --reason go together: --break --reason TEXT")
    within_s = duration(within, "--within")
    client = control_of(folder)
    if isinstance(client, ReplicasClient):
        if is_break:
            raise click.UsageError(
                "replicas that run by themselves compare no contracts when they start, so that "
                "there is nothing to --break: have `synchromesh contract check` in the pipeline"
            )
        return _restart_replicas(client, name, within_s, is_json=is_json)
    path = f"/services/{quote(name, safe='')}/restart"
    request = {"asked_by": user(), "why": why}
    if is_break:
        request |= {"who": user(), "reason": reason}
    answer = client.post(path, request, within_s=within_s)
    if is_json:
        print_json(answer)
    else:
        print_replacement(answer)
    return FINDING if answer["is_refused"] else 0


def _restart_replicas(client: ReplicasClient, name: str, within_s: float, *, is_json: bool) -> int:
    def note(told: Followed) -> None:
        if not is_json:
            print_line(f"{told.instance}: {told.by} follows it, process {told.pid} on {told.node}")

    report = client.restart(name, within_s=within_s, note=note)
    if is_json:
        print_json(report)
    elif report.stopped:
        print_line(f"stopped: {report.stopped}")
        if report.left:
            print_line(f"left as they are: {', '.join(report.left)}")
    return FINDING if report.stopped else 0


def print_replacement(answer: dict[str, Any]) -> None:
    """Print what became of a part that was asked to run anew."""
    is_refused, breaks = answer["is_refused"], answer["breaks"]
    *replaced, (last, pid) = answer["pids"].items()
    for name, successor in [*replaced, *([] if is_refused else [(last, pid)])]:
        how = ", on the same code" if answer["is_same_code"] else ""
        print_line(f"{name} runs anew{how}, in process {successor}")
    if is_refused:
        print_line(f"{last} was not replaced, process {pid} serves on; contracts would break:")
    elif breaks:
        print_line("contracts that are broken now:")
    for each in breaks:
        print_line(f"  {each}")
    if is_refused:
        print_line(
            "make it in two steps that each fit what runs: first add the new beside the old (a new "
            "field with a default), and restart both sides; then take the old away, and restart "
            "them again"
        )
        print_line("to break it all the same: --break --reason TEXT")
