"""Billing and somebody else's credit provider: what a provider that stalls may take of it."""

import asyncio

from contracts.billing import Billing, Charge
from contracts.money import Money
from credit_provider import ProviderFaults

from servo_works_world import FOLDER, Works, works
from synchromesh.errors import DownstreamFailed, SynchromeshError
from synchromesh.resilience import LimitOptions
from synchromesh.system.config.reading import load_config
from synchromesh.testing import SimRuntime, run

TOTAL = Money(58_900, "EUR")
# More than billing has places for (256).
CROWD = 400


def charge(order_id: str) -> Charge:
    return Charge(order_id, "counter", TOTAL)


async def charged(system: Works, number: int) -> str:
    """Return what became of one charge: "paid", or the code of its failure and of the cause."""
    try:
        invoice = await system.call(Billing.charge(charge(f"C-{number}")), key=f"charge/{number}")
    except DownstreamFailed as error:
        return error.cause_code
    except SynchromeshError as error:
        return error.code
    return invoice.status


def test_a_stalled_provider_does_not_take_all_of_billing() -> None:
    """While it hangs it holds as many charges as the bulkhead lets it; invoices are read at once.

    The charges beyond that are shed, which their sagas ask again about; none is lost or doubled.
    """

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "billing") as system:
            provider = system.start_provider()
            await system.call(Billing.charge(charge("C-0")), key="charge/0")
            provider.faults = ProviderFaults("stall", 30.0)
            loop = asyncio.get_running_loop()
            crowd = [loop.create_task(charged(system, n)) for n in range(1, CROWD)]
            await asyncio.sleep(0.1)
            for _ in range(10):
                began = loop.time()
                invoice = await system.call(Billing.invoice("C-0"), timeout_s=0.25)
                assert invoice.status == "paid"
                assert loop.time() - began < 0.02
                await asyncio.sleep(0.02)
            told = await asyncio.gather(*crowd)
            assert {"shed", "timed_out"} <= set(told)
            assert set(told) <= {"shed", "timed_out", "circuit_open"}
            provider.faults = ProviderFaults()
            await asyncio.sleep(10.0)
            for number in (1, CROWD - 1):
                assert await charged(system, number) == "paid"
                rows = await system.rows(
                    "billing", f"select status from invoice where order_id = 'C-{number}'"
                )
                assert rows == [("paid",)]

    run(main)


def test_the_bulkhead_is_smaller_than_billing() -> None:
    """What it lets in and what it lets wait leave most of billing's places to others."""
    limit = load_config(FOLDER).policies["billing:credit_provider"].compile().limit
    assert isinstance(limit, LimitOptions)
    assert limit.in_flight_max + limit.queue_max <= 64
