"""`synchromesh db`: the databases of services: what is in them, backups, migrations."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click
import msgspec

from synchromesh.cli import actions
from synchromesh.cli.control import ControlClient
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError
from synchromesh.system.config.rundir import RunDir

FINDING = 1
_LONG_S = 3600.0
# What a saga is that does not go on by itself.
_AT_REST = ("completed", "undone", "stuck")

json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.group(cls=CommandGroup)
def db() -> None:
    """Look into the databases of services; back them up, restore and migrate them."""


@db.command()
@click.option("--new-key", is_flag=True, help="Take over what was made under another system key.")
@json_option
@click.pass_obj
def create(folder: Path, new_key: bool, is_json: bool) -> int:
    """Make a database and a role for each service on the server of [engine] postgres.

    Nobody else may connect to it. What is there already stays; what was done is printed. The user
    of the server's URL needs CREATEDB and CREATEROLE.
    """
    import asyncio

    from synchromesh.system.control.offline import create_databases

    done = asyncio.run(create_databases(folder, is_new_key=new_key))
    if is_json:
        print_json(done)
    for line in done if not is_json else ():
        print_line(line)
    return 0


@db.command()
@click.argument("service", default="")
@json_option
@click.pass_obj
def status(folder: Path, service: str, is_json: bool) -> int:
    """Show what is in the database of SERVICE, or of each: sizes, rows, growth, what is forgotten.

    It works on a stopped system, too. Rows are counted beside the service, which serves on.
    """
    answers = actions.read(folder, "db.status", within_s=_LONG_S, service=service)
    if is_json:
        print_json(list(answers.values()))
    else:
        from synchromesh.cli.show_db import print_contents

        for answer in answers.values():
            print_contents(answer)
    return 0


@db.command()
@click.argument("service", default="")
@json_option
@click.pass_obj
def verify(folder: Path, service: str, is_json: bool) -> int:
    """Check the database of SERVICE, or of each. Exits 1 where something is wrong.

    Every page and reference is read, or each value on a server; versions and positions of the log
    must have no holes but those that were removed; checkpoints must be of this log; and the
    service's connection must not reach another service's database, which is tried.
    """
    answers = actions.read(folder, "db.verify", within_s=_LONG_S, service=service)
    if is_json:
        print_json(list(answers.values()))
    else:
        for name, answer in answers.items():
            print_line(f"{name}: {'in order' if not answer['faults'] else answer['path']}")
            for fault in answer["faults"]:
                print_line(f"  {fault}")
    return FINDING if any(answer["faults"] for answer in answers.values()) else 0


@db.command()
@click.argument("service", default="")
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".synchromesh/backups"),
    show_default=True,
    help="The folder that gets a new folder with the backup of each service.",
)
@json_option
@click.pass_obj
def backup(folder: Path, service: str, to: Path, is_json: bool) -> int:
    """Back up the database of SERVICE, or of each, while it serves or is stopped.

    A backup is a folder with the file and a manifest, and is there whole or not at all. The keys of
    personal data are not in it, or a restore would give back what was erased.
    """
    from synchromesh.system.config.reading import load_config

    answers = actions.read(
        folder,
        "db.backup",
        within_s=_LONG_S,
        service=service,
        to=str(folder / to),
        system=load_config(folder).system.name,
    )
    if is_json:
        print_json(list(answers.values()))
    else:
        for name, answer in answers.items():
            print_line(f"{name}: {answer['folder']}, {answer['bytes']} bytes")
            if answer["keys"]:
                print_line(f"  without the keys of personal data: {answer['keys']}")
    return 0


@db.command()
@click.argument("service")
@click.argument("backup", type=click.Path(path_type=Path))
@actions.why_option
@json_option
@click.pass_obj
def restore(folder: Path, service: str, backup: Path, why: str, is_json: bool) -> int:
    """Put BACKUP in the place of the database of SERVICE, which must not run.

    The file that is replaced is kept beside it. The log gets another id; relays, projections and
    unfinished sagas go on from where they were when the backup was made.
    """
    import asyncio

    from synchromesh.system.config.reading import load_config
    from synchromesh.system.control.offline import restore_service

    load_config(folder)
    who = actions.say_why(why)
    done = asyncio.run(restore_service(folder, service, folder / backup, who=who, why=why))
    if is_json:
        print_json(msgspec.to_builtins(done))
        return 0
    print_line(f"{service} is restored as it was at {done.unknown_since}, as log {done.log_id}")
    if done.kept_as:
        print_line(f"what it was before: {done.kept_as}")
    unfinished = sum(n for each, n in done.sagas.items() if each not in _AT_REST)
    print_line("when it starts:")
    print_line("  relays and projections go on from their checkpoints of that time")
    print_line(f"  {unfinished} unfinished sagas go on; their steps are repeated under their keys")
    print_line(f"what it has lost: all that was done since {done.unknown_since}")
    print_line("  others keep what it told them since; ask them before you do it again by hand")
    print_line("  calls under keys of since then are run as new ones")
    return 0


@db.command()
@click.argument("service", default="")
@click.option("--dry-run", is_flag=True, help="Show what would run; the system may run meanwhile.")
@actions.why_option
@json_option
@click.pass_obj
def migrate(folder: Path, service: str, dry_run: bool, why: str, is_json: bool) -> int:
    """Run the migrations that the code has and the database of SERVICE, or of each, lacks.

    A start does the same by itself; this is for doing it apart from one. A SQLite file is its
    service's while that runs; on a PostgreSQL server it may run meanwhile. With --dry-run, exits 1
    where there is something to run.
    """
    import asyncio

    from synchromesh.system.config.reading import load_config
    from synchromesh.system.control.offline import migrate_services, plan_migrations

    load_config(folder)  # a folder without a system is told before what it lacks
    if dry_run:
        found = asyncio.run(plan_migrations(folder, service))
    else:
        who = actions.say_why(why)
        found = asyncio.run(migrate_services(folder, service, who=who, why=why))
    if is_json:
        print_json(msgspec.to_builtins(found))
    else:
        for each in found:
            verb = "would run" if dry_run else "ran"
            print_line(f"{each.service}: {verb} {len(each.migrations)} migrations")
            for migration in each.migrations:
                print_line(f"  {migration.owner} {migration.version}")
                for statement in migration.statements:
                    print_line(f"    {' '.join(statement.split())}")
    return FINDING if dry_run and any(each.migrations for each in found) else 0


@db.command()
@click.argument("service", default="")
@click.option(
    "--dry-run", is_flag=True, help="Do all of it, and take it back; the system may run meanwhile."
)
@click.option(
    "--engine",
    type=click.Choice(["postgres"]),
    help="Copy to the server of dev --engine postgres, unless [engine] names one.",
)
@actions.why_option
@json_option
@click.pass_obj
def copy(
    folder: Path, service: str, dry_run: bool, engine: str | None, why: str, is_json: bool
) -> int:
    """Copy the SQLite file of SERVICE, or of each, to its database on the server of [engine].

    Of each but those in [engine] sqlite, which go on with their files until they are taken off that
    list. The log keeps its id and positions; sagas, messages, projections and schedules go on where
    they are. Each service is copied whole or not at all, every table is read back and compared, and
    the file stays as it is, marked as copied. What is cut short is run again.

    While a system runs by `dev --split`, SERVICE alone pauses: take it off [engine] sqlite first. A
    new process rehearses the copy while the old one serves; once that has drained it copies, and
    goes on from there. Calls are held, or refused with Retry-After, and messages wait meanwhile. In
    a system of one process nothing is copied until that is stopped.
    """
    import asyncio

    from synchromesh.system.control.copying import copy_services

    who = "" if dry_run else actions.say_why(why)
    if not dry_run and RunDir(folder).is_running():
        return _copy_running(folder, service, who, why, is_json=is_json)
    done = asyncio.run(
        copy_services(
            folder,
            service,
            who=who,
            why=why,
            is_rehearsal=dry_run,
            starts_server=engine is not None,
        )
    )
    if is_json:
        print_json(msgspec.to_builtins(done))
    else:
        from synchromesh.cli.show_db import print_copied

        for each in done:
            print_copied(msgspec.to_builtins(each))
    return 0


def _copy_running(folder: Path, service: str, who: str, why: str, *, is_json: bool) -> int:
    from synchromesh.cli.restart import print_replacement
    from synchromesh.cli.show_db import print_copied

    if not service:
        raise ConfigError(
            "the system runs: name the service that is to pause for its copy, one after the other; "
            "or stop the system to copy all of them"
        )
    path = f"/services/{quote(service, safe='')}/copy"
    answer = ControlClient(folder).post(path, {"who": who, "why": why}, within_s=_LONG_S)
    if is_json:
        print_json(answer)
    elif answer["is_refused"]:
        print_replacement(answer)
    else:
        print_copied(answer["copied"])
    return FINDING if answer["is_refused"] else 0
