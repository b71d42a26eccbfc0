"""The page of a drill: written, read again, and compared with what was seen; a pure machine.

A part has a section of its own, whose heading says that it is off, with a table in it. Whatever
else stands in the page is people's, and is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from synchromesh.drill.answers import AT_ONCE_S, BOUNDS_S, Seen, ToldAnswer, bound_of
from synchromesh.drill.course import Column

REST = "every other route"
BREAKERS, WHOLE = "breakers that open", "whole again"
AS_ALWAYS = "as always"

_SECTION = re.compile(r"^## `([^`]+)` is off\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"(^\|.*\n)+", re.MULTILINE)
_ANSWER = re.compile(r"(?P<words>.+?)(?:, ≤ (?P<bound>[\d.]+) s)?")

Tables = dict[str, dict[str, dict[str, str]]]
"""Cells by part, by way of being off, by row."""

HEAD = """# What degrades how

What clients are told while a part of the system is off. Written by `synchromesh drill`, and held to
what is true by `synchromesh drill --check`; only the tables are written, and the rest is kept.

A cell has the first answer and, after →, the usual one once the part has been off for some 10 s. An
answer without a time comes at once, within 0.1 s; "≤ 5 s" is how long it may take.
"""


class CellDifference(NamedTuple):
    """A cell that is not what was seen; "" where there is none."""

    part: str
    way: str
    row: str
    written: str
    seen: str

    def __str__(self) -> str:
        written = self.written or "is not there"
        return f"{self.part} {self.way}, {self.row}: {written}; seen: {self.seen or 'nothing'}"


def read_tables(page: str) -> Tables:
    """Return the cells of a page."""
    found: Tables = {}
    for part, text in _SECTION.findall(page):
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("|")
        ]
        if len(lines) < 2:
            continue
        (_, *ways), _, *rows = lines
        found[part] = {
            way: {row[0].strip("`"): row[number] for row in rows if number < len(row)}
            for number, way in enumerate(ways, 1)
        }
    return found


def write_page(page: str, columns: Sequence[Column], *, is_all: bool = True) -> str:
    """Return a page with the tables of what was seen; sections that are new are put at its end.

    Args:
        is_all: the columns are all that there are: a way of a part that is not among them is gone.
    """
    page = page or HEAD
    before = read_tables(page)
    for part in dict.fromkeys(column.part for column in columns):
        own = [column for column in columns if column.part == part]
        cells = _cells(own, before.get(part, {}))
        if not is_all:
            cells = _beside(cells, before.get(part, {}))
        table = "\n".join(_lines(cells)) + "\n"
        section = _section_of(page, part)
        if section is None:
            page = f"{page.rstrip()}\n\n## `{part}` is off\n\n{table}"
            continue
        begin, end = section.span(2)
        text = page[begin:end]
        place = _TABLE.search(text)
        text = (
            f"{text.rstrip()}\n\n{table}\n"
            if place is None
            else text[: place.start()] + table + text[place.end() :]
        )
        page = page[:begin] + text + page[end:]
    return page


def differences(
    tables: Tables, columns: Iterable[Column], *, is_all: bool = True
) -> list[CellDifference]:
    """Return where a page is not what was seen; what people have added to its tables is theirs.

    Args:
        is_all: the columns are all that there are: a part or way that is not among them is gone.
    """
    found = []
    columns = list(columns)
    for column in columns:
        cells = tables.get(column.part, {}).get(column.way)
        if cells is None:
            found.append(
                CellDifference(column.part, column.way, "the column", "", "a part of this")
            )
            continue
        for row, (written, seen, is_met) in _compared(cells, column):
            if not is_met:
                found.append(CellDifference(column.part, column.way, row, written, seen))
        gone = [row for row in cells if " /" in row and row not in column.seen]
        found += [
            CellDifference(column.part, column.way, row, cells[row], "no probe") for row in gone
        ]
    known = {(column.part, column.way) for column in columns}
    if is_all:
        found += [
            CellDifference(part, way, "the column", "there", "")
            for part, ways in tables.items() for way in ways if (part, way) not in known
        ]  # fmt: skip
    return found


def _compared(
    cells: Mapping[str, str], column: Column
) -> Iterator[tuple[str, tuple[str, str, bool]]]:
    rest = cells.get(REST, "")
    for route, seen in column.seen.items():
        cell = cells.get(route, rest)
        yield route, (cell, seen.cell(), _fits(cell, seen))
    for row, became in column.became.items():
        cell = cells.get(row, "")
        yield row, (cell, became, set(became.split(" or ")) <= set(cell.split(" or ")))
    cell, opened = cells.get(BREAKERS, ""), ", ".join(column.breakers) or "none"
    yield BREAKERS, (cell, opened, cell == opened)
    cell, seen_s = cells.get(WHOLE, ""), bound_of(column.whole_s)
    matched = re.fullmatch(r"≤ ([\d.]+) s", cell)
    is_met = cell == seen_s or (matched is not None and column.whole_s <= float(matched[1]))
    yield WHOLE, (cell, seen_s, is_met)


def _fits(cell: str, seen: Seen) -> bool:
    """Say whether answers are those of a cell, in their words and their times.

    A bound that is far above what an answer takes would say nothing: the first one is near its own.
    """
    if cell == AS_ALWAYS:
        cell = seen.usual
    first, _, then = cell.partition(" → ")
    return _fits_one(first, seen.first, is_first=True) and _fits_one(
        then or first, seen.then, is_first=False
    )


def _fits_one(cell: str, told: ToldAnswer, *, is_first: bool) -> bool:
    matched = _ANSWER.fullmatch(cell)
    if matched is None or told.words not in matched["words"].split(" or "):
        return False
    bound_s = float(matched["bound"] or AT_ONCE_S)
    if told.took_s > bound_s * 1.05 + 0.02:
        return False
    return not is_first or bound_s < BOUNDS_S[1] or told.took_s > bound_s / 5


def _kept(cells: Mapping[str, str], route: str, seen: Seen) -> str:
    """Return the cell of a route: as it is written where that still holds, "or" and all."""
    written = cells.get(route, cells.get(REST, ""))
    return written if written and _fits(written, seen) else seen.cell()


def _section_of(page: str, part: str) -> re.Match[str] | None:
    return next((each for each in _SECTION.finditer(page) if each[1] == part), None)


def _cells(
    columns: Sequence[Column], before: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Return the cells of a table by way and row; rows of people's own stay, before breakers."""
    ways = [column.way for column in columns]
    rows: dict[str, list[str]] = {}
    for route in columns[0].seen:
        rows[route] = [
            _kept(before.get(column.way, {}), route, column.seen[route]) for column in columns
        ]
    always = [AS_ALWAYS] * len(columns)
    rest = always
    if len(rows) > 1 and len({tuple(cells) for cells in rows.values()}) == 1:
        rest = next(iter(rows.values()))
    named = {row: cells for row, cells in rows.items() if cells != rest}
    if len(named) < len(rows):
        named[REST] = rest
    for row in columns[0].became:
        named[row] = [column.became[row] for column in columns]
    own = dict.fromkeys(row for cells in before.values() for row in cells)
    for row in own:
        if " /" not in row and row not in (*named, REST, BREAKERS, WHOLE):
            named[row] = [before.get(way, {}).get(row, "") for way in ways]
    named[BREAKERS] = [", ".join(column.breakers) or "none" for column in columns]
    named[WHOLE] = [bound_of(max(1.0, column.whole_s)) for column in columns]
    return {
        way: {row: cells[number] for row, cells in named.items()} for number, way in enumerate(ways)
    }


def _beside(
    cells: Mapping[str, Mapping[str, str]], before: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Return the cells with those of ways that were not tried this time, as they are written."""
    tried = next(iter(cells.values()))
    rest = list(dict.fromkeys(row for each in before.values() for row in each))
    routes = [row for row in rest if " /" in row and row not in tried]
    rows = [*routes, *tried, *(row for row in rest if row not in (*routes, *tried))]
    rows.sort(key=lambda row: (row == BREAKERS) + 2 * (row == WHOLE))
    return {
        way: {row: each.get(row, each.get(REST, "") if " /" in row else "") for row in rows}
        for way, each in {**before, **cells}.items()
    }


def _lines(cells: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| what | {' | '.join(cells)} |"
    yield "|---" * (len(cells) + 1) + "|"
    for row in next(iter(cells.values())):
        name = f"`{row}`" if " /" in row else row
        yield f"| {name} | {' | '.join(each[row] for each in cells.values())} |"
