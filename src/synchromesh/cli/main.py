"""The entry point: finds the verb, and turns every error into one clear message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from synchromesh.cli.call import call
from synchromesh.cli.config import config
from synchromesh.cli.dev import dev
from synchromesh.cli.faults import break_on_purpose, heal
from synchromesh.cli.gateway import gateway
from synchromesh.cli.new import new
from synchromesh.cli.restart import restart
from synchromesh.cli.saga import saga
from synchromesh.cli.show import ReaderGone
from synchromesh.cli.status import status
from synchromesh.cli.trace import trace
from synchromesh.errors import RemoteFailed, SynchromeshError

USER_MISTAKE = 2
INTERNAL = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
    context.obj = folder.resolve()


VERBS = (new, dev, config, gateway, status, call, trace, saga, break_on_purpose, heal, restart)
for verb in VERBS:
    synchromesh.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; a user's mistake gets a message and never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_bytes(words)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        code = synchromesh.main(args=words, prog_name="synchromesh", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SynchromeshError as error:
        click.echo(f"synchromesh: {error.message}", err=True)
        sys.exit(INTERNAL if isinstance(error, RemoteFailed) else USER_MISTAKE)
    except ReaderGone:
        # What is left in the buffer would fail once more at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SYNCHROMESH_DEBUG"):
            raise
        click.echo(
            f"synchromesh: internal error: {type(error).__name__}: {error}\n"
            "This is a bug; run again with SYNCHROMESH_DEBUG=1 to see where, and report it.",
            err=True,
        )
        sys.exit(INTERNAL)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_bytes(words: Sequence[str]) -> None:
    """Refuse what is no text: it could be neither sent nor shown."""
    for word in words:
        if not word.isascii() and any("\udc80" <= char <= "\udcff" for char in word):
            raise click.UsageError(f"{word!r} is no UTF-8 text")
