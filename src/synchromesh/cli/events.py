"""`synchromesh events`: what has happened, of a running system or a stopped one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from synchromesh.cli import actions
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import OutputClosed, print_json, print_line, print_verbatim
from synchromesh.errors import ConfigError

TAIL_EVERY_S = 0.5

_stream = click.option("--stream", default="", help="Only those of this stream.")
_name = click.option("--name", default="", help="Only those of this name: inventory.reserved.")


@click.group(cls=CommandGroup)
def events() -> None:
    """Read the events of services."""


@events.command("list")
@click.option("--service", default="", help="Only those of this service.")
@_stream
@_name
@click.option("--after", type=click.IntRange(0), help="The first ones after this position.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_events(
    folder: Path, service: str, stream: str, name: str, after: int | None, limit: int, is_json: bool
) -> int:
    """List the last events of each service, the newest last."""
    found = _read(folder, service=service, stream=stream, name=name, after=after, limit=limit)
    if is_json:
        print_json(found)
    elif not found:
        print_line("there is no such event")
    else:
        from synchromesh.cli.show import console, events_table

        console().print(events_table(found))
    return 0


@events.command()
@click.argument("event", metavar="ID|SERVICE:POSITION")
@click.option("--service", default="", help="Whose position it is.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(folder: Path, event: str, service: str, is_json: bool) -> int:
    """Show one event with its body, by its id or as `events list` names it."""
    of, _, position = event.rpartition(":")
    if of and position.isdecimal():
        if service not in ("", of):
            raise click.UsageError(f"{event} is an event of {of}, and --service says {service}")
        service, event = of, position
    which: dict[str, Any] = {"position": int(event)} if event.isdecimal() else {"id": event}
    answers = actions.read(folder, "events.show", service=service, **which)
    if len(answers) > 1:
        raise ConfigError(
            f"{', '.join(answers)} each have an event at position {event}; say whose: --service "
            "NAME"
        )
    ((of, found),) = answers.items()
    record = {"service": of, **found}
    if is_json:
        print_json(record)
    else:
        import msgspec

        body = record.pop("body")
        width = max(map(len, record))
        for field, value in record.items():
            print_line(f"{field:{width}}  {value}")
        print_line(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
    return 0


@events.command()
@click.option("--service", default="", help="Only those of this service.")
@_stream
@_name
@click.option("--json", "is_json", is_flag=True, help="Print lines of JSON.")
@click.pass_obj
def tail(folder: Path, service: str, stream: str, name: str, is_json: bool) -> int:
    """Print the last events, then each as it happens, until Ctrl-C.

    Of a stopped system those are the last ones.
    """
    import asyncio

    from synchromesh.system.config.rundir import RunDir

    wanted = {"stream": stream, "name": name}
    reached = _print_new(folder, wanted, {service: None}, is_json)
    try:
        while RunDir(folder).is_running():
            asyncio.run(asyncio.sleep(TAIL_EVERY_S))
            reached |= _print_new(folder, wanted, reached, is_json)
    except KeyboardInterrupt:
        pass
    return 0


@events.command()
@click.argument("service")
@_stream
@_name
@click.option("--after", default=0, type=click.IntRange(0), help="Only those after this position.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A new file.")
@click.pass_obj
def export(folder: Path, service: str, stream: str, name: str, after: int, out: Path | None) -> int:
    """Write all events of a service as lines of JSON.

    They are read from its database, also while it runs, and come page by page.
    """
    import asyncio

    from synchromesh.system.control.stopped import export_to

    if out is None:
        asyncio.run(export_to(folder, service, _write, stream=stream, name=name, after=after))
        return 0
    try:
        with out.open("xb") as file:
            count = asyncio.run(
                export_to(folder, service, file.write, stream=stream, name=name, after=after)
            )
    except FileExistsError:
        raise ConfigError(f"{out} is there already; give the name of a new file") from None
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    print_line(f"{count} events of {service} are in {out}")
    return 0


def _write(lines: bytes) -> None:
    try:
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise OutputClosed from None


def _read(folder: Path, **request: Any) -> list[dict[str, Any]]:
    """Return the events of services, in the order in which they were recorded."""
    answers = actions.read(folder, "events.list", **request)
    found = [{"service": name, **each} for name, all_ in answers.items() for each in all_]
    found.sort(key=lambda each: (str(each["recorded_at"]), each["service"], each["position"]))
    limit = request["limit"]
    assert isinstance(limit, int)
    return found[:limit] if request["after"] is not None else found[-limit:]


def _print_new(
    folder: Path, wanted: dict[str, str], reached: dict[str, int | None], is_json: bool
) -> dict[str, int | None]:
    """Print what has happened since; return what was reached, by service."""
    import msgspec

    found: dict[str, int | None] = {}
    for service, after in reached.items():
        limit = 20 if after is None else 1000
        for each in _read(folder, service=service, after=after, limit=limit, **wanted):
            if is_json:
                print_verbatim(msgspec.json.encode(each).decode())
            else:
                body = msgspec.json.encode(each["body"]).decode()
                print_line(
                    f"{each['recorded_at'][11:23]}  {each['service']}:{each['position']}  "
                    f"{each['name']}  {each['stream']}#{each['version']}  {body}"
                )
            found[each["service"]] = each["position"]
    return found
