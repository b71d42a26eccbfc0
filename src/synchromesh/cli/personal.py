"""`synchromesh personal`: whose personal data services keep, and erasing a person's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from synchromesh.cli import actions
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_error, print_json, print_line

FINDING = 1
# An export goes through whole tables.
WITHIN_S = 600.0

json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.group(cls=CommandGroup)
def personal() -> None:
    """Show whose personal data services keep; erase a person's.

    But for export, none of them shows the data itself.
    """


@personal.command("list")
@click.option("--service", default="", help="Only those of this service.")
@click.option("--erased", "is_erased", is_flag=True, help="Those that were erased, in its place.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@json_option
@click.pass_obj
def list_subjects(folder: Path, service: str, is_erased: bool, limit: int, is_json: bool) -> int:
    """List the subjects that services have keys for, the last one first.

    Of one that was erased no name is left, only when it was, by whom and why.
    """
    answers = actions.read(
        folder, "personal.list", service=service, is_erased=is_erased, limit=limit
    )
    found = [{"service": name, **each} for name, own in answers.items() for each in own]
    if is_json:
        print_json(found)
    elif not found:
        print_line("nobody was erased" if is_erased else "no service has personal data")
    else:
        _print_table(found, is_erased=is_erased)
    return 0


@personal.command("show")
@click.argument("subject")
@json_option
@click.pass_obj
def show_subject(folder: Path, subject: str, is_json: bool) -> int:
    """Show which services have a key for SUBJECT, or when it was erased there, by whom and why."""
    answers = actions.read(folder, "personal.show", subject=subject)
    if is_json:
        print_json(answers)
        return 0
    for service, own in answers.items():
        if own["erased_at"] is None:
            print_line(f"{service}: has a key since {own['since']}")
        else:
            print_line(f"{service}: erased at {own['erased_at']} by {own['who']}: {own['why']}")
        for each in own["shown"]:
            print_line(f"  shown to {each['who']} at {each['at']}: {each['why']}")
    return 0


@personal.command("export")
@click.argument("subject")
@actions.why_option
@json_option
@click.pass_obj
def export_subject(folder: Path, subject: str, why: str, is_json: bool) -> int:
    """Show the personal data of SUBJECT that services hold, for a person who asks what is known.

    It is the one verb that opens it, which is recorded with who and why. Exits 1 where a service
    did not answer, or holds more than the 1,000 records that are shown.
    """
    answers, silent = _asked(folder, "personal.export", subject, actions.say_why(why), why)
    if is_json:
        print_json(answers)
    for service, own in answers.items() if not is_json else ():
        for each in own["found"]:
            print_line(f"{service}: {each['what']} {each['of']} {each['at']}".rstrip())
            for place, value in each["values"].items():
                print_line(f"  {place}: {value if isinstance(value, str) else json.dumps(value)}")
        if not own["is_all"]:
            print_line(f"{service}: there is more")
    return FINDING if silent or not all(own["is_all"] for own in answers.values()) else 0


@personal.command("erase")
@click.argument("subject")
@click.option(
    "--even-unknown", is_flag=True, help="Also where no service knows it: nothing will be kept."
)
@actions.why_option
@json_option
@click.pass_obj
def erase_subject(folder: Path, subject: str, even_unknown: bool, why: str, is_json: bool) -> int:
    """Erase SUBJECT in every service, for good: what is sealed of it cannot be read any more.

    That holds for each copy, as in backups. It may be repeated; exits 1 where a service did not do
    it, such as one that does not run, or where bytes of the key are on the disk until whoever reads
    the file has ended.
    """
    who = actions.say_why(why)
    if not even_unknown:
        actions.read(folder, "personal.show", subject=subject)
    from synchromesh.system.control.stopped import databases_of

    answers, silent = _asked(folder, "personal.erase", subject, who, why)
    missing = sorted({*databases_of(folder), *silent} - answers.keys())
    if is_json:
        print_json({"erased": list(answers.values()), "missing": missing})
    for service, own in answers.items() if not is_json else ():
        print_line(f"{service}: {_said(own)}{_left(service, own)}")
    if missing and not is_json:
        print_line(f"NOT erased in {', '.join(missing)}: did not answer; repeat this once it runs")
    return FINDING if missing or any(own["left_over"] for own in answers.values()) else 0


@personal.command("give-up")
@click.argument("service")
@actions.why_option
@json_option
@click.pass_obj
def give_up(folder: Path, service: str, why: str, is_json: bool) -> int:
    """Take all personal data of SERVICE as erased whose keys are lost, and begin with new keys.

    Put the file of the keys back, if there is any copy of it: after this it is of no use.
    """
    (answer,) = actions.repair(folder, "personal.give-up", why, service=service).values()
    if is_json:
        print_json(answer)
    else:
        print_line(f"{service}: what was sealed with the keys {answer['lost']} is erased")
    return 0


def _asked(
    folder: Path, name: str, subject: str, who: str, why: str
) -> tuple[dict[str, Any], list[str]]:
    """Return what services answered, and the processes that did not, which are told."""
    from synchromesh.cli.control import ControlClient

    request = {"subject": subject, "who": who, "why": why}
    found = ControlClient(folder).post(f"/actions/{name}", request, within_s=WITHIN_S)
    if found["silent"]:
        print_error(f"did not answer: {', '.join(found['silent'])}")
    return found["answers"], found["silent"]


def _said(own: dict[str, Any]) -> str:
    if own["was"] == "erased":
        return f"was erased before, at {own['erased_at']} by {own['who']}: {own['why']}"
    if own["was"] == "unknown":
        return "had nothing of it, and will keep nothing"
    return "erased"


def _left(service: str, own: dict[str, Any]) -> str:
    if not own["left_over"]:
        return ""
    return (
        f", and not yet overwritten in {service}.keys: {own['left_over']}. It is tried again until "
        "it is; repeat this to see"
    )


def _print_table(found: list[dict[str, Any]], *, is_erased: bool) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    names = ("erased at", "by", "why") if is_erased else ("subject", "since")
    keys = ("erased_at", "who", "why") if is_erased else ("subject", "since")
    table = plain_table("service", *names)
    for each in found:
        table.add_row(each["service"], *(Text(str(each[key])) for key in keys))
    console().print(table)
