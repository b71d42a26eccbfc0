"""What verbs print without a table: lines for people, and JSON for programs."""

from __future__ import annotations

import click


class ReaderGone(Exception):
    """Tells that whoever read the output has gone, as `| head` does.

    It is no `BrokenPipeError`: click and rich would end with 1 on that, which says a finding.
    """


def print_line(text: str) -> None:
    """Print a line for people, as it is: what looks like markup too, and however long."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise ReaderGone from None


def print_json(value: object) -> None:
    """Print a value for a program."""
    import msgspec

    print_line(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
