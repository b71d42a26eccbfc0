"""The entry point: runs a command, and turns every error into one clear message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from synchromesh.cli.groups import CommandGroup, LazyCommand
from synchromesh.cli.output import OutputClosed, print_error
from synchromesh.errors import RemoteFailed, SynchromeshError

# Whether the command line is the whole program, as verbs find it in the context's `meta`.
IS_PROGRAM = "synchromesh.is_program"
USER_MISTAKE = 2
INTERNAL = 3


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The folder of the system, where its synchromesh.toml is.",
)
@click.version_option(package_name="synchromesh")
@click.pass_context
def synchromesh(context: click.Context, folder: Path) -> None:
    """Run a system of services, call it, and see what it did.

    Exit codes: 0 done, 1 a finding (a call that was refused, something that needs a person), 2 your
    mistake, 3 the system's failure.
    """
    # Of another program that runs a verb nothing is known: what it has imported, or started.
    context.meta[IS_PROGRAM] = context.obj is True
    context.obj = folder.resolve()


# What the list says of a command is the first sentence of its own help, or a shorter one where that
# is too long for a line.
for command in (
    LazyCommand("guide", "guide", "guide", "Say which problem it is, and which pattern mends it."),
    LazyCommand("new", "new", "new", "Make a folder with a system to begin from."),
    LazyCommand("dev", "dev", "dev", "Run the system of this folder in one process until Ctrl-C."),
    LazyCommand("run", "run", "run", "Run one replica of a service, or of the gateway."),
    LazyCommand("config", "config", "config", "Explain and check the configuration."),
    LazyCommand("console", "console", "console", "Print a URL of the console of a running system."),
    LazyCommand(
        "contract",
        "contract",
        "contract",
        "Freeze contracts, and check what a change breaks for whom.",
    ),
    LazyCommand(
        "gateway",
        "gateway",
        "gateway",
        "Check and explain the gateway; manage its API keys.",
    ),
    LazyCommand(
        "client", "client", "client", "Make, list and revoke credentials for calls from outside."
    ),
    LazyCommand(
        "openapi",
        "openapi",
        "openapi",
        "Print the OpenAPI document of the gateway, or of one service.",
    ),
    LazyCommand("export", "export", "export", "Write a system down for other tools."),
    LazyCommand("test", "test", "test", "Run the tests, or the opening under faults."),
    LazyCommand("status", "status", "status", "Show the health of the whole system on one screen."),
    LazyCommand(
        "call", "call", "call", "Call OPERATION (service.name) with ARGUMENTS (name=value)."
    ),
    LazyCommand("advise", "advise", "advise", "Say what could be better, with evidence, and how."),
    LazyCommand(
        "logs", "logs", "logs", "Show what all processes of the system logged, the oldest first."
    ),
    LazyCommand("trace", "trace", "trace", "Show the spans of a trace, or of the last call."),
    LazyCommand("why", "why", "why", "Explain a request or a saga: its time, and its failures."),
    LazyCommand(
        "blast", "blast", "blast", "Show what stops, degrades or waits where a service goes."
    ),
    LazyCommand("drill", "drill", "drill", "Take each part away in turn: what degrades how."),
    LazyCommand("saga", "saga", "saga", "Show the runs of sagas, and repair them."),
    LazyCommand("breaker", "breaker", "breaker", "Isolate an edge by hand, and release it."),
    LazyCommand("db", "db", "db", "Look into databases; back up, restore and migrate them."),
    LazyCommand(
        "personal",
        "personal",
        "personal",
        "Show whose personal data services keep; erase a person's.",
    ),
    LazyCommand("schedule", "schedule", "schedule", "Show the schedules of services."),
    LazyCommand("events", "events", "events", "Read the events of services."),
    LazyCommand(
        "projection",
        "projection",
        "projection",
        "List, repair and rebuild the projections of services.",
    ),
    LazyCommand(
        "messages", "messages", "messages", "Show, replay and drop messages that were set aside."
    ),
    LazyCommand(
        "break",
        "faults",
        "break_on_purpose",
        "Inject faults into the calls of a service or an edge.",
    ),
    LazyCommand("heal", "faults", "heal", "Remove injected faults: of a service, an edge, or all."),
    LazyCommand(
        "restart",
        "restart",
        "restart",
        "Restart a part, or one that was given up; no call fails.",
    ),
):
    synchromesh.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's mistake gets a message and never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_bytes(words)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        code = synchromesh.main(
            args=words, prog_name="synchromesh", standalone_mode=False, obj=arguments is None
        )
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SynchromeshError as error:
        print_error(f"synchromesh: {error.message}")
        sys.exit(INTERNAL if isinstance(error, RemoteFailed) else USER_MISTAKE)
    except OutputClosed:
        # What is left in the buffer would fail once more at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SYNCHROMESH_DEBUG"):
            raise
        print_error(
            f"synchromesh: internal error: {type(error).__name__}: {error}\n"
            "This is a bug; run again with SYNCHROMESH_DEBUG=1 to see where, and report it."
        )
        sys.exit(INTERNAL)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_bytes(words: Sequence[str]) -> None:
    """Raise `UsageError` for an argument that is not UTF-8: it could be neither sent nor shown."""
    for word in words:
        if not word.isascii() and any("\udc80" <= char <= "\udcff" for char in word):
            raise click.UsageError(f"{word!r} is not UTF-8 text")
