"""The page of a service's database: its size and growth, its tables, and what it forgets."""

from __future__ import annotations

from synchromesh.console.markup import Markup, tag
from synchromesh.console.parts import (
    PageQuery,
    clock_us,
    link,
    parts,
    section,
    services_of,
    table,
)
from synchromesh.console.source import Source, Told, read
from synchromesh.errors import UnknownOperation

_UNITS = ("bytes", "KB", "MB", "GB", "TB")


async def fetch_database(source: Source, asked: PageQuery) -> Told:
    """Return what `db status` says of a service; it counts, and is made when it is asked for.

    Of a service that keeps nothing it is its name.

    Raises:
        UnknownOperation: there is no such service.
    """
    if asked.name not in services_of(await source.ask("GET", "/status")):
        raise UnknownOperation(f"there is no service {asked.name[:80]!r}")
    found: list[Told] = await read(source, "db.status", service=asked.name)
    return found[0] if found else {"service": asked.name}


def render_database(told: Told, _: PageQuery) -> Markup:
    """Draw the page of a database."""
    top = parts(
        tag("h1", f"Database of {told['service']}"),
        tag("p", link("/services", told["service"], "The service")),
    )
    if "path" not in told:
        return parts(top, tag("p", "It keeps nothing, and has no database.", class_="none"))
    growth = told["bytes_a_day"]
    facts = [
        ("Where", told["path"]),
        ("Size", size(told["bytes"])),
        ("Free in it", size(told["free_bytes"])),
        ("Write-ahead log", size(told["wal_bytes"])),
        ("Grows a day", "not known yet" if growth is None else size(growth)),
        ("Log", told["log_id"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in told["versions"].items())),
    ]
    largest = sorted(told["tables"], key=lambda each: -(each["bytes"] or each["rows"]))
    tables = [
        (
            each["name"], each["owner"], each["rows"], each["rows_a_day"],
            None if each["bytes"] is None else size(each["bytes"]),
        )
        for each in largest
    ]  # fmt: skip
    forgets = [
        (each["what"], f"{each['keep_s'] / 86_400:.1f} days", each["removed"], each["held_by"])
        for each in told["retention"]
    ]
    gone = [
        (each["subscriber"], each["position"], each["behind"], each["set_aside"])
        for each in told["gone"]
    ]
    changes = [
        (each["what"], clock_us(each["at_us"]), each["who"], each["why"])
        for each in told["changes"]
    ]
    return parts(
        top,
        section("The whole", table("Database", ("what", "value"), facts)),
        section("Tables", table("Tables", ("table", "of", "rows", "a day", "size"), tables)),
        section(
            "What is forgotten",
            table("Retention", ("what", "after", "has forgotten", "held by"), forgets),
        ),
        section(
            "Kept for subscribers that take nothing any more",
            table("Gone subscribers", ("subscriber", "has got", "events", "set aside"), gone),
        ),
        section("Changed by hand", table("Changes", ("what", "at", "who", "why"), changes)),
    )


def size(count: int) -> str:
    """Format a number of bytes.

    Example:
        >>> size(12), size(4_300_000)
        ('12 bytes', '4.3 MB')
    """
    shown, unit = float(count), 0
    while shown >= 1000 and unit < len(_UNITS) - 1:
        shown, unit = shown / 1000, unit + 1
    return f"{shown:.1f} {_UNITS[unit]}" if unit else f"{count} bytes"
