"""`synchromesh new`: the folder of a new system."""

from __future__ import annotations

from pathlib import Path

import click

from synchromesh.cli.show import console, print_json
from synchromesh.system.scaffold import new_system


@click.command(short_help="Make a folder with a system to begin from.")
@click.argument("name")
@click.option("--example", "is_example", is_flag=True, help="Write servo-works, the whole of it.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def new(folder: Path, name: str, is_example: bool, is_json: bool) -> int:
    """Make the folder NAME with a system of one service in it: contract, service and test.

    With --example it is servo-works, the reference system. Nothing that is there is written over.
    """
    made = new_system(folder, name, is_example=is_example)
    if is_json:
        print_json({"folder": str(made)})
        return 0
    out = console()
    out.print(f"{made} is made; run it with:", markup=False)
    out.print(f"  cd {name}", markup=False)
    out.print("  synchromesh dev", markup=False)
    return 0
