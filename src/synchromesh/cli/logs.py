"""`synchromesh logs`: what all processes of a system logged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synchromesh.cli.output import print_verbatim

if TYPE_CHECKING:
    from synchromesh.system.control.log_files import LogFilter, LogFollower, LogLine

EVERY_S = 0.2
LEVELS = ("info", "warning", "error", "critical")
FINDING = 1


@click.command()
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Show what comes, until Ctrl-C.")
@click.option("--service", default="", help="Only what the process of a service wrote.")
@click.option("--level", type=click.Choice(LEVELS), help="That level, and above.")
@click.option("--trace", default="", help="Only of one trace; the beginning of its id will do.")
@click.option("--since", default="", help='From then on: "10m" ago, or a time in UTC.')
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object a line.")
@click.pass_obj
def logs(
    folder: Path,
    is_followed: bool,
    service: str,
    level: str | None,
    trace: str,
    since: str,
    is_json: bool,
) -> int:
    """Show what all processes of the system logged, the oldest first.

    Of a stopped system too: the files stay in .synchromesh/telemetry. With --follow also what
    processes print, as it comes; else that is shown after the records of a --service, but not with
    --since, for it has no time. In a system of one process --service is what names the service.
    Exits 1 where there is nothing.
    """
    from synchromesh.runtime import RealRuntime
    from synchromesh.system.config.rundir import RunDir
    from synchromesh.system.control.log_files import LogFilter, LogFollower, read_logs, since_of

    telemetry = RunDir(folder).telemetry
    since = since_of(since, RealRuntime().wall_us()) if since else ""
    wanted = LogFilter(service, (level or "").upper(), trace, since)
    follower = (
        LogFollower(telemetry, wall_us=RealRuntime().wall_us, is_whole=True)
        if is_followed
        else None
    )
    found = read_logs(telemetry, wanted, is_turned_only=is_followed)
    for line in found:
        _print(line, folder, is_json=is_json)
    if follower is None:
        if not found and not is_json:
            from synchromesh.cli.operating import is_elsewhere

            click.echo("nothing was logged that fits", err=True)
            if is_elsewhere(folder):
                click.echo(
                    "replicas by synchromesh run write their log to stdout: look at journalctl, "
                    "kubectl logs or docker compose logs, where they run",
                    err=True,
                )
        return 0 if found else FINDING
    with suppress(KeyboardInterrupt):
        _follow(folder, follower, wanted, is_json=is_json)
    follower.close()
    return 0


def _follow(folder: Path, follower: LogFollower, wanted: LogFilter, *, is_json: bool) -> None:
    import threading

    ended = threading.Event()
    while True:
        for line in follower.poll(wanted):
            _print(line, folder, is_json=is_json)
        ended.wait(EVERY_S)


def _print(line: LogLine, folder: Path, *, is_json: bool) -> None:
    if is_json:
        import msgspec

        print_verbatim(msgspec.json.encode(line).decode())
        return
    from synchromesh.cli.log_lines import shown

    print_verbatim(shown(line, folder))
