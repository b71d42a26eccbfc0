"""Defining a service: what is wrong is said before anything starts."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import pytest

from service_world import Bank, Hooks, Reserved, Stock, make_bank, make_stock
from synchromesh.calls import Contract, PublicEvent, command, event, query
from synchromesh.errors import ConfigError, ContractError
from synchromesh.saga import Saga
from synchromesh.service import Context, Service, Transaction


class Empty(Contract, Protocol, service="empty", version="1.0"):
    pass


class Unkeyed(msgspec.Struct):
    n: int


class Odd(Contract, Protocol, service="odd", version="1.0"):
    happened: PublicEvent[Unkeyed] = event(Unkeyed, key="nothing")


class Clash(Contract, Protocol, service="clash", version="1.0"):
    @command("POST /x")
    async def deliver_message(self) -> None: ...


class Unresolved(Contract, Protocol, service="unresolved", version="1.0"):
    @query("GET /x")
    async def ask(self, what: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


async def charge(tx: Transaction, order_id: str, cents: int) -> str:
    return ""


async def refund(tx: Transaction, receipt: str) -> None:
    return None


async def listen(tx: Transaction, reserved: Reserved) -> None:
    return None


def test_a_duration_of_a_saga_is_a_text() -> None:
    """The saga and the option are named, and what to write."""
    stock = Service("stock")

    async def restock(s: Any, note: str) -> None:
        return None

    with pytest.raises(ConfigError, match=r"saga 'restock': deadline: 60 is no .* as \"60s\""):
        stock.saga(str, deadline=60)(restock)  # type: ignore[arg-type]


def test_a_whole_service_passes() -> None:
    """What the contract offers is handled, and what is published is listed."""
    stock = make_stock(Hooks())
    stock.check()
    assert [each.full_name for each in stock.published()] == ["stock.reserved"]
    assert repr(stock) == "<Service stock: 6 operations, 0 subscriptions, 1 sagas>"
    assert repr(make_bank(Hooks())) == "<Service bank: 2 operations, 0 subscriptions, 0 sagas>"


@pytest.mark.parametrize("name", ["", "Bank", "my-bank", "9lives", "a.b", "bank\n"])
def test_a_name_is_checked(name: str) -> None:
    """It names a database, edges and stored events."""
    with pytest.raises(ContractError, match="lower-case"):
        Service(name)


def test_service_and_contract_have_one_name() -> None:
    """The message names both."""
    with pytest.raises(ContractError, match="'till' implements a contract of service 'bank'"):
        Service("till", implements=Bank)


def test_every_operation_needs_a_handler() -> None:
    """The message names those that have none, and how to write one."""
    bank = Service("bank", implements=Bank)
    with pytest.raises(ContractError, match=r"does not handle charge, refund .* @bank.writes"):
        bank.check()


def test_a_handler_is_for_an_operation_of_the_contract() -> None:
    """Another service's operation, or one handled already, is refused."""
    bank = Service("bank", implements=Bank)
    bank.writes(Bank.charge)(charge)
    with pytest.raises(ContractError, match=r"bank.charge is handled twice"):
        bank.writes(Bank.charge)(charge)
    with pytest.raises(ContractError, match="its contract does not offer"):
        bank.writes(Stock.release)(charge)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="its contract does not offer"):
        Service("bank").writes(Bank.charge)(charge)


def test_handlers_are_async() -> None:
    """A plain function is refused wherever a handler is registered."""
    bank = Service("bank", implements=Bank)

    def plain(*args: Any) -> Any:
        return None

    registers: list[tuple[Any, str]] = [
        (bank.writes(Bank.charge), "handler of bank.charge"),
        (bank.handles(Bank.charge), "handler of bank.charge"),
        (bank.on(Stock.reserved), "handler of stock.reserved"),
        (bank.saga(int, deadline="1m"), "saga 'plain'"),
        (bank.projection("p", events=()), "projection 'p'"),
    ]
    for register, what in registers:
        with pytest.raises(ContractError, match=f"{what} is not async"):
            register(plain)


async def misses_one(tx: Transaction, order_id: str) -> str:
    return ""


async def wants_more(tx: Transaction, order_id: str, cents: int, more: int) -> str:
    return ""


async def names_it_otherwise(tx: Transaction, order_id: str, amount: int) -> str:
    return ""


async def takes_anything(tx: Transaction, **anything: Any) -> str:
    return ""


async def has_a_default_more(tx: Transaction, order_id: str, cents: int, more: int = 1) -> str:
    return ""


@pytest.mark.parametrize("handler", [misses_one, wants_more, names_it_otherwise])
def test_a_handler_takes_what_the_contract_gives(handler: Any) -> None:
    """Arguments are given by name: a mismatch is found before the first call."""
    bank = Service("bank", implements=Bank)
    bank.writes(Bank.charge)(handler)
    bank.writes(Bank.refund)(refund)
    with pytest.raises(ContractError, match=r"bank.charge does not take .* \(order_id, cents\)"):
        bank.check()


@pytest.mark.parametrize("handler", [takes_anything, has_a_default_more])
def test_a_handler_may_take_more_than_the_contract_gives(handler: Any) -> None:
    """What has a default, or takes any name, fits."""
    bank = Service("bank", implements=Bank)
    bank.writes(Bank.charge)(handler)
    bank.writes(Bank.refund)(refund)
    bank.check()


def test_events_are_checked() -> None:
    """A key that the payload lacks is named; an event is taken once."""
    with pytest.raises(ContractError, match="ordered by 'nothing', which Unkeyed lacks"):
        Service("odd", implements=Odd).check()
    books = Service("books")
    books.on(Stock.reserved)(listen)
    assert Service("books", ignored=[Stock.reserved]).state == ("ignored events: stock.reserved",)
    with pytest.raises(ContractError, match=r"takes stock.reserved and has it in ignored="):
        Service("books", ignored=[Stock.reserved]).on(Stock.reserved)(listen)
    with pytest.raises(ContractError, match=r"takes stock.reserved twice"):
        books.on(Stock.reserved)(listen)


def test_names_of_the_toolkit_are_kept_free() -> None:
    """An operation must not hide the delivery of messages."""
    clash = Service("clash", implements=Clash)

    async def deliver_message(ctx: Context) -> None:
        return None

    clash.handles(Clash.deliver_message)(deliver_message)
    with pytest.raises(ContractError, match=r"clash.deliver_message"):
        clash.check()


def test_annotations_that_cannot_be_resolved_are_named() -> None:
    """The error says where, before anything starts."""
    service = Service("unresolved", implements=Unresolved)

    async def ask(ctx: Context, what: int) -> None:
        return None

    service.handles(Unresolved.ask)(ask)
    with pytest.raises(ContractError, match="Nowhere"):
        service.check()


def test_sagas_and_projections_have_names_of_their_own() -> None:
    """Two of one name are refused, and a deadline is a duration."""
    service = Service("empty", implements=Empty)

    async def pay(s: Saga, cents: int) -> int:
        return cents

    definition = service.saga(int, deadline="10m", version=2, owner="ops")(pay)
    assert (definition.deadline_s, definition.version, definition.owner) == (600.0, 2, "ops")
    with pytest.raises(ContractError, match="two sagas 'pay' of version 2"):
        service.saga(int, deadline="10m", version=2)(pay)
    old = service.saga(int, deadline="10m", name="pay")(wait)
    assert (service.sagas["pay"], service.sagas.fitting("pay", 1)) == (
        definition,
        [old, definition],
    )
    assert repr(service.sagas) == "<SagaVersions pay v1, v2>"
    with pytest.raises(ConfigError):
        service.saga(int, deadline="soon")(wait)
    assert service.saga(int, deadline="1s")(wait).owner == "empty"
    service.projection("totals", events=(Unkeyed,))(project)
    with pytest.raises(ContractError, match="two projections named 'totals'"):
        service.projection("totals", events=(Unkeyed,))(project)
    service.check()


async def wait(s: Saga, cents: int) -> int:
    return cents


async def project(tx: Transaction, event: Any) -> None:
    return None
