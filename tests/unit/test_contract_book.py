"""Who is let in by contracts: each order of reports, restarts and ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from synchromesh.calls import query
from synchromesh.calls.compatibility import Difference
from synchromesh.calls.contract import Operation
from synchromesh.calls.describing import describe
from synchromesh.calls.description import (
    ContractsOfPart,
    Described,
    EventDescription,
    TypeNode,
)
from synchromesh.errors import BadRequest
from synchromesh.system.config.expectations import imported_contracts
from synchromesh.system.control.contract_book import Admission, ContractBook, ReplaceRequest
from synchromesh.system.control.status import Status

ADA = ReplaceRequest("ada", "it is never called")
NOBODY = ReplaceRequest()


def stock(result: type) -> Operation[..., Any]:
    """Make the operation `inventory.stock` of a release."""

    async def act(self: Any) -> Any: ...

    act.__annotations__ = {"return": result}
    made = query("GET /stock")(act)
    made.belong_to("inventory", "stock")
    return made


def offers(result: type) -> ContractsOfPart:
    return ContractsOfPart(offers=describe([stock(result)]))


def expects(result: type) -> ContractsOfPart:
    return ContractsOfPart(expects=describe([stock(result)]))


def report(
    book: ContractBook, part: str, pid: int, contracts: ContractsOfPart
) -> tuple[Difference, ...]:
    """Report a process at 7 us, and return what it is refused for."""
    return book.report(part, pid, contracts, now_us=7).refused


NOTHING = ContractsOfPart()


@pytest.fixture
def book() -> ContractBook:
    """A book with inventory, and orders that expects what it offers."""
    book = ContractBook()
    assert report(book, "inventory", 1, offers(int)) == ()
    assert report(book, "orders", 2, expects(int)) == ()
    return book


def test_a_successor_that_fits_is_let_in(book: ContractBook) -> None:
    """With and without who answers for it; nothing is recorded."""
    for pid, request in ((3, NOBODY), (4, ADA)):
        with book.replacing("inventory", request) as replacement:
            assert report(book, "inventory", pid, offers(int)) == ()
        assert replacement.admission == Admission()
    assert list(book.breaks) == []


@pytest.mark.parametrize(
    ("part", "contracts"), [("inventory", offers(str)), ("inventory", NOTHING)]
)
def test_one_that_breaks_others_is_refused(
    book: ContractBook, part: str, contracts: ContractsOfPart
) -> None:
    """Also one that nobody asked for; it counts for nothing afterwards."""
    with book.replacing(part, NOBODY) as replacement:
        refused = report(book, part, 3, contracts)
    assert [each.expected_by for each in refused] == ["orders"]
    assert replacement.admission.refused == refused
    assert report(book, part, 4, contracts) == refused
    assert list(book.breaks) == []
    assert report(book, "orders", 5, expects(int)) == ()


def test_one_that_expects_more_is_refused(book: ContractBook) -> None:
    """It is the callee that has to be replaced first."""
    (refused,) = report(book, "orders", 3, expects(str))
    assert (refused.name, refused.expected_by) == ("inventory.stock", "orders")


def test_what_does_not_run_is_not_missed(book: ContractBook) -> None:
    """A service that is down, or not started yet, offers nothing: it will report."""
    book.ended("inventory", 1)
    assert report(book, "orders", 3, expects(str)) == ()
    assert report(ContractBook(), "orders", 1, expects(int)) == ()


def test_who_answers_for_it_is_recorded(book: ContractBook) -> None:
    """With when, who, why and what; the process is one of those that count from then on."""
    with book.replacing("inventory", ADA) as replacement:
        assert report(book, "inventory", 3, offers(str)) == ()
    book.ended("inventory", 1)
    (record,) = book.breaks
    assert (record.at_us, record.part, record.pid) == (7, "inventory", 3)
    assert (record.who, record.reason) == ("ada", "it is never called")
    assert replacement.admission == Admission(record=record)
    assert len(record.differences) == 1
    # What does not fit already is no reason, what does not fit besides is.
    assert report(book, "inventory", 4, offers(str)) == ()
    assert report(book, "inventory", 5, offers(bytes)) != ()
    assert len(book.breaks) == 1


def test_both_releases_that_run_count(book: ContractBook) -> None:
    """A gateway serves beside the one before until that has answered: each expects its own."""
    assert report(book, "gateway", 3, expects(int)) == ()
    assert report(book, "gateway", 4, NOTHING) == ()
    book.ended("orders", 2)
    assert [each.expected_by for each in report(book, "inventory", 5, offers(str))] == ["gateway"]
    book.ended("gateway", 3)
    assert report(book, "inventory", 5, offers(str)) == ()


def test_a_break_stands_until_both_sides_fit(book: ContractBook) -> None:
    """It is a finding until then, by whichever side it is mended."""
    with book.replacing("inventory", ADA):
        report(book, "inventory", 3, offers(str))
    book.ended("inventory", 1)

    def findings() -> list[str]:
        return Status.merge(Status("shop", 1, contract_breaks=book.status())).findings

    (record,) = book.status()
    assert record.standing == record.differences
    (finding,) = findings()
    assert finding.startswith("inventory: differences of contracts that stand: 1; restart it")
    assert report(book, "orders", 4, expects(str)) == ()
    # The one before runs still.
    assert len(findings()) == 1
    book.ended("orders", 2)
    (record,) = book.status()
    assert (record.standing, len(record.differences), findings()) == ((), 1, [])


def test_one_that_nobody_precedes_is_let_in(book: ContractBook) -> None:
    """After a crash it is better than nothing; the record names nobody."""
    book.ended("inventory", 1)
    assert report(book, "inventory", 3, offers(str)) == ()
    (record,) = book.breaks
    assert (record.who, record.reason, len(record.differences)) == ("", "", 1)


def test_one_restart_at_a_time_and_both_words(book: ContractBook) -> None:
    """What one restart may is never another one's; who and why belong together."""
    with (
        book.replacing("inventory", NOBODY),
        pytest.raises(BadRequest, match="is being restarted"),
        book.replacing("inventory", ADA),
    ):
        pass
    for request in (
        ReplaceRequest(who="ada"),
        ReplaceRequest(reason="so"),
        ReplaceRequest(" ", "a"),
    ):
        with pytest.raises(BadRequest, match="needs both"), book.replacing("orders", request):
            pass
    with book.replacing("inventory", NOBODY):
        assert report(book, "inventory", 3, offers(str)) != ()


CONTRACT = """
from typing import Protocol
from synchromesh import Contract, query
{more}
class Word: pass
class {name}(Contract, Protocol, service="{service}", version="1.0"):
    @query("GET /it")
    async def it(self) -> int: ...
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("from released_one import One", ["One"]),
        ("import released_one", ["One"]),
        ("from released_one import Word", []),
        ("from released_two import Two", ["Two"]),
        ("from released_help import act", ["One"]),
        ("def late():\n    from released_one import One", ["One"]),
        ("from released_one import One\nfrom released_two import Two", ["One", "Two"]),
        ("from released_one import *", ["One"]),
        ("import json, msgspec, synchromesh", []),
    ],
)
def test_imported_contracts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: list[str]
) -> None:
    """Those that are named, here or in a module of the system; none that a contract imports."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "released_one": CONTRACT.format(name="One", service="one", more=""),
        "released_two": CONTRACT.format(
            name="Two", service="two", more="from released_one import One"
        ),
        "released_help": "from released_one import One\nact = One.it",
        "released_app": text,
    }
    for name, source in files.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("released_one", "released_two", "released_help", "released_app"):
        monkeypatch.setitem(sys.modules, name, __import__(name))
    assert sorted(each.__name__ for each in imported_contracts("released_app")) == found


def test_what_each_service_takes_is_told_of_all_its_processes(book: ContractBook) -> None:
    """Of both releases while one replaces the other, and of all replicas."""

    def takes(name: str) -> ContractsOfPart:
        described = EventDescription("", TypeNode("str"), ())
        return ContractsOfPart(expects=Described(events={name: described}))

    assert report(book, "stock#1", 7, takes("shop.sold")) == ()
    assert report(book, "stock#2", 8, takes("shop.returned")) == ()
    assert book.taken({})["stock"] == {"shop.sold", "shop.returned"}
    book.ended("stock#2", 8)
    assert book.taken({}) == {
        "inventory": frozenset(), "orders": frozenset(), "stock": {"shop.sold"},
    }  # fmt: skip
