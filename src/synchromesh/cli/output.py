"""Prints lines for people, and JSON for programs."""

from __future__ import annotations

import click


class OutputClosed(Exception):
    """Raised when the reader of the output has closed it, as `| head` does.

    It is no `BrokenPipeError`: click and rich would end with 1 on that, which says a finding.
    """


def print_line(text: str) -> None:
    """Print a line verbatim: without markup, and without wrapping."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise OutputClosed from None


def print_json(value: object) -> None:
    """Print a value as JSON."""
    import msgspec

    print_line(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
