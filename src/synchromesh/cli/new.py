"""`synchromesh new`: the folder of a new system."""

from __future__ import annotations

from pathlib import Path

import click

from synchromesh.cli.output import print_json, print_line


@click.command()
@click.argument("name")
@click.option("--example", "is_example", is_flag=True, help="Write servo-works, the whole of it.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def new(folder: Path, name: str, is_example: bool, is_json: bool) -> int:
    """Make the folder NAME with a system of one service in it: contract, service and test.

    With --example it is servo-works, the reference system. Nothing that is there is written over.
    """
    from synchromesh.system.scaffold import new_system

    made = new_system(folder, name, is_example=is_example)
    if is_json:
        print_json({"folder": str(made)})
        return 0
    print_line(f"{made} is made; run it with:\n  cd {name}\n  synchromesh dev")
    return 0
