"""The configurator: its rules, its tables made of what others tell, its answers without them."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import shop
from contracts.configurator import Configurator, Free, NothingFits, Source, Supply
from contracts.inventory import Inventory, Reserve
from contracts.money import Money
from contracts.orders import Orders, Price
from msgspec import structs
from services.configurator.rules import Cable, Drive, Load, Motor, Rules, Sheets, choose
from services.configurator.service import sheets

from servo_works_world import Works, works
from synchromesh.calls.wire import Reply, Request
from synchromesh.errors import BadRequest
from synchromesh.identity import NOBODY, Credential
from synchromesh.testing import SimRuntime, run

PARTS: list[shop.CatalogueItem | shop.Accessory] = [*shop.catalogue(), *shop.accessories()]

# -- the rules -----------------------------------------------------------------------------------

SHEETS = Sheets(
    Rules(torque_reserve=1.2, long_cable_m=10, long_cable_reserve=1.1),
    drives=(
        Drive("small", "1x230VAC", rated_a=3.0, peak_a=9.0),
        Drive("large", "1x230VAC", rated_a=6.0, peak_a=18.0),
    ),
    motors=(
        Motor("m1", "1x230VAC", 1.2, 3.6, 3000, rated_a=2.9, peak_a=8.7, plug="M17"),
        Motor("m2", "1x230VAC", 2.4, 7.2, 3000, rated_a=5.0, peak_a=15.0, plug="M17"),
    ),
    cables=(Cable("c5", "M17", 12.0, 5), Cable("c20", "M17", 12.0, 20)),
)
PRICES = {
    sku: Money(minor, "EUR")
    for sku, minor in {
        "small": 300, "large": 500, "m1": 200, "m2": 350, "c5": 50, "c20": 120,
    }.items()
}  # fmt: skip
LIGHT = Load(torque_nm=1.0, peak_nm=3.0, speed_rpm=3000, supply="1x230VAC", cable_m=5)


def parts(load: Load, prices: Mapping[str, Money] = PRICES) -> tuple[str, str, str, int]:
    choice = choose(load, SHEETS, prices)
    return choice.drive, choice.motor, choice.cable, choice.total.minor


def test_the_cheapest_that_fits_is_chosen() -> None:
    """The smaller of each would do, and costs less than the larger."""
    assert parts(LIGHT) == ("small", "m1", "c5", 550)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"torque_nm": 1.01}, ("large", "m2", "c5", 900)),
        ({"peak_nm": 3.7}, ("large", "m2", "c5", 900)),
        ({"cable_m": 5.1}, ("small", "m1", "c20", 620)),
        # 2.9 A times 1.1 are more than the 3.0 A of the small drive.
        ({"cable_m": 10.1}, ("large", "m1", "c20", 820)),
        ({"torque_nm": 2.0, "peak_nm": 7.2}, ("large", "m2", "c5", 900)),
    ],
)
def test_each_rule_asks_for_more(
    changes: Mapping[str, float], expected: tuple[str, str, str, int]
) -> None:
    """A torque without reserve, a higher peak, a longer and a very long cable need larger parts."""
    assert parts(structs.replace(LIGHT, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"torque_nm": 2.1}, "motor"),
        ({"peak_nm": 7.3}, "motor"),
        ({"speed_rpm": 3001}, "motor"),
        ({"supply": "3x400VAC"}, "motor"),
        ({"cable_m": 20.1}, "cable"),
    ],
)
def test_what_nothing_fits_says_where_it_ends(changes: Mapping[str, object], part: str) -> None:
    """One step beyond each limit there is no answer, and the refusal names the part."""
    with pytest.raises(NothingFits) as refused:
        choose(structs.replace(LIGHT, **changes), SHEETS, PRICES)
    assert refused.value.details == {"part": part}


def test_a_motor_that_no_drive_feeds_is_no_answer() -> None:
    """Without the large drive, the large motor cannot be sold."""
    fewer = structs.replace(SHEETS, drives=SHEETS.drives[:1])
    with pytest.raises(NothingFits, match="no drive"):
        choose(structs.replace(LIGHT, torque_nm=2.0), fewer, PRICES)


@pytest.mark.parametrize("without", ["small", "m1", "c5"])
def test_what_has_no_price_is_not_chosen(without: str) -> None:
    """The next one is, where there is one."""
    assert without not in parts(LIGHT, {s: p for s, p in PRICES.items() if s != without})


def test_nothing_is_chosen_from_an_empty_price_list() -> None:
    """That is another refusal than a load that nothing carries."""
    with pytest.raises(NothingFits) as refused:
        choose(LIGHT, SHEETS, {})
    assert refused.value.details == {"part": "price"}


def test_money_of_two_currencies_is_not_added_up() -> None:
    """A part in another currency is as good as not sold."""
    assert parts(LIGHT, {**PRICES, "small": Money(1, "CHF")})[0] == "large"


def test_equally_cheap_ones_are_chosen_by_name() -> None:
    """The same question has the same answer, whatever the order of the sheets."""
    same = {**PRICES, "large": PRICES["small"]}
    turned = structs.replace(SHEETS, drives=SHEETS.drives[::-1])
    assert choose(LIGHT, SHEETS, same) == choose(LIGHT, turned, same)
    assert choose(LIGHT, SHEETS, same).drive == "large"


@pytest.mark.parametrize(
    ("torque_nm", "speed_rpm", "supply", "drive", "motor"),
    [
        (0.2, 3000, "48VDC", "MX10", "SM40-01"),
        (1.0, 3000, "1x230VAC", "SX40", "SM60-04"),
        (2.0, 3000, "1x230VAC", "SX60", "SM80-07"),
        (4.0, 3000, "3x400VAC", "SX90", "SM100-15"),
        (19.0, 2000, "3x400VAC", "SX200", "SM180-50"),
        (39.0, 1500, "3x400VAC", "SX300", "SM180-75"),
    ],
)
def test_the_shipped_sheets_cover_the_catalogue(
    torque_nm: float, speed_rpm: int, supply: Supply, drive: str, motor: str
) -> None:
    """Loads of every size lead to the drive that is made for them."""
    prices = {item.sku: item.price for item in PARTS}
    load = Load(torque_nm, 2 * torque_nm, speed_rpm, supply, 3)
    choice = choose(load, sheets(), prices)
    assert (choice.drive, choice.motor) == (drive, motor)


# -- the service ---------------------------------------------------------------------------------

SOURCES = ("orders", "inventory", "configurator")
SX90_LOAD = Configurator.configure(4.0, 8.0, 3000, "3x400VAC", 5)


async def stock(system: Works, *skus: str) -> None:
    """Price the parts and put them on the shelf, and let the configurator hear of it."""
    for part in PARTS:
        if not skus or part.sku in skus:
            await shop.stock_part(system, part)
    await asyncio.sleep(0.5)


def test_the_price_list_is_what_others_told() -> None:
    """The last price and the free stock of each part come by events, and outlast a restart."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *SOURCES) as system:
            await stock(system, "SX40", "SX60")
            for minor in (29_900, 30_900):
                await system.call(Orders.set_price(Price("SX40", Money(minor, "EUR"))))
            await system.call(Orders.set_price(Price("gift", Money(0, "EUR"))))
            hold = await system.call(Inventory.reserve(Reserve("A-1", "SX40", 8)))
            await system.call(Inventory.reserve(Reserve("A-2", "SX60", 4)))
            await system.call(Inventory.release(hold))
            await asyncio.sleep(0.5)
            await system.stop("configurator")
            await system.start("configurator")
            lines = (await system.call(Configurator.price_list())).lines
            assert [(line.sku, line.price.minor, line.free) for line in lines] == [
                ("SX40", 30_900, 57),
                ("SX60", 38_900, 62),
                ("gift", 0, None),
            ]

    run(main)


def test_the_price_list_is_answered_without_its_sources() -> None:
    """With both owners down it is the same list, and says by whom it was told and how long ago."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *SOURCES) as system:
            await stock(system, "SX40")
            before = await system.call(Configurator.price_list())
            await system.stop("orders", "inventory")
            await asyncio.sleep(60.0)
            after = await system.call(Configurator.price_list())
            assert after.lines == before.lines
            assert [source.service for source in after.sources] == ["orders", "inventory"]
            assert all(60.0 < (source.age_s or 0.0) < 61.0 for source in after.sources)

    run(main)


def test_a_price_list_of_which_nothing_was_told_is_empty() -> None:
    """It has no age then; and nothing can be configured from it."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "configurator") as system:
            empty = await system.call(Configurator.price_list())
            assert empty.lines == ()
            assert empty.sources == (Source("orders", None), Source("inventory", None))
            with pytest.raises(NothingFits) as refused:
                await system.call(SX90_LOAD)
            assert refused.value.details == {"part": "price"}

    run(main)


def test_what_was_told_meanwhile_is_heard_after_an_outage() -> None:
    """Prices that are set while the configurator is down reach it once it is up again."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *SOURCES) as system:
            await stock(system, "SX40")
            await system.stop("configurator")
            await system.call(Orders.set_price(Price("SX40", Money(1, "EUR"))))
            await asyncio.sleep(30.0)
            await system.start("configurator")
            await asyncio.sleep(10.0)
            (line,) = (await system.call(Configurator.price_list())).lines
            assert line.price == Money(1, "EUR")

    run(main)


def test_a_configuration_asks_inventory_where_its_word_is_old() -> None:
    """What was told within a second counts as it is; after that inventory is asked."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *SOURCES) as system:
            await stock(system)
            await system.call(Inventory.reserve(Reserve("A-1", "SX90", 4)))
            await asyncio.sleep(0.5)
            told = await system.call(SX90_LOAD)
            assert (told.drive.sku, told.motor.sku, told.cable.sku) == (
                "SX90",
                "SM100-15",
                "CM23-5",
            )
            assert told.total == Money(58_900 + 44_900 + 9_900, "EUR")
            assert told.free.pieces == 60
            assert 0.0 < (told.free.source.age_s or 0.0) <= 1.0
            await asyncio.sleep(5.0)
            answered = await system.call(SX90_LOAD)
            assert answered.free == Free(60, Source("inventory", 0.0))

    run(main)


def test_the_last_word_of_inventory_stands_in_for_it() -> None:
    """It is marked with its source and age (F1), and no longer once inventory is up again (F3)."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *SOURCES) as system:
            await stock(system)
            await system.stop("inventory")
            await asyncio.sleep(60.0)
            free = (await system.call(SX90_LOAD)).free
            assert (free.pieces, free.source.service, free.source.is_fallback) == (
                64,
                "inventory",
                True,
            )
            assert 60.0 < (free.source.age_s or 0.0) < 62.0
            await system.start("inventory")
            await asyncio.sleep(60.0)
            assert (await system.call(SX90_LOAD)).free == Free(64, Source("inventory", 0.0))

    run(main)


class Stalls:
    """Takes a call and never answers."""

    def authenticate(self, credential: str, now: float, _: object) -> Credential:
        return Credential("stalled", NOBODY, "", 0)

    async def dispatch(self, request: Request) -> Reply:
        await asyncio.sleep(3600.0)
        raise AssertionError


def test_nobody_waits_long_for_a_stalled_inventory() -> None:
    """A quarter of a second is what its answer is worth; then its last word stands in."""

    async def main(runtime: SimRuntime) -> None:
        loop = asyncio.get_running_loop()
        async with works(runtime, *SOURCES) as system:
            await stock(system)
            await asyncio.sleep(5.0)
            system.transport.add("inventory-1", Stalls())
            began_s = loop.time()
            free = (await system.call(SX90_LOAD)).free
            assert (free.pieces, free.source.is_fallback) == (64, True)
            assert 0.15 <= loop.time() - began_s < 0.3

    run(main)


def test_what_inventory_never_had_is_not_free() -> None:
    """Without a word of inventory, none is known to be free; with it, none is."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "orders", "configurator") as system:
            for sku in ("SX90", "SM100-15", "CM23-5"):
                await system.call(Orders.set_price(Price(sku, Money(100, "EUR"))))
            await asyncio.sleep(0.5)
            unheard = await system.call(SX90_LOAD)
            assert unheard.free == Free(None, Source("inventory", None, is_fallback=True))
            await system.start("inventory")
            await asyncio.sleep(60.0)
            assert (await system.call(SX90_LOAD)).free == Free(0, Source("inventory", 0.0))

    run(main)


@pytest.mark.parametrize(
    "wrong",
    [
        {"torque_nm": 0.0},
        {"peak_nm": -1.0},
        {"speed_rpm": 20_001},
        {"cable_m": 101.0},
        {"supply": "110VAC"},
    ],
)
def test_a_load_outside_of_the_contract_is_a_mistake(wrong: dict[str, Any]) -> None:
    """It is refused where it is made: the rules never see it."""
    load: dict[str, Any] = structs.asdict(LIGHT) | wrong
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        Configurator.configure(**load)
