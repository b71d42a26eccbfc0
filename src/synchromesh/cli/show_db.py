"""Renders what is in a database, for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from synchromesh.cli.show import console, duration_text, plain_table

DAY_S = 86_400.0


def print_contents(contents: Mapping[str, Any]) -> None:
    """Print the sizes of a database, its tables, and what is forgotten after which time."""
    out = console()
    growth = contents["bytes_a_day"]
    grows = "not known yet" if growth is None else f"{bytes_text(growth)} a day"
    out.print(Text(f"{contents['service']}  {contents['path']}", style="bold"))
    out.print(
        f"{bytes_text(contents['bytes'])}, free in it {bytes_text(contents['free_bytes'])}, "
        f"write-ahead log {bytes_text(contents['wal_bytes'])}, growth {grows}",
        markup=False,
    )
    out.print(f"log {contents['log_id']}", markup=False)
    versions = ", ".join(f"{owner} {version}" for owner, version in contents["versions"].items())
    out.print(f"versions: {versions}", markup=False)
    table = plain_table("table", "of", "rows", "a day", "size")
    for each in sorted(contents["tables"], key=lambda each: -(each["bytes"] or each["rows"])):
        size = "" if each["bytes"] is None else bytes_text(each["bytes"])
        a_day = "" if each["rows_a_day"] is None else f"{each['rows_a_day']:,}"
        table.add_row(each["name"], each["owner"], f"{each['rows']:,}", a_day, size)
    out.print(table)
    if contents["retention"]:
        table = plain_table("forgets", "after", "has forgotten", "last looked", "held by")
        for each in contents["retention"]:
            table.add_row(
                Text(each["what"]),
                days_text(each["keep_s"]),
                f"{each['removed']:,}",
                _time(each["swept_us"]),
                Text(each["held_by"]),
            )
        out.print(table)
    if contents["gone"]:
        table = plain_table("kept for, and nobody takes it", "has got", "events", "set aside")
        for each in contents["gone"]:
            counts = (each["position"], each["behind"], each["set_aside"])
            table.add_row(Text(each["subscriber"]), *(f"{count:,}" for count in counts))
        out.print(table)
    for each in contents["changes"]:
        said = f"{_time(each['at_us'])}  {each['what']} by {each['who']}: {each['why']}"
        out.print(said, markup=False)
    out.print()


_SAID = {
    "copied": "is copied to",
    "rehearsed": "can be copied to",
    "there": "was copied before, and has not changed since:",
}


def print_copied(done: Mapping[str, Any]) -> None:
    """Print what became of a service's data: each table with its rows, and the sum of them."""
    out = console()
    out.print(f"{done['service']} {_SAID[done['outcome']]} {done['target']}", markup=False)
    if done["log_id"]:
        out.print(f"log {done['log_id']}, as it was", markup=False)
    if done["tables"]:
        table = plain_table("table", "rows", "sum on both sides")
        filled = [each for each in done["tables"] if each["rows"]]
        for each in filled:
            table.add_row(Text(each["name"]), f"{each['rows']:,}", each["sum"])
        out.print(table)
        out.print(f"and {len(done['tables']) - len(filled)} tables without rows", markup=False)
    out.print()


def bytes_text(size: float) -> str:
    """Format a number of bytes.

    Example:
        >>> bytes_text(512), bytes_text(4_096_000), bytes_text(-2_500_000_000)
        ('512 B', '4.1 MB', '-2.5 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def days_text(seconds: float) -> str:
    """Format a time for which something is kept.

    Example:
        >>> days_text(2_592_000.0), days_text(90.0)
        ('30 d', '90.0 s')
    """
    days = seconds / DAY_S
    return f"{days:g} d" if days >= 1 else duration_text(seconds)


def _time(at_us: int) -> str:
    return f"{dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC):%Y-%m-%d %H:%M}" if at_us else ""
