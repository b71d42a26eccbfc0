"""What others may know about the fleet: the drives in the field, and how they are."""

from typing import Annotated, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from synchromesh import Contract, Rejection, command, query

MachineId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
MachineState: TypeAlias = Literal["new", "running", "hot", "faulted"]


class Nameplate(Struct, frozen=True):
    """What is written on a drive; one that was sold over the counter knows no order."""

    machine_id: MachineId
    sku: str
    order_id: str | None = None


class Reading(Struct, frozen=True):
    """What a drive measured at a moment (seconds since 1970); `fault` is its code, or empty."""

    at_s: int
    temperature_c: float
    current_a: float
    fault: str = ""


class Batch(Struct, frozen=True):
    """Consecutive readings of one drive; `first` is the number of the first, from 1 on.

    A drive sends one batch after the other: what is before the last that was taken is known.
    """

    machine: Nameplate
    first: Annotated[int, Meta(ge=1)]
    readings: Annotated[tuple[Reading, ...], Meta(min_length=1, max_length=100)]


class Taken(Struct, frozen=True):
    """The number of the last reading that is safe with us, and how many more there is room for."""

    last: int
    room: int


class Machine(Struct, frozen=True):
    """A drive by its latest reading; `waiting` readings are taken and not yet part of it."""

    machine_id: str
    sku: str
    order_id: str | None
    state: MachineState
    readings: int
    waiting: int
    at_s: int
    temperature_c: float
    hottest_c: float
    current_a: float
    last_fault: str


class UnknownMachine(Rejection, code="unknown_machine", status=404):
    """Raised when no drive with this id has ever reported."""


class OtherNameplate(Rejection, code="other_nameplate", status=409):
    """Raised when the drive is known with another nameplate: two drives claim to be one."""


class Fleet(Contract, Protocol, service="fleet", version="1.0"):
    @command("POST /readings", raises=(OtherNameplate,))
    async def report(self, batch: Batch) -> Taken: ...

    @query("GET /machines/{machine_id}", raises=(UnknownMachine,))
    async def machine(self, machine_id: str) -> Machine: ...
