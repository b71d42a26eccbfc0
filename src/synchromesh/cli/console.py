"""`synchromesh console`: another URL that lets a browser into the console."""

from __future__ import annotations

from pathlib import Path

import click

from synchromesh.cli.operating import here_alone
from synchromesh.cli.output import print_json, print_line


@click.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def console(folder: Path, is_json: bool) -> int:
    """Print a URL that lets one browser into the console of the running system, once.

    It shows what needs a person, services, traces and sagas, and does what the command line does.
    The browser stays in for a week, also after a restart.
    """
    control = here_alone(
        folder,
        "synchromesh status --watch, trace, why and saga ask all of them, and synchromesh export "
        "grafana draws their metrics",
    )
    answer = control.post("/console", {})
    if is_json:
        print_json(answer)
    else:
        print_line(answer["url"])
    return 0
