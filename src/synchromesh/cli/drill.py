"""`synchromesh drill`: takes each part of the system away in turn, and says what degrades how."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli.control import ControlClient
from synchromesh.cli.output import print_error, print_json, print_line
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.spelling import nearest

if TYPE_CHECKING:
    from synchromesh.drill.course import Column
    from synchromesh.drill.probes import Probes
    from synchromesh.system.config.schema import SystemConfig

FINDING = 1


@click.command()
@click.option("--part", "parts", multiple=True, help="Only this part, such as billing; repeatable.")
@click.option("--way", "ways", multiple=True, help="Only this way, such as killed; repeatable.")
@click.option("--check", "is_check", is_flag=True, help="Compare with the page; write nothing.")
@click.option("--live", "is_live", is_flag=True, help="Break the system that runs, and heal it.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def drill(
    folder: Path,
    parts: tuple[str, ...],
    ways: tuple[str, ...],
    is_check: bool,
    is_live: bool,
    is_json: bool,
) -> int:
    """Take each part of the system away in turn, and write down what degrades how.

    What is asked meanwhile says probes.toml. Each part is killed, stalled, failing, and unable to
    write, in virtual time, with databases of its own: nothing that runs is touched. With --live the
    parts of the running system are stalled and failing instead, by faults at their callers, which
    are healed whatever happens.

    The tables are written into the page that probes.toml names. Exits 1 with --check where the page
    is not what was seen.
    """
    from synchromesh.drill import read_probes
    from synchromesh.drill.table import differences, read_tables, write_page
    from synchromesh.system.config.reading import read_layers

    config, _ = read_layers(folder, environment=os.environ, flags=())
    probes = read_probes(folder)
    columns = (_live if is_live else _simulated)(config, folder, probes, parts, ways, is_json)
    page = folder / probes.page
    written = _read(page)
    is_all = not (parts or ways or is_live)
    if is_check:
        found = differences(read_tables(written), columns, is_all=is_all)
        if is_json:
            print_json({"differences": [each._asdict() for each in found]})
        else:
            for each in found:
                print_line(str(each))
            print_line(
                f"{page} differs in {len(found)} places; look at each, then: synchromesh drill"
                if found
                else f"{page} is what was seen, in {len(columns)} columns"
            )
        return FINDING if found else 0
    _write(page, write_page(written, columns, is_all=is_all))
    if is_json:
        print_json({"page": str(page), "columns": [_told(each) for each in columns]})
    else:
        _print_tables(columns)
        print_line(f"written to {page}")
    return 0


def _simulated(
    config: SystemConfig,
    folder: Path,
    probes: Probes,
    parts: Sequence[str],
    ways: Sequence[str],
    is_json: bool,
) -> list[Column]:
    import logging

    from synchromesh.drill.simulated import SimulatedDrill

    found = SimulatedDrill(config, folder, probes)
    wanted = _chosen(found.columns(), parts, ways)
    # What is broken on purpose is not to be complained of.
    logging.disable(logging.CRITICAL)
    try:
        return [_run(found.run, part, way, is_json) for part, way in wanted]
    finally:
        logging.disable(logging.NOTSET)


def _live(
    config: SystemConfig,
    folder: Path,
    probes: Probes,
    parts: Sequence[str],
    ways: Sequence[str],
    is_json: bool,
) -> list[Column]:
    import asyncio

    from synchromesh.drill.live import LiveDrill, credential_of
    from synchromesh.runtime import RealRuntime

    control, runtime = ControlClient(folder), RealRuntime()
    keys = {each.route: credential_of(each, folder, os.environ) for each in probes.probe}

    async def ask(method: str, path: str, body: object) -> Any:
        if method == "GET":
            return await asyncio.to_thread(control.get, path)
        return await asyncio.to_thread(control.post, path, body)

    # Keys are remembered for days, so that no drill may use those of another one.
    first = runtime.wall_us() // 1_000
    found = LiveDrill(
        ask, runtime.network, probes.probe, lambda each: keys[each.route], first=first
    )
    wanted = _chosen(found.columns([*config.services, *config.external]), parts, ways)

    def run(part: str, way: str) -> Column:
        try:
            return asyncio.run(found.run(part, way))
        except KeyboardInterrupt:
            # Once more, in case that Ctrl-C was pressed again before it was healed.
            with suppress(SynchromeshError):
                control.post("/faults/heal", {"target": part})
                print_error(f"{part} is healed")
            raise

    return [_run(run, part, way, is_json) for part, way in wanted]


def _run(run: Callable[[str, str], Column], part: str, way: str, is_json: bool) -> Column:
    if not is_json:
        print_error(f"{part} {way} ...")
    return run(part, way)


def _chosen(
    columns: Iterable[tuple[str, str]], parts: Sequence[str], ways: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the columns of the parts and ways that were named; all of them where none were.

    Raises:
        ConfigError: one is not there, or no part is away in one of these ways.
    """
    known = list(columns)
    for names, there in ((parts, [part for part, _ in known]), (ways, [way for _, way in known])):
        for name in names:
            if name not in there:
                near = nearest(name, there)
                hint = f"did you mean {near!r}?" if near else f"there are {_listed(there)}"
                raise ConfigError(f"nothing is called {name!r} in this drill; {hint}")
    chosen = [
        (part, way)
        for part, way in known
        if (not parts or part in parts) and (not ways or way in ways)
    ]
    if not chosen:
        there_is = _listed(way for part, way in known if part in parts)
        raise ConfigError(
            f"{_listed(parts)} is never {_listed(ways)} in this drill, but {there_is}"
        )
    return chosen


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _read(page: Path) -> str:
    try:
        return page.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"{page} cannot be read: {error}") from error


def _write(page: Path, text: str) -> None:
    # Beside it first, so that whoever reads the file never sees half of it.
    beside = page.with_name(f".{page.name}.new")
    try:
        beside.write_text(text)
        beside.replace(page)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"{page} cannot be written: {error.strerror or error}") from error


def _told(column: Column) -> dict[str, Any]:
    return {
        "part": column.part,
        "way": column.way,
        "seen": {route: seen.cell() for route, seen in column.seen.items()},
        "became": column.became,
        "breakers": column.breakers,
        "whole_s": column.whole_s,
    }


def _print_tables(columns: Sequence[Column]) -> None:
    """Print what was touched; most of a system is as always."""
    from synchromesh.cli.show import console, plain_table

    table = plain_table("off", "what", "is answered")
    for column in columns:
        off = f"{column.part} {column.way}"
        for route, seen in column.seen.items():
            if seen.is_touched:
                table.add_row(off, route, seen.cell())
                off = ""
        for row, became in column.became.items():
            table.add_row(off, row, became)
            off = ""
        is_whole = column.whole_s != math.inf
        whole = f"{column.whole_s:.1f} s" if is_whole else "never; do probes use something up?"
        table.add_row(off, "whole again", whole)
    console().print(table)
