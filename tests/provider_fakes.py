"""A payment provider behind an SDK, that is no service of the system: what `s.step` is for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from saga_fakes import DUMB, HANGS, LOST, Declined, Fault
from synchromesh.saga import Unknown


class Receipt(msgspec.Struct, frozen=True):
    id: str
    cents: int


@dataclass
class Provider:
    """Keeps what it did by idempotency key; a fault is used up by one request.

    Attributes:
        paid: what stands, by the key under which it was asked for.
        barred: keys that were given up, for good.
        keys: that of each request, in order.
        given: what each undo was given.
    """

    faults: list[Fault] = field(default_factory=list)
    undo_faults: list[Fault] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    latency_s: float = 0.001
    paid: dict[str, Receipt] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)
    undo_keys: list[str] = field(default_factory=list)
    given: list[Receipt | Unknown] = field(default_factory=list)

    async def pay(self, key: str, customer: str, cents: int) -> Receipt:
        """Charge a customer, once a key."""
        self.keys.append(key)
        await asyncio.sleep(self.latency_s)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault == HANGS:
            await asyncio.Event().wait()
        if fault == LOST:
            raise ConnectionResetError("secret of the provider")
        if customer in self.refuses:
            raise Declined(f"{customer} has no credit")
        if key in self.barred:
            raise AssertionError(f"{key} came after it was given up")
        receipt = self.paid.setdefault(key, Receipt(f"R-{len(self.paid)}", cents))
        await asyncio.sleep(self.latency_s)
        if fault == DUMB:
            raise ConnectionResetError("secret of the provider")
        return receipt

    async def refund(self, key: str, done: Receipt | Unknown) -> None:
        """Give back what was paid; find it by its key where nobody knows whether it was."""
        self.undo_keys.append(key)
        self.given.append(done)
        await asyncio.sleep(self.latency_s)
        fault = self.undo_faults.pop(0) if self.undo_faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault == LOST:
            raise ConnectionResetError("secret of the provider")
        if isinstance(done, Unknown):
            self.barred.add(done.key)
            self.paid.pop(done.key, None)
        else:
            self.paid = {k: receipt for k, receipt in self.paid.items() if receipt != done}
        await asyncio.sleep(self.latency_s)
        if fault == DUMB:
            raise ConnectionResetError("secret of the provider")
