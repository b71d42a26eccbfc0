"""Which fields are personal, and how a document with them is sealed, opened and masked."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import pytest
from msgspec import Struct

import synchromesh.personal
from synchromesh import Contract, command, event, query
from synchromesh.calls.contract import PublicEvent
from synchromesh.errors import BadRequest, ContractError, MissingExtra, PersonalUnreadable
from synchromesh.events import EventTypes
from synchromesh.identity import NOBODY
from synchromesh.personal import Erased, Personal, Subject
from synchromesh.personal_types import mask_arguments, personal_fields
from synchromesh.saga.records import RecordKind, Repair, SagaRecord, SagaStatus
from synchromesh.saga.seals import RunSeal, opened
from synchromesh.saga.tables import SagaRow
from synchromesh.sealing import (
    NO_KEYS,
    PersonalPlace,
    erase_at,
    mask_at,
    open_at,
    open_if_ours,
    open_sealed,
    seal_at,
)


class PlainVault:
    """A vault that hides nothing, to see what belongs where; `gone` are erased."""

    def __init__(self) -> None:
        self.without_key: set[str] = set()
        self.gone: set[str] = set()

    def seal(self, subject: str, place: str, data: bytes) -> str | None:
        return None if subject in self.gone else f"{subject}|{place}|{data.decode()}"

    def open(self, subject: str, place: str, sealed: str) -> bytes | None:
        if subject in self.gone:
            return None
        whose, where, data = sealed.split("|", 2)
        if (whose, where) != (subject, place):
            raise PersonalUnreadable("not from here", is_foreign=True)
        if subject in self.without_key:
            raise PersonalUnreadable("its key is lost")
        return data.encode()

    def is_erased(self, subject: str) -> bool:
        return subject in self.gone


@dataclass(frozen=True)
class Address:
    street: str


class Child(Struct, frozen=True):
    name: Personal[str]


class Pair(NamedTuple):
    at: int
    child: Child


class Cat(Struct, frozen=True, tag=True):
    name: str


class Owner(Struct, frozen=True, tag=True):
    owner: Subject
    name: Personal[str]


class Row(Struct, frozen=True, array_like=True, tag=True):
    n: int
    whose: Subject
    born: Personal[dt.date]


class Person(Struct, frozen=True, rename="camel"):
    person_id: Subject
    the_name: Personal[str]
    address: Personal[Address] | None = None
    money: Personal[Decimal | None] = None
    children: list[Child] = []
    by_name: dict[str, Child] = {}
    pair: Pair | None = None
    pet: Cat | Owner | None = None
    row: Row | None = None
    fixed: tuple[int, Child] | None = None
    plain: str = "plain"
    next: Person | None = None


WHOLE = Person(
    "p-1",
    "Anna",
    address=Address("Main"),
    money=Decimal("3.14"),
    children=[Child("Bea"), Child("Cem")],
    by_name={"a/b~": Child("Dan")},
    pair=Pair(1, Child("Eve")),
    pet=Owner("p-2", "Fay"),
    row=Row(1, "p-3", dt.date(2001, 2, 3)),
    fixed=(1, Child("Gil")),
    next=Person("p-4", "Hal"),
)
PRIVATE = ("Anna", "Main", "3.14", "Bea", "Cem", "Dan", "Eve", "Fay", "2001", "Gil", "Hal")


def places_in(sealed: bytes) -> dict[str, str]:
    found = {}

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "$personal" in value:
                _, place, data = value["sealed"].split("|", 2)
                found[place.partition("\0")[2]] = f"{value['$personal']} {data}"
                return
            value = list(value.values())
        for each in value if isinstance(value, list) else ():
            look(each)

    look(json.loads(sealed))
    return found


def test_each_personal_value_is_sealed_at_its_place_for_its_nearest_subject() -> None:
    """In structs, dataclasses, tuples, lists, maps, unions and types that hold themselves."""
    fields, vault = personal_fields(Person), PlainVault()
    assert fields is not None
    data = msgspec.json.encode(WHOLE)
    sealed = fields.seal(data, "event/x", vault)
    assert places_in(sealed) == {
        "theName": 'p-1 "Anna"', "address": 'p-1 {"street":"Main"}', "money": 'p-1 "3.14"',
        "children/0/name": 'p-1 "Bea"', "children/1/name": 'p-1 "Cem"',
        "byName/a~1b~0/name": 'p-1 "Dan"', "pair/1/name": 'p-1 "Eve"', "pet/name": 'p-2 "Fay"',
        "row/3": 'p-3 "2001-02-03"', "fixed/1/name": 'p-1 "Gil"', "next/theName": 'p-4 "Hal"',
    }  # fmt: skip
    opened, places = open_at(sealed, "event/x", vault)
    assert msgspec.json.decode(opened, type=Person) == WHOLE
    assert {each.subject for each in places} == {"p-1", "p-2", "p-3", "p-4"}
    masked = fields.mask(data)
    assert [each for each in PRIVATE if each.encode() in masked] == []
    assert b"plain" in masked
    # Whoever was only told the places comes to the same.
    assert mask_at(opened, places) == masked
    assert seal_at(opened, places, "event/x", vault) == sealed


def test_what_is_erased_is_erased_in_what_is_left() -> None:
    """Of several subjects in one document each goes alone; a digest does not change by it."""
    fields, vault = personal_fields(Person), PlainVault()
    assert fields is not None
    data = msgspec.json.encode(WHOLE)
    sealed = fields.seal(data, "event/x", vault)
    vault.gone.add("p-2")
    opened, places = open_at(sealed, "event/x", vault)
    person = msgspec.json.decode(opened, type=Person)
    assert person.pet == Owner("p-2", Erased())
    assert person.the_name == "Anna"
    assert fields.mask(opened) == fields.mask(data)
    # What is sealed or arrives from now on is erased, too.
    again = fields.seal(data, "event/x", vault)
    assert msgspec.json.decode(open_sealed(again, "event/x", vault), type=Person) == person
    whole = (*places, PersonalPlace(("pet", "name"), "p-2"))
    assert erase_at(data, whole, vault) == erase_at(opened, places, vault)
    vault.gone.update(("p-1", "p-3", "p-4"))
    gone = open_sealed(sealed, "event/x", vault)
    assert gone == fields.mask(data)
    assert msgspec.json.decode(gone, type=Person).address == Erased()


def test_a_sealed_value_opens_nowhere_else() -> None:
    """It belongs to its document and place: copied to another one it is no value any more."""
    fields, vault = personal_fields(Person), PlainVault()
    assert fields is not None
    sealed = fields.seal(msgspec.json.encode(Person("p-1", "Anna")), "event/x", vault)
    with pytest.raises(PersonalUnreadable):
        open_sealed(sealed, "event/y", vault)
    moved = msgspec.json.decode(sealed)
    moved["next"] = {"personId": "p-1", "theName": moved["theName"]}
    with pytest.raises(PersonalUnreadable):
        open_sealed(msgspec.json.encode(moved), "event/x", vault)
    assert open_if_ours(sealed, "event/y", vault) == sealed
    assert open_if_ours(b"no $personal json", "event/y", vault) == b"no $personal json"
    # Nobody can tell without the key.
    vault.without_key.add("p-1")
    with pytest.raises(PersonalUnreadable, match="lost"):
        open_if_ours(sealed, "event/x", vault)


def test_what_was_stored_before_a_field_became_personal_is_read() -> None:
    """Plain values stay, and null is nobody's secret."""
    data = msgspec.json.encode(WHOLE)
    assert open_sealed(data, "event/x", PlainVault()) == data
    fields = personal_fields(Person)
    assert fields is not None
    nothing = fields.seal(msgspec.json.encode(Person("p-1", "x")), "event/x", PlainVault())
    assert msgspec.json.decode(nothing)["address"] is None


@pytest.mark.parametrize("subject", ["", "x" * 201, "a\nb"])
def test_a_subject_is_named_by_a_short_printable_id(subject: str) -> None:
    """Bad input is refused before anything is stored, and told without the value."""
    fields = personal_fields(Person)
    assert fields is not None
    with pytest.raises(BadRequest, match="theName of a subject of") as refused:
        fields.seal(msgspec.json.encode(Person(subject, "Anna")), "event/x", PlainVault())
    assert "Anna" not in refused.value.message


def test_nobody_slips_in_what_looks_sealed() -> None:
    """A document that comes with the key of sealed values is refused, wherever it has it."""

    class Noted(Struct):
        whose: Subject
        note: Personal[str]
        more: dict[str, Any]

    fields = personal_fields(Noted)
    assert fields is not None
    forged = Noted("p-1", "x", {"$personal": "p-2", "sealed": "..."})
    with pytest.raises(BadRequest, match="only a sealed value"):
        fields.seal(msgspec.json.encode(forged), "event/x", PlainVault())
    for wrong in (("nowhere",), (0,), ("note", "deep")):
        with pytest.raises(BadRequest, match="there is none"):
            seal_at(b'{"note":"x"}', (PersonalPlace(wrong, "p-1"),), "m", PlainVault())


@pytest.mark.parametrize("key", ["$personal", "\\u0024personal", "$\\u0070ersonal"])
def test_nobody_slips_it_in_by_escapes(key: str) -> None:
    """JSON that was encoded elsewhere is refused by what it says, and else stored as it was."""

    class Carrying(Struct):
        whose: Subject
        note: Personal[str]
        more: msgspec.Raw

    fields, vault = personal_fields(Carrying), PlainVault()
    assert fields is not None
    forged = Carrying("p-1", "x", msgspec.Raw(f'{{"{key}":"p-1","sealed":"x"}}'.encode()))
    with pytest.raises(BadRequest, match="only a sealed value"):
        fields.seal(msgspec.json.encode(forged), "event/x", vault)
    honest = Carrying("p-1", "x", msgspec.Raw(b'{"\\u00e4":"\\u0024 personal"}'))
    stored = fields.seal(msgspec.json.encode(honest), "event/x", vault)
    assert msgspec.json.decode(open_sealed(stored, "event/x", vault))["note"] == "x"


class Tree(Struct):
    children: list[Tree]
    name: str


class Homeless(Struct):
    email: Personal[str]


class Keyed(Struct):
    whose: Subject
    email: Personal[str]


class Lists(Struct):
    whose: Subject
    emails: Personal[list[str]]


class Takes(Contract, Protocol, service="takes", version="1.0"):
    @command("POST /lists")
    async def take(self, lists: Lists) -> None: ...
    @command("POST /emails")
    async def tell(self, whose: Subject, emails: Personal[list[str]]) -> None: ...


def test_wrong_declarations_are_told() -> None:
    """What could not be sealed, or would be where it is not, is refused before anything runs."""

    class Anything(Struct):
        whose: Subject
        email: Personal[Any]

    class Twice(Struct):
        whose: Subject
        child: Personal[Child]

    class Two(Struct):
        a: Subject
        b: Subject
        email: Personal[str]

    class Both(Struct):
        whose: Personal[Subject]

    for kind, said in (
        (Lists, "Lists has a Personal field of a list, .*; a list goes into a struct"),
        (Anything, r"Personal\[Any\]"),
        (Twice, "one is enough"), (Two, "2 fields of type Subject"), (Both, "id that stays"),
    ):  # fmt: skip
        with pytest.raises(ContractError, match=said):
            personal_fields(kind)
    with pytest.raises(ContractError, match="a list goes into a struct"):
        EventTypes("shop", Lists)
    with pytest.raises(ContractError, match=r"a value of a call has .*; a list goes into a struct"):
        _ = Takes.tell.shape
    with pytest.raises(ContractError, match=r"Lists has a Personal .*; a list goes into a struct"):
        _ = Takes.take.shape
    with pytest.raises(ContractError, match=r"Homeless.email is Personal, and no field"):
        EventTypes("shop", Homeless)
    homeless = personal_fields(Homeless)
    assert homeless is not None
    with pytest.raises(ContractError, match="no field beside or above"):
        homeless.seal(b'{"email":"x"}', "event/x", PlainVault())
    with pytest.raises(ContractError, match="have no vault"):
        EventTypes("shop", Keyed).encode(Keyed("p-1", "x"))


class Doors(Contract, Protocol, service="doors", version="1.0"):
    @command("POST /a")
    async def nobodys(self, email: Personal[str]) -> None: ...
    @command("POST /b/{email}")
    async def in_path(self, who: Subject, email: Personal[str]) -> None: ...
    @query("GET /c")
    async def in_query(self, email: Personal[str]) -> str: ...
    @command("POST /d")
    async def whose(self, who: Subject, email: Personal[str]) -> str: ...
    @query("POST /e")
    async def asked(self, email: Personal[str]) -> Homeless: ...

    ordered: PublicEvent[Keyed] = event(Keyed, key="email")
    lonely: PublicEvent[Homeless] = event(Homeless)


def test_operations_and_public_events_are_checked() -> None:
    """A command stores what it is given; a URL is logged; a key is stored as it is."""
    with pytest.raises(ContractError, match=r"doors.nobodys: nobodys.email is Personal"):
        _ = Doors.nobodys.shape
    for operation in (Doors.in_path, Doors.in_query):
        with pytest.raises(ContractError, match="in its URL"):
            _ = operation.shape
    with pytest.raises(ContractError, match="keys are stored as they are"):
        _ = Doors.ordered.personal
    with pytest.raises(ContractError, match="says whose it is"):
        _ = Doors.lonely.personal
    # A query keeps nothing.
    assert Doors.asked("x").arguments == b'{"email":"x"}'
    one, other = Doors.whose("p-1", "x"), Doors.whose("p-1", "y")
    assert one.digest == other.digest != Doors.whose("p-2", "x").digest
    assert Doors.whose("p-1", Erased()).digest == one.digest


def test_types_without_personal_fields_have_nothing_to_ask() -> None:
    """Nothing is made for them, also where they hold themselves."""

    for kind in (Tree, int, Any, list[Address], None, dict[str, Tree]):
        assert personal_fields(kind) is None

    def unit(tx: object, a: int, b: Tree) -> None: ...

    assert mask_arguments(unit) is None
    assert mask_arguments(print) is None


class Lazy(Struct, omit_defaults=True):
    email: Personal[str] = "x"
    whose: Subject = ""


class Either(Struct):
    whose: Subject
    what: Personal[str] | Child


def test_a_subject_that_is_left_out_is_told() -> None:
    """Where it is a default nobody is named, and nothing is stored."""
    fields = personal_fields(Lazy)
    assert fields is not None
    with pytest.raises(BadRequest, match="a subject of 0 characters"):
        fields.seal(msgspec.json.encode(Lazy("y")), "event/x", PlainVault())
    assert fields.seal(msgspec.json.encode(Lazy()), "event/x", PlainVault()) == b"{}"


def test_of_a_union_each_member_is_told_by_its_form() -> None:
    """A text is personal as a whole, a struct by its fields."""
    fields = personal_fields(Either)
    assert fields is not None
    for what, places in (("text", {"what"}), (Child("Bea"), {"what/name"})):
        sealed = fields.seal(msgspec.json.encode(Either("p-1", what)), "x", PlainVault())
        assert set(places_in(sealed)) == places
        opened = open_sealed(sealed, "x", PlainVault())
        assert msgspec.json.decode(opened, type=Either) == Either("p-1", what)


def test_arguments_of_a_unit_are_told_without_what_is_personal() -> None:
    """Behind its first parameter, by its annotations."""

    def unit(tx: object, n: int, email: Personal[str], person: Keyed) -> None: ...

    class Units:
        async def bound(self, tx: object, n: int, email: Personal[str]) -> None: ...

    bound = mask_arguments(Units().bound)
    assert bound is not None
    assert bound(b'[1,"x"]') == b'[1,["erased"]]'
    mask = mask_arguments(unit)
    assert mask is not None
    told = mask(b'[1,"x",{"email":"y","whose":"p-1"}]')
    assert told == b'[1,["erased"],{"email":["erased"],"whose":"p-1"}]'


def test_a_missing_extra_is_told_where_a_field_is_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Importing `Personal` without the library names what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    source = Path(synchromesh.personal.__file__).read_text()
    with pytest.raises(MissingExtra, match=r"pip install 'WHEEL\[personal\]'"):
        exec(compile(source, "personal.py", "exec"), {"__name__": "another"})


def test_what_a_person_did_by_hand_in_a_saga_is_sealed_as_the_step_is() -> None:
    """The result that an operator gives for a skipped step is stored as that of the step."""
    seal, vault = RunSeal(None, None), PlainVault()
    fields = personal_fields(Keyed)
    assert fields is not None
    seal.steps["look_up#1"] = fields
    result = msgspec.Raw(b'{"whose":"p-1","email":"anna"}')
    by_hand = Repair("skip", "ina", "done by phone", "running", result)
    record = SagaRecord(RecordKind.REPAIRED, "look_up#1", body=msgspec.json.encode(by_hand))
    other = SagaRecord(RecordKind.BEGUN, "look_up#1")
    stored = seal.records("run-1", [record, other], vault)
    assert b"$personal" in stored[0].body
    assert stored[1] is other
    row = SagaRow(
        "run-1", "saga", 1, None, "", b"{}", SagaStatus.RUNNING, "", "", "", "", "", NOBODY, 0,
        None, 0, None,
    )  # fmt: skip
    assert opened(row, stored, vault)[0] is row
    back = msgspec.json.decode(opened(row, stored, vault)[1][0].body, type=Repair)
    assert msgspec.json.decode(back.result, type=Keyed) == Keyed("p-1", "anna")
    gone = msgspec.json.decode(opened(row, stored, NO_KEYS)[1][0].body, type=Repair)
    assert msgspec.json.decode(gone.result, type=Keyed) == Keyed("p-1", Erased())
