"""`synchromesh messages`: messages that were set aside, and what a person does with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from synchromesh.cli import actions
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line

FINDING = 1

_REF = re.compile(r"([a-z][a-z0-9_]*):([1-9][0-9]{0,17})")


@click.group(cls=CommandGroup)
def messages() -> None:
    """Show, replay and drop messages that were set aside; forget a subscriber that is gone.

    A message is parked where its handler failed on it, held where no release of its subscriber that
    has run knows it, refused where its subscriber says no. Later ones of its key wait behind it.
    """


@messages.command("list")
@click.option("--service", default="", help="Only those that this service has set aside.")
@click.option("--source", default="", help="Only those of this publisher.")
@click.option("--key", default="", help="Only those of this partition key.")
@click.option("--state", default="", help="Only parked, held, refused, ready or waiting ones.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_messages(
    folder: Path, service: str, source: str, key: str, state: str, limit: int, is_json: bool
) -> int:
    """List the messages that were set aside, oldest first. Exits 1 when one needs something.

    One that waits behind another, or is about to be handled, does not.
    """
    answers = actions.read(
        folder, "messages.list", service=service, source=source, key=key, state=state, limit=limit
    )
    found = [each for own in answers.values() for each in own]
    found = sorted(found, key=lambda each: str(each["first_at"]))[:limit]
    if is_json:
        print_json(found)
    elif not found:
        print_line("no message is set aside" + (" like that" if source or key or state else ""))
    else:
        from synchromesh.cli.show import console
        from synchromesh.cli.show_messages import messages_table

        console().print(messages_table(found))
    return FINDING if any(each["state"] not in ("ready", "waiting") for each in found) else 0


@messages.command("show")
@click.argument("ref", metavar="SERVICE:NUMBER|ID")
@click.option("--payload", "has_payload", is_flag=True, help="Show what it carries, too.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON, with the payload.")
@click.pass_obj
def show_message(folder: Path, ref: str, has_payload: bool, is_json: bool) -> int:
    """Show one message: what it is, why it waits, and since when. Exits 1."""
    which = _parsed(ref) if ":" in ref else {"id": ref}
    answers = actions.read(folder, "messages.show", **which)
    found = [each for own in answers.values() for each in own]
    if is_json:
        print_json(found)
    else:
        from synchromesh.cli.show import console
        from synchromesh.cli.show_messages import print_message

        for each in found:
            print_message(console(), each, has_payload=has_payload)
    return FINDING


@messages.command("replay")
@click.argument("ref", metavar="[SERVICE:NUMBER]", default="")
@click.option("--service", default="", help="Without a message: all that are parked here.")
@click.option("--source", default="", help="Of them, only those of this publisher.")
@click.option("--key", default="", help="Of them, only those of this partition key.")
@actions.why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def replay_message(
    folder: Path, ref: str, service: str, source: str, key: str, why: str, is_json: bool
) -> int:
    """Handle a message again, or all that are parked; those behind it follow by themselves.

    Exits 1 when one failed again.
    """
    if bool(ref) == bool(service):
        raise click.UsageError(
            "name one message, as in stock:17, or a service whose parked messages are all to be "
            "replayed: --service stock"
        )
    which = _parsed(ref) if ref else {"service": service, "source": source, "key": key}
    answers = actions.repair(folder, "messages.replay", why, **which)
    found = [each for own in answers.values() for each in own]
    if is_json:
        print_json(found)
    else:
        for each in found:
            print_line(f"{each['ref']}: {each['outcome']}{_why(each)}")
    return (
        0
        if all(each["outcome"] in ("handled", "delivered", "ignored") for each in found)
        else FINDING
    )


@messages.command("drop")
@click.argument("ref", metavar="SERVICE:NUMBER")
@actions.why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def drop_message(folder: Path, ref: str, why: str, is_json: bool) -> int:
    """Discard a message unhandled; the next one of its key follows by itself."""
    (dropped,) = actions.repair(folder, "messages.drop", why, **_parsed(ref)).values()
    if is_json:
        print_json(dropped)
    else:
        print_line(f"{dropped['ref']}: dropped {dropped['event']} of {dropped['key']!r}")
    return 0


@messages.command("forget")
@click.argument("subscriber")
@click.option("--service", default="", help="Only what this publisher keeps for it.")
@actions.why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def forget_subscriber(folder: Path, subscriber: str, service: str, why: str, is_json: bool) -> int:
    """Forget a subscriber that is gone for ever: how far it was, and what it had refused.

    Refused as long as a process that runs takes events for it. What was published and it has not
    got is then kept for nobody.
    """
    answers = actions.repair(folder, "messages.forget", why, service=service, subscriber=subscriber)
    if is_json:
        print_json([{"service": name, **told} for name, told in answers.items()])
    else:
        for name, told in answers.items():
            print_line(
                f"{name}: forgot {subscriber}, which had got the log up to {told['position']}; "
                f"messages dropped: {told['dropped']}"
            )
    return 0


def _parsed(ref: str) -> dict[str, Any]:
    found = _REF.fullmatch(ref)
    if found is None:
        raise click.UsageError(
            f"{ref[:80]!r} does not name a message; expected SERVICE:NUMBER, as synchromesh "
            "messages list shows it"
        )
    return {"service": found[1], "number": int(found[2])}


def _why(each: dict[str, Any]) -> str:
    return f" ({each['error']})" if each["error"] else ""
