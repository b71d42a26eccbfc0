"""`synchromesh break` and `synchromesh heal`: fault injection in a running system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from synchromesh.cli.actions import why_option
from synchromesh.cli.operating import control_of, say_silent
from synchromesh.cli.output import print_json, print_line
from synchromesh.system.config.rundir import user
from synchromesh.system.control.status_parts import FaultStatus


@click.command("break")
@click.argument("target", metavar="[CALLER:]SERVICE[#N]")
@click.option("--errors", default="", help='The share of attempts that fail, such as "100%".')
@click.option("--latency", default="", help='How much later attempts are sent, such as "300ms".')
@click.option("--stall", is_flag=True, help="Answer nothing: attempts hang until their timeout.")
@click.option("--for", "duration", default="", help='How long, such as "20s"; else until healed.')
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def break_on_purpose(
    folder: Path,
    target: str,
    errors: str,
    latency: str,
    stall: bool,
    duration: str,
    why: str,
    is_json: bool,
) -> int:
    """Inject faults into the calls of a service, of one instance, or of one edge, CALLER:CALLEE.

    The fault is at the callers' side, so that services that are not yours can be broken too; those
    who call a service's URL without the system are not struck. A fault on the same target is
    replaced.
    """
    if not (errors or latency or stall):
        raise click.UsageError("say how to break it: --errors 100%, --latency 300ms or --stall")
    request = {
        "target": target,
        "errors": errors,
        "latency": latency,
        "stall": stall,
        "for": duration,
        "who": user(),
        "why": why,
    }
    fault = control_of(folder).post("/faults", request)
    if is_json:
        print_json(fault)
        return say_silent(fault)
    from synchromesh.cli.show import console, faults_table

    console().print(faults_table([msgspec.convert(fault, FaultStatus)]))
    print_line(f"heal it with: synchromesh heal {fault['target']}")
    return say_silent(fault)


@click.command()
@click.argument("target", metavar="[[CALLER:]SERVICE[#N]|all]", default="all")
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def heal(folder: Path, target: str, why: str, is_json: bool) -> int:
    """Remove injected faults: of a service, an edge, or all. Nothing to heal is no mistake."""
    answer = control_of(folder).post("/faults/heal", {"target": target, "who": user(), "why": why})
    if is_json:
        print_json(answer)
        return say_silent(answer)
    print_line(f"healed: {_targets(answer['healed']) or 'nothing was broken there'}")
    if answer["in_force"]:
        print_line(f"still broken: {_targets(answer['in_force'])}")
    return say_silent(answer)


def _targets(faults: list[dict[str, Any]]) -> str:
    return ", ".join(fault["target"] for fault in faults)
