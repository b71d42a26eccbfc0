"""Prints lines for people, and JSON for programs."""

from __future__ import annotations

import re

import click

# What a terminal obeys, or shows in another order than it stands in: C0 without tab and line feed,
# DEL, C1, the marks, embeddings, overrides and isolates of bidirectional text, and separators.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class OutputClosed(Exception):
    """Raised when the reader of the output has closed it, as `| head` does.

    It is no `BrokenPipeError`: click and rich would end with 1 on that, which says a finding.
    """


def visible(text: str) -> str:
    """Return a text with its control characters as escapes: somebody else may have written it.

    Example:
        >>> visible("\\x1b[2Jgone"), visible("two\\nlines")
        ('\\\\x1b[2Jgone', 'two\\nlines')
    """
    return text if text.isprintable() else _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def print_line(text: str) -> None:
    """Print a line: without markup and wrapping, with control characters as escapes."""
    print_verbatim(visible(text))


def print_error(text: str) -> None:
    """Print a line to standard error, with control characters as escapes."""
    click.echo(visible(text), err=True)


def print_verbatim(text: str) -> None:
    """Print what is for programs, or has colours; texts of others in it are `visible` already."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise OutputClosed from None


def print_json(value: object) -> None:
    """Print a value as JSON."""
    import msgspec

    print_verbatim(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
