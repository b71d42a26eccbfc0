"""Draws the later orders of the book, and prints it whole: `python -m demo.draw_orders`.

The first orders were written by hand. Each later one is a customer of theirs with the drive and the
number of pieces of another of them; what there is little of, and who buys by the hundred, is left
to the first. The same seed draws the same orders on every machine.
"""

import sys
from itertools import count, islice
from random import Random

from contracts.orders import PlaceOrder
from msgspec import json
from shop import order_book

FIRST, ALL = 220, 320
SEED = 1220
SCARCE = frozenset({"SX90", "SX300", "LX20", "LX40"})
PIECES_MAX = 4


def draw(first: list[PlaceOrder]) -> list[PlaceOrder]:
    """Return the orders that follow the first ones."""
    rng = Random(SEED)  # noqa: S311 - it keeps no secret
    usual = [order for order in first if order.sku not in SCARCE and order.qty <= PIECES_MAX]
    numbers = islice(count(len(first) + 1001), ALL - len(first))
    return [
        PlaceOrder(
            f"SW-{number}", part.sku, part.qty, first[int(rng.random() * len(first))].customer
        )
        for number in numbers
        for part in (usual[int(rng.random() * len(usual))],)
    ]


def printed(book: list[PlaceOrder]) -> str:
    """Return the book as its file has it: an order a line."""
    lines = ",\n".join(f"  {_line(order)}" for order in book)
    return f"[\n{lines}\n]\n"


def _line(order: PlaceOrder) -> str:
    members = {
        "order_id": order.order_id, "customer": order.customer, "sku": order.sku, "qty": order.qty,
    }  # fmt: skip
    return json.encode(members).decode().replace('":', '": ').replace(',"', ', "')


if __name__ == "__main__":
    by_hand = order_book()[:FIRST]
    sys.stdout.write(printed(by_hand + draw(by_hand)))
