"""`synchromesh restart`: restarts a process without losing a call."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from synchromesh.cli.control import ControlClient
from synchromesh.cli.output import print_json, print_line

# A new process may take this long to be ready, and the old one as long to let go.
RESTART_WITHIN_S = 60.0


@click.command()
@click.argument("service")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def restart(folder: Path, service: str, is_json: bool) -> int:
    """Replace the process of SERVICE by a new one, as after a change of its code.

    For a system that runs by `synchromesh dev --split`. The old process answers what it has taken;
    calls that come meanwhile are held by their callers until the new one is ready. SERVICE may be
    `gateway`: the new one serves beside the old one until that has answered. Where the new one
    cannot be loaded, the old one stays.
    """
    path = f"/services/{quote(service, safe='')}/restart"
    answer = ControlClient(folder).post(path, {}, within_s=RESTART_WITHIN_S)
    if is_json:
        print_json(answer)
    else:
        print_line(f"{answer['service']} runs anew, in process {answer['pid']}")
    return 0
