"""Renders messages that were set aside, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from synchromesh.cli.show import plain_table, styled, time_of_day


def messages_table(found: list[dict[str, Any]]) -> Table:
    """Render messages that were set aside, one a row."""
    table = plain_table("message", "state", "event", "key", "by", "attempts", "since", "error")
    for column in table.columns:
        column.no_wrap = column.header not in ("event", "key", "error")
    for each in found:
        table.add_row(
            each["ref"],
            styled(each["state"]),
            each["event"],
            Text(each["key"]),
            each["subscriber"],
            str(each["attempts"] or ""),
            time_of_day(each["first_at"]),
            Text(each["error"]),
        )
    return table


def print_message(out: Console, message: Mapping[str, Any], *, has_payload: bool) -> None:
    """Print a message that was set aside: what it is, and why it waits."""
    out.print(Text(f"message {message['ref']}  "), styled(message["state"]), sep="")
    by = [("refused by", message["subscriber"])] if message["subscriber"] else []
    lines = [
        ("event", f"{message['event']}, at {message['position']} of {message['source']}"),
        ("id", message["message_id"]),
        ("key", message["key"]),
        *by,
        ("trace", message["trace_id"]),
        ("since", message["first_at"]),
        ("last", message["last_at"]),
        ("attempts", str(message["attempts"])),
        ("error", message["error"]),
        ("why", message["text"]),
    ]
    lines += [("payload", message["payload"])] * has_payload
    table = plain_table("", "")
    for label, value in lines:
        table.add_row(label, Text(value))
    table.show_header = False
    out.print(table)
