"""Traces whose times are checked by hand."""

from __future__ import annotations

from synchromesh.telemetry import SpanRecord


def span(
    span_id: str,
    parent: str,
    what: str,
    began_ms: float,
    ended_ms: float,
    status: str = "ok",
    /,
    **attributes: str,
) -> SpanRecord:
    """Return a span of `service kind name`, from and to a time in milliseconds."""
    service, kind, name = what.split(" ", 2)
    began_us = round(began_ms * 1000)
    took_us = round(ended_ms * 1000) - began_us
    return SpanRecord(
        "t", span_id, parent, service, kind, name, began_us, took_us, status, attributes
    )  # fmt: skip


# A page whose branch `order` timed out after it had waited for a place and been asked twice; its
# last answer stood in. The machine itself took 20 ms, 5 of them in its database.
PAGE = [
    span("g", "", "gateway gateway GET /page", 0, 300, partial="order"),
    span("m", "g", "gateway call fleet.machine", 1, 25),
    span("mh", "m", "fleet handle fleet.machine", 3, 23, place_ms="2"),
    span("mu", "mh", "fleet unit machine", 10, 15),
    span(
        "o", "g", "gateway call orders.one", 30, 298, "timed_out",
        attempts="2", place_ms="40", backoff_ms="30", failed="remote_failed",
        error="orders did not answer",
    ),
    span("o1", "o", "orders handle orders.one", 75, 80, "remote_failed", error="orders.one failed"),
]  # fmt: skip

# An order: the saga reserves, is refused by the bank, and gives the hold back.
ORDER = [
    span("g", "", "gateway gateway POST /orders", 0, 100),
    span("c", "g", "gateway call orders.place", 1, 99),
    span("h", "c", "orders handle orders.place", 2, 98),
    span("s", "h", "orders saga place_order", 5, 160, "undone", id="A-1"),
    span("s1", "s", "orders step inventory.reserve#1", 6, 20),
    span("s2", "s", "orders step bank.charge#1", 20, 90, "rejected", last="credit_declined",
         backoff_ms="50", attempts="2"),
    span("s2c", "s2", "orders call bank.charge", 21, 40, "credit_declined"),
    span("u", "s", "orders undo inventory.reserve#1", 92, 150),
]  # fmt: skip
