"""`synchromesh saga check` and `record`: what a change of saga code breaks, for runs and for CI."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synchromesh.cli.output import print_json, print_line

if TYPE_CHECKING:
    from synchromesh.system.control.saga_check import SagaCheck, SagaDifference

FINDING = 1
PLACE = Path("histories")
_place_option = click.option(
    "--dir",
    "place",
    default=PLACE,
    type=click.Path(path_type=Path, file_okay=False),
    show_default=True,
    help="Where the histories are, below the system's folder.",
)
_json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.command()
@_place_option
@click.option(
    "--against",
    default=None,
    metavar="REV|DIR",
    help="Other code: a revision of this repository, or a folder.",
)
@click.option("--gone", multiple=True, metavar="SAGA", help="A saga that may be taken away.")
@_json_option
@click.pass_obj
def check(
    folder: Path, place: Path, against: str | None, gone: tuple[str, ...], is_json: bool
) -> int:
    """Check what a change of saga code breaks.

    Histories beside the code, and all runs in the system's databases that have not ended, are
    replayed: saga functions are run on what was recorded, and nothing else. With --against the
    histories of that code and runs made up with it are replayed as well.

    Exits 1 with the first step that differs where one would wait for other code.
    """
    import asyncio

    from synchromesh.system.control.old_code import old_code
    from synchromesh.system.control.saga_check import check_sagas

    found_old = nullcontext(None) if against is None else old_code(folder, against)
    with found_old as old:
        found = asyncio.run(check_sagas(folder, place, old, gone))
    if is_json:
        print_json(found)
    else:
        _print(found, against)
    return FINDING if found.differences else 0


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_place_option
@click.option(
    "--mask",
    multiple=True,
    metavar="FIELD",
    help="A field whose values are not to be written, wherever it is.",
)
@_json_option
@click.pass_obj
def record(
    folder: Path, ids: tuple[str, ...], place: Path, mask: tuple[str, ...], is_json: bool
) -> int:
    """Write histories of runs to files.

    They are for version control, and `saga check` replays them.

    Without an ID, of the newest runs that have ended one for each way that a run went; a way that
    is among the files already is not written again.
    """
    import asyncio

    from synchromesh.system.control.saga_check import record_runs

    written = asyncio.run(record_runs(folder, place, ids, mask))
    if is_json:
        print_json(written)
        return 0
    for name in written:
        print_line(str(place / name))
    if not written:
        print_line(f"no run went a way that is not in {place} yet")
    return 0


def _print(found: SagaCheck, against: str | None) -> None:
    bad = {each.saga for each in found.differences}
    for each in found.differences:
        _print_difference(each, against)
    for saga in found.sagas:
        looked_at = _counted(runs=saga.runs, histories=saga.histories, samples=saga.samples)
        if saga.saga not in bad and looked_at:
            go = "goes" if saga.runs + saga.histories + saga.samples == 1 else "go"
            print_line(f"{saga.saga}: {looked_at} {go} on with this code")
        elif saga.saga not in bad:
            print_line(
                f"{saga.saga}: nothing to replay; record a run that has ended with: synchromesh "
                "saga record"
            )
    for name in found.gone:
        print_line(f"{name}: is gone, as it should be once none of its runs is left")
    if not found.sagas:
        print_line("no service has sagas")


def _print_difference(each: SagaDifference, against: str | None) -> None:
    said = _counted(
        runs=sum(each.runs.values()), histories=len(each.histories), samples=int(each.is_sampled)
    )
    print_line(f"{each.saga} v{each.version}: {said} would wait for other code")
    print_line(f"  {each.differs}")
    if each.ids:
        more = ", ..." if sum(each.runs.values()) > len(each.ids) else ""
        print_line(f"  runs: {', '.join(each.ids)}{more}")
    if each.histories:
        print_line(f"  histories: {', '.join(each.histories)}")
    if each.before == "no":
        print_line(f"  they do not fit the code of {against} either")
    else:
        print_line(
            f"  keep the old function under version={each.version} beside the new one, and give "
            f"that version={each.version + 1}"
        )


def _counted(*, runs: int, histories: int, samples: int) -> str:
    parts = [
        f"{count} {name if count == 1 else plural}"
        for count, name, plural in (
            (runs, "run", "runs"),
            (histories, "history", "histories"),
            (samples, "made-up run", "made-up runs"),
        )
        if count
    ]
    return " and ".join(parts)
