"""What we use of the credit provider's HTTP interface: somebody else's system, in their words."""

from typing import Protocol

from msgspec import Struct

from synchromesh import Contract, Rejection, command


class ChargeRequest(Struct, frozen=True):
    customer: str
    amount_minor: int
    currency: str
    reference: str


class ChargeReceipt(Struct, frozen=True):
    charge_id: str


class Declined(Rejection, code="declined", status=402):
    """Raised when the provider will not pay; it answers so with status 402."""


class CreditProvider(Contract, Protocol, service="credit_provider", version="1.0", external=True):
    @command("POST /charges", raises=(Declined,))
    async def charge(self, request: ChargeRequest) -> ChargeReceipt: ...
