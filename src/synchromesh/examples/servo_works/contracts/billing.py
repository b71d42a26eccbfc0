"""What others may know about billing: invoices, and whether they are paid."""

from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from contracts.money import Money
from synchromesh import Contract, PublicEvent, Rejection, command, event, query

InvoiceStatus: TypeAlias = Literal["open", "paid", "void"]


class Charge(Struct, frozen=True):
    order_id: str
    customer: str
    total: Money


class Invoice(Struct, frozen=True):
    """What an order costs; `receipt` is the credit provider's word for a paid one, else empty."""

    id: str
    order_id: str
    customer: str
    total: Money
    status: InvoiceStatus
    receipt: str = ""


class InvoicePaid(Struct, frozen=True):
    invoice_id: str
    order_id: str
    total: Money


class CreditDeclined(Rejection, code="credit_declined", status=402):
    """Raised when the credit provider will not pay for this customer."""


class UnknownInvoice(Rejection, code="unknown_invoice", status=404):
    """Raised when no invoice was written for this order."""


class Billing(Contract, Protocol, service="billing", version="1.0"):
    @command("POST /charges", raises=(CreditDeclined,))
    async def charge(self, request: Charge) -> Invoice: ...

    @query("GET /invoices/{order_id}", raises=(UnknownInvoice,))
    async def invoice(self, order_id: str) -> Invoice: ...

    invoice_paid: PublicEvent[InvoicePaid] = event(InvoicePaid, key="order_id")
