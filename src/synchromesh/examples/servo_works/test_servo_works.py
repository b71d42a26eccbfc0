"""How a system is tested: a decision alone, a service in virtual time, all of it under faults."""

import unittest

from contracts.inventory import Inventory, OutOfStock, Receive, Reserve
from services.inventory import inventory
from services.inventory.stock import PiecesHeld, PiecesReceived, SetAside, stock_item
from universes import Universe

from synchromesh.events import given
from synchromesh.testing import SimRuntime, run, serving


class DecisionTest(unittest.TestCase):
    def test_more_than_is_free_is_refused(self) -> None:
        """Given what happened, when a command comes, then it is refused, with what is left."""
        received, held = PiecesReceived("SX90", "note-1", 10), PiecesHeld("SX90", "h1", "A-1", 4)
        scenario = given(stock_item, received, held).when(SetAside("SX90", "h2", "A-2", 7))
        scenario.rejects(OutOfStock, sku="SX90", free=6)


class ServiceTest(unittest.TestCase):
    def test_an_order_is_reserved_once(self) -> None:
        """The same key again is the same request; another one finds what is left."""

        async def main(runtime: SimRuntime) -> None:
            async with serving(runtime, inventory) as client:
                await client.call(Inventory.receive(Receive("note-1", "SX90", 10)))
                first = await client.call(Inventory.reserve(Reserve("A-1", "SX90", 6)), key="k1")
                again = await client.call(Inventory.reserve(Reserve("A-1", "SX90", 6)), key="k1")
                self.assertEqual(again, first)
                with self.assertRaises(OutOfStock) as refused:
                    await client.call(Inventory.reserve(Reserve("A-2", "SX90", 6)), key="k2")
                self.assertEqual(refused.exception.details, {"sku": "SX90", "free": 4})

        run(main)


class SystemTest(unittest.TestCase):
    def test_nothing_breaks_under_faults(self) -> None:
        """Power cuts, lost messages, a provider that fails: in the end every database adds up."""
        for seed in range(5):
            with self.subTest(seed=seed):
                self.assertEqual(Universe(seed).run().broken, [])
