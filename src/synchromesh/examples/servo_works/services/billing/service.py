"""What billing does: writes an invoice, asks the credit provider for the money, and settles it.

The provider cannot take part in our commits. So the invoice is open, durably, before it is asked;
it is asked under one idempotency key however often this handler runs again, for a unit that is
done returns what it returned; and what was answered is written when it is known. A time-out in
between leaves the invoice open until we ask again.
"""

from contracts.billing import (
    Billing,
    Charge,
    CreditDeclined,
    Invoice,
    InvoicePaid,
    InvoiceStatus,
    UnknownInvoice,
)
from contracts.credit_provider import ChargeReceipt, ChargeRequest, CreditProvider, Declined
from contracts.money import Money
from msgspec import convert, structs

from synchromesh import Context, Migration, Service, Transaction

TABLES = (
    """
    create table invoice(
        id text primary key, order_id text not null, customer text not null,
        total_minor bigint not null, currency text not null, status text not null,
        receipt text not null
    )
    """,
    "create index invoice_order on invoice(order_id)",
)

billing = Service(
    "billing", implements=Billing, migrations=[Migration(1, TABLES, readable_by_min=1)]
)


@billing.handles(Billing.charge)
async def charge(ctx: Context, request: Charge) -> Invoice:
    """Invoice an order and have it paid; a customer without credit is a business no."""
    invoice = await ctx.write(open_invoice, request)
    total = request.total
    try:
        receipt = await ctx.call(
            CreditProvider.charge(
                ChargeRequest(request.customer, total.minor, total.currency, invoice.id)
            ),
            timeout_s=0.5,
        )
    except Declined as no:
        await ctx.write(void_invoice, invoice)
        raise CreditDeclined(no.message, order_id=request.order_id) from no
    return await ctx.write(settle_invoice, invoice, receipt)


async def open_invoice(tx: Transaction, request: Charge) -> Invoice:
    """Write down that money is about to be asked for."""
    invoice = Invoice(tx.new_id(), request.order_id, request.customer, request.total, "open")
    await tx.execute(
        "insert into invoice(id, order_id, customer, total_minor, currency, status, receipt) "
        "values (?, ?, ?, ?, ?, 'open', '')",
        invoice.id,
        invoice.order_id,
        invoice.customer,
        invoice.total.minor,
        invoice.total.currency,
    )
    return invoice


async def settle_invoice(tx: Transaction, invoice: Invoice, receipt: ChargeReceipt) -> Invoice:
    """Write down that the invoice is paid, and tell whoever waits for that."""
    await tx.execute(
        "update invoice set status = 'paid', receipt = ? where id = ?",
        receipt.charge_id,
        invoice.id,
    )
    tx.publish(Billing.invoice_paid, InvoicePaid(invoice.id, invoice.order_id, invoice.total))
    return structs.replace(invoice, status="paid", receipt=receipt.charge_id)


async def void_invoice(tx: Transaction, invoice: Invoice) -> None:
    """Write down that the invoice will never be paid."""
    await tx.execute("update invoice set status = 'void' where id = ?", invoice.id)


@billing.handles(Billing.invoice)
async def invoice(ctx: Context, order_id: str) -> Invoice:
    """Return the invoice of an order."""
    rows = await ctx.read(
        "select id, order_id, customer, total_minor, currency, status, receipt "
        "from invoice where order_id = ?",
        order_id,
    )
    if not rows:
        raise UnknownInvoice(f"no invoice was written for order {order_id}")
    invoice_id, order_id, customer, minor, currency, status, receipt = convert(
        rows[0], tuple[str, str, str, int, str, InvoiceStatus, str]
    )
    return Invoice(invoice_id, order_id, customer, Money(minor, currency), status, receipt)
