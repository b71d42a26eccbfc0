"""Asks for the actions of an operator: of the running system, or of its databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from synchromesh.cli.operating import client_of, control_of
from synchromesh.cli.output import print_error
from synchromesh.system.config.rundir import user

why_option = click.option("--why", default="", help="Why; recorded with your name.")


def read(folder: Path, name: str, /, *, within_s: float = 0.0, **request: object) -> dict[str, Any]:
    """Return the answers of services to an action that reads, by service.

    A system that is stopped is read from its databases.
    """
    client = client_of(folder)
    if client is not None:
        return _told(client.post(f"/actions/{name}", request, within_s=within_s))
    import asyncio

    import msgspec

    from synchromesh.system.control.stopped import read_stopped

    stopped = asyncio.run(read_stopped(folder, name, msgspec.json.encode(request)))
    return stopped.answers


def repair(
    folder: Path, name: str, why: str, /, *, within_s: float = 0.0, **request: object
) -> dict[str, Any]:
    """Run an action that changes something in the running system; return its answers, by service.

    Raises:
        UsageError: nobody says why.
    """
    asked = {**request, "who": say_why(why), "why": why}
    return _told(control_of(folder).post(f"/actions/{name}", asked, within_s=within_s))


def say_why(why: str) -> str:
    """Return who runs this. Raises UsageError where they do not say why."""
    if not why.strip():
        raise click.UsageError("say why, it is recorded with your name: --why TEXT")
    return user()


def _told(found: dict[str, Any]) -> dict[str, Any]:
    if found["silent"]:
        print_error(f"did not answer: {', '.join(found['silent'])}")
    answers: dict[str, Any] = found["answers"]
    return answers
