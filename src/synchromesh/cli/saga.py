"""`synchromesh saga`: the runs of sagas, the history of one, its repair, and changes of code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from synchromesh.cli import actions
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line
from synchromesh.cli.saga_check import check, record
from synchromesh.errors import ConfigError

FINDING = 1
NEED_PERSON = ("stuck", "waiting")

service_option = click.option(
    "--service", default="", help="Whose run is meant, where several services have one of this id."
)


@click.group(cls=CommandGroup)
def saga() -> None:
    """Show the runs of sagas, repair them, and check a change of their code."""


@saga.command("list")
@click.option("--status", default="", help="Only runs of this status, such as stuck.")
@click.option("--service", default="", help="Only those of this service.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_runs(folder: Path, status: str, service: str, limit: int, is_json: bool) -> int:
    """List the runs of sagas, the newest first.

    Exits 1 when one is stuck, or waits for code.
    """
    runs = _newest(folder, status, service, limit)
    if is_json:
        print_json(runs)
    elif not runs:
        print_line(f"no saga is {status}" if status else "no saga was started yet")
    else:
        from synchromesh.cli.show import console, sagas_table

        console().print(sagas_table(runs))
    return FINDING if any(run["status"] in NEED_PERSON for run in runs) else 0


@saga.command("show")
@click.argument("saga_id", metavar="ID|last")
@service_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show_run(folder: Path, saga_id: str, service: str, is_json: bool) -> int:
    """Show one run: each step, attempt and undo, and why.

    Exits 1 when it is stuck, or waits for code.
    """
    if saga_id == "last":
        newest = _newest(folder, "", service, 1)
        if not newest:
            raise ConfigError("no saga has run yet")
        saga_id, service = newest[0]["id"], newest[0]["service"]
    (story,) = actions.read(folder, "saga.show", id=saga_id, service=service).values()
    if is_json:
        print_json(story)
    else:
        from synchromesh.cli.show import console, print_story

        print_story(console(), story)
    return FINDING if story["status"] in NEED_PERSON else 0


def _newest(folder: Path, status: str, service: str, limit: int) -> list[dict[str, Any]]:
    answers = actions.read(folder, "saga.list", status=status, service=service, limit=limit)
    found = [run for runs in answers.values() for run in runs]
    return sorted(found, key=lambda run: str(run["started_at"]), reverse=True)[:limit]


_json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")
_id_argument = click.argument("saga_id", metavar="ID")
_not_done_option = click.option(
    "--not-done",
    is_flag=True,
    help="You have looked: what the run does not know was not done.",
)


@saga.command("impact")
@_id_argument
@service_option
@_json_option
@click.pass_obj
def show_impact(folder: Path, saga_id: str, service: str, is_json: bool) -> int:
    """Show what each action would do with a run. Changes nothing."""
    (impacts,) = actions.read(folder, "saga.impact", id=saga_id, service=service).values()
    if is_json:
        print_json(impacts)
        return 0
    for each in impacts:
        said = each["effects"] if each["is_allowed"] else [f"refused: {each['refused']}"]
        print_line(f"{each['verb']}: {'; '.join(said)}")
    return 0


@saga.command("retry")
@_id_argument
@service_option
@_not_done_option
@actions.why_option
@_json_option
@click.pass_obj
def retry_run(
    folder: Path, saga_id: str, service: str, not_done: bool, why: str, is_json: bool
) -> int:
    """Try again what a stuck run is stuck at."""
    return _repair(
        folder, "saga.retry", why, is_json, id=saga_id, service=service, not_done=not_done
    )


@saga.command("skip")
@_id_argument
@service_option
@click.option("--result", default="", help="What the step returns, as JSON; null where left out.")
@actions.why_option
@_json_option
@click.pass_obj
def skip_step(
    folder: Path, saga_id: str, service: str, result: str, why: str, is_json: bool
) -> int:
    """Take the step of a stuck run as done by hand, or as undone."""
    try:
        given = msgspec.json.decode(result) if result else None
    except msgspec.DecodeError as error:
        raise click.UsageError(
            f"--result is no JSON: {error}; a text needs quotes: '\"A-1\"'"
        ) from error
    more = {"result": given} if result else {}
    return _repair(folder, "saga.skip", why, is_json, id=saga_id, service=service, **more)


@saga.command("undo")
@_id_argument
@service_option
@_not_done_option
@actions.why_option
@_json_option
@click.pass_obj
def undo_run(
    folder: Path, saga_id: str, service: str, not_done: bool, why: str, is_json: bool
) -> int:
    """Undo a stuck run; only before its pivot."""
    return _repair(
        folder, "saga.undo", why, is_json, id=saga_id, service=service, not_done=not_done
    )


@saga.command("cancel")
@_id_argument
@service_option
@actions.why_option
@_json_option
@click.pass_obj
def cancel_run(folder: Path, saga_id: str, service: str, why: str, is_json: bool) -> int:
    """Undo a run that goes on, or waits; only before its pivot."""
    return _repair(folder, "saga.cancel", why, is_json, id=saga_id, service=service)


def _repair(folder: Path, name: str, why: str, is_json: bool, **request: Any) -> int:
    (story,) = actions.repair(folder, name, why, **request).values()
    if is_json:
        print_json(story)
    else:
        print_line(f"saga {story['id']} is {story['status']}: {story['reason']}")
        of = f" --service {request['service']}" if request["service"] else ""
        print_line(f"follow it with: synchromesh saga show {story['id']}{of}")
    return 0


saga.add_command(check)
saga.add_command(record)
