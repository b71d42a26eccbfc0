"""`synchromesh breaker`: isolates edges by hand, and releases them."""

from __future__ import annotations

from pathlib import Path

import click

from synchromesh.cli.actions import say_why, why_option
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.operating import control_of, say_silent
from synchromesh.cli.output import print_json, print_line


@click.group(cls=CommandGroup)
def breaker() -> None:
    """Isolate an edge by hand, and release it."""


@breaker.command()
@click.argument("target", metavar="[CALLER:]SERVICE")
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def isolate(folder: Path, target: str, why: str, is_json: bool) -> int:
    """Isolate an edge, CALLER:CALLEE, or SERVICE for all its callers, until it is released.

    Its calls are refused at once, as while the breaker is open (`circuit_open`), or answered by
    their fallbacks. It holds over restarts of processes, and ends with the system.
    """
    asked = {"target": target, "who": say_why(why), "why": why}
    answer = control_of(folder).post("/breakers", asked)
    if is_json:
        print_json(answer)
    else:
        print_line(f"isolated: {', '.join(answer['isolated'])}")
        print_line(f"release it with: synchromesh breaker release {target} --why TEXT")
    return say_silent(answer)


@breaker.command()
@click.argument("target", metavar="[CALLER:]SERVICE")
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def release(folder: Path, target: str, why: str, is_json: bool) -> int:
    """Release an edge, or all edges of SERVICE; their breakers are closed, and learn anew.

    Nothing to release is no mistake.
    """
    asked = {"target": target, "who": say_why(why), "why": why}
    answer = control_of(folder).post("/breakers/release", asked)
    if is_json:
        print_json(answer)
        return say_silent(answer)
    released = ", ".join(each["target"] for each in answer["released"])
    print_line(f"released: {released or 'nothing was isolated there'}")
    if answer["isolated"]:
        print_line(f"still isolated: {', '.join(answer['isolated'])}")
    return say_silent(answer)
