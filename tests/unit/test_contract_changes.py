"""`synchromesh contract`: a release in files, and what today's code breaks for whom."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli_runs import Run, runner
from processes import COMMAND
from servo_works_world import FOLDER
from synchromesh.calls import query
from synchromesh.calls.contract import Operation
from synchromesh.calls.describing import describe
from synchromesh.calls.description import ContractsOfPart
from synchromesh.errors import ConfigError
from synchromesh.system.config.contract_changes import breaks, changes
from synchromesh.system.config.released import read_released, write_released


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return runner(capsys)


def op(result: Any, name: str = "stock") -> Operation[..., Any]:
    """Make an operation of `inventory`, as a release has it."""

    async def act(self: Any) -> Any: ...

    act.__annotations__ = {"return": result}
    made = query(f"GET /{name}")(act)
    made.belong_to("inventory", name)
    return made


def offers(*operations: Operation[..., Any]) -> ContractsOfPart:
    return ContractsOfPart(offers=describe(operations))


def expects(*operations: Operation[..., Any]) -> ContractsOfPart:
    return ContractsOfPart(expects=describe(operations))


RELEASED = {"inventory": offers(op(int)), "orders": expects(op(int))}


@pytest.mark.parametrize(
    ("today", "said"),
    [
        (RELEASED, []),
        # Each alone among the others as they were, and both together.
        ({**RELEASED, "inventory": offers(op(str))}, ["answer is sent as str, and read as int"]),
        ({**RELEASED, "orders": expects(op(str))}, ["answer is sent as int, and read as str"]),
        (
            {"inventory": offers(op(str)), "orders": expects(op(str))},
            ["answer is sent as int, and read as str", "answer is sent as str, and read as int"],
        ),
        # What a release reads has to take both.
        ({"inventory": offers(op(int)), "orders": expects(op(int | str))}, []),
        ({"orders": expects(op(int))}, ["is not offered"]),
        ({"inventory": offers(), "orders": expects()}, ["is not offered"]),
        ({**RELEASED, "billing": expects(op(int))}, []),
        ({**RELEASED, "billing": expects(op(int, "shelf"))}, ["is not offered"]),
        # A new part, and one that it needs, which is new as well.
        (
            {
                **RELEASED,
                "inventory": offers(op(int), op(int, "shelf")),
                "billing": expects(op(int, "shelf")),
            },
            ["is not offered"],
        ),
    ],
)
def test_parts_are_replaced_one_by_one(today: dict[str, ContractsOfPart], said: list[str]) -> None:
    """Each new one has to fit the others as they were released, and those of today."""
    found = breaks(RELEASED, today)
    assert sorted(f"{each.where} {each.what}".strip() for each in found) == said


def test_what_did_not_fit_before_is_no_break() -> None:
    """A release cannot be blamed for what the last one was let in with."""
    broken = {"inventory": offers(op(str)), "orders": expects(op(int))}
    assert breaks(broken, broken) == []
    assert breaks(broken, RELEASED) == []


def test_each_change_is_told_with_what_it_breaks() -> None:
    """New, gone, changed so that it fits, and changed so that it does not."""
    before = offers(op(int), op(int | str, "shelf"), op(int, "rack"))
    now = offers(op(str), op(int, "shelf"), op(int, "bin"))
    told = [(str(each), each.breaks) for each in changes({"inventory": before}, {"inventory": now})]
    assert told == [
        ("inventory.bin is new", ()),
        ("inventory.rack is gone", ()),
        ("inventory.shelf is changed, and fits whoever expects it as it was", ()),
        ("inventory.stock is changed", ("answer is sent as str, and read as int",)),
    ]
    assert changes({"inventory": now}, {"inventory": now}) == []


def test_files_are_what_was_frozen(tmp_path: Path) -> None:
    """Also after a part has gone; the same contracts are the same bytes."""
    place = tmp_path / "contracts" / "released"
    write_released(place, RELEASED)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert read_released(place) == RELEASED
    write_released(place, RELEASED)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    write_released(place, {"orders": expects(op(int))})
    assert list(read_released(place)) == ["orders"]
    assert read_released(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no contract of a release"),
        ("{}", "is no contract of a release"),
        ('{"format": 1, "part": "a", "offers": {}}', "is no contract of a release"),
        ('{"format": 2, "colour": "red"}', "has format 2, and this release reads up to 1"),
        (
            '{"format": 1, "part": "b", "offers": {}, "expects": {}}',
            "is the contract of 'b'; give it that name",
        ),
    ],
)
def test_another_file_is_refused_and_kept(tmp_path: Path, text: str, said: str) -> None:
    """It is named; neither read nor frozen over."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_released(tmp_path)
    with pytest.raises(ConfigError, match=said):
        write_released(tmp_path, RELEASED)
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file is in the way, or the disk is full."""
    (tmp_path / "contracts").write_text("")
    with pytest.raises(ConfigError, match=r"contracts.* cannot be written"):
        write_released(tmp_path / "contracts" / "released", RELEASED)


CONTRACT = """
from typing import Protocol
from synchromesh import Contract, query

class Shelf(Contract, Protocol, service="shelf", version="1.0"):
    @query("GET /count")
    async def count(self) -> RESULT: ...
"""
SERVICE = """
from synchromesh import Context, Service
from contracts_shelf import Shelf

shelf = Service("shelf", implements=Shelf)

@shelf.handles(Shelf.count)
async def count(ctx: Context) -> RESULT:
    return RESULT()
"""
READER = """
from typing import Protocol
from synchromesh import Context, Contract, Service, query
from contracts_shelf import Shelf

class Reader(Contract, Protocol, service="reader", version="1.0"):
    @query("GET /read")
    async def read(self) -> RESULT: ...

reader = Service("reader", implements=Reader)

@reader.handles(Reader.read)
async def read(ctx: Context) -> RESULT:
    return await ctx.call(Shelf.count())
"""
TOML = """
[system]
name = "shelves"
[services.shelf]
app = "shelf:shelf"
[services.reader]
app = "reader:reader"
"""


def write_release(folder: Path, result: str) -> None:
    """Write the code of a release in which both sides know `shelf.count` to answer this type."""
    sources = {"contracts_shelf.py": CONTRACT, "shelf.py": SERVICE, "reader.py": READER}
    for name, text in sources.items():
        (folder / name).write_text(text.replace("RESULT", result))
    (folder / "synchromesh.toml").write_text(TOML)


def test_a_change_is_checked_as_in_continuous_integration(tmp_path: Path) -> None:
    """Freeze, change, check: exit 1 and whom it breaks; nothing frozen is a mistake."""

    def told(*words: str) -> tuple[int, str, str]:
        command = [*COMMAND, "--folder", str(tmp_path), "contract", *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout, ran.stderr

    write_release(tmp_path, "int")
    code, _, error = told("check")
    assert (code, "freeze what is released with: synchromesh contract freeze" in error) == (2, True)
    assert told("freeze") == (
        0,
        "2 operations and events of shelf, reader are in contracts/released\n",
        "",
    )
    assert told("check") == (0, "all is right: reader, shelf can be replaced one by one\n", "")
    write_release(tmp_path, "float")
    code, out, _ = told("check", "--json")
    assert (code, [each["expected_by"] for each in json.loads(out)]) == (1, ["reader"])
    code, out, _ = told("diff")
    assert (code, out.splitlines()) == (
        1,
        [
            "reader.read is changed",
            "  answer is sent as float, and read as int",
            "shelf.count is changed",
            "  answer is sent as float, and read as int",
        ],
    )


def test_servo_works_has_frozen_what_it_is(run: Run) -> None:
    """Whoever changes a contract of it sees what that breaks, and freezes it anew."""
    assert run(FOLDER, "contract", "check").code == 0
    assert run(FOLDER, "contract", "diff").out == "all contracts are as they were frozen\n"
