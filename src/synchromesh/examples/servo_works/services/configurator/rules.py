"""Which drive, motor and cable fit a load, decided purely.

    load ──▶ motors that carry it ──▶ drives that feed the motor ──▶ cables that reach and bear it

Of all that fit, the cheapest is chosen; of equally cheap ones the first by name, so that the same
question always has the same answer.
"""

from collections.abc import Mapping

from contracts.configurator import NothingFits, Supply
from contracts.money import Money
from msgspec import Struct


class Load(Struct, frozen=True):
    """What an axis asks of its drive: the torque it needs always and at times, and how fast."""

    torque_nm: float
    peak_nm: float
    speed_rpm: int
    supply: Supply
    cable_m: float


class Drive(Struct, frozen=True):
    sku: str
    supply: Supply
    rated_a: float
    peak_a: float


class Motor(Struct, frozen=True):
    sku: str
    supply: Supply
    rated_nm: float
    peak_nm: float
    rated_rpm: int
    rated_a: float
    peak_a: float
    plug: str


class Cable(Struct, frozen=True):
    sku: str
    plug: str
    rated_a: float
    length_m: float


class Rules(Struct, frozen=True):
    """What is added for safety.

    A motor has `torque_reserve` times the torque that is asked for. A cable longer than
    `long_cable_m` has a capacitance that costs current: the drive has `long_cable_reserve` times
    what its motor draws.
    """

    torque_reserve: float
    long_cable_m: float
    long_cable_reserve: float


class Sheets(Struct, frozen=True):
    """The data sheets of all parts, and the rules by which they are put together."""

    rules: Rules
    drives: tuple[Drive, ...]
    motors: tuple[Motor, ...]
    cables: tuple[Cable, ...]


class Choice(Struct, frozen=True, order=True):
    """What fits, cheapest first in order."""

    minor: int
    drive: str
    motor: str
    cable: str
    currency: str

    @property
    def total(self) -> Money:
        """What the three cost together."""
        return Money(self.minor, self.currency)


def choose(load: Load, sheets: Sheets, prices: Mapping[str, Money]) -> Choice:
    """Return the cheapest that fits.

    Raises:
        NothingFits: nothing does; `part` says where it ends: at the motor, drive, cable or price.
    """
    rules = sheets.rules
    motors = [motor for motor in sheets.motors if _carries(motor, load, rules)]
    if not motors:
        raise NothingFits(
            f"no motor for {load.supply} has {load.torque_nm:g} Nm (peak {load.peak_nm:g} Nm) at "
            f"{load.speed_rpm} rpm with {rules.torque_reserve:g} times the torque in reserve",
            part="motor",
        )
    pairs = [(d, m) for m in motors for d in sheets.drives if _feeds(d, m, load, rules)]
    if not pairs:
        raise NothingFits(
            f"no drive for {load.supply} feeds a motor of that size over {load.cable_m:g} m",
            part="drive",
        )
    fitting = [(d, m, c) for d, m in pairs for c in sheets.cables if _joins(c, m, load)]
    if not fitting:
        raise NothingFits(
            f"no cable for a motor of that size is {load.cable_m:g} m long", part="cable"
        )
    choices = [
        _choice(drive, motor, cable, prices)
        for drive, motor, cable in fitting
        if _is_sold(prices, drive.sku, motor.sku, cable.sku)
    ]
    if not choices:
        raise NothingFits("what would fit is not on the price list", part="price")
    return min(choices)


def _choice(drive: Drive, motor: Motor, cable: Cable, prices: Mapping[str, Money]) -> Choice:
    found = [prices[part.sku] for part in (drive, motor, cable)]
    total = sum(price.minor for price in found)
    return Choice(total, drive.sku, motor.sku, cable.sku, found[0].currency)


def _is_sold(prices: Mapping[str, Money], *skus: str) -> bool:
    """Return whether all of it has a price, in one currency: nobody here converts money."""
    return set(skus) <= prices.keys() and len({prices[sku].currency for sku in skus}) == 1


def _carries(motor: Motor, load: Load, rules: Rules) -> bool:
    return (
        motor.supply == load.supply
        and motor.rated_rpm >= load.speed_rpm
        and motor.rated_nm >= load.torque_nm * rules.torque_reserve
        and motor.peak_nm >= load.peak_nm
    )


def _feeds(drive: Drive, motor: Motor, load: Load, rules: Rules) -> bool:
    reserve = rules.long_cable_reserve if load.cable_m > rules.long_cable_m else 1.0
    return (
        drive.supply == motor.supply
        and drive.rated_a >= motor.rated_a * reserve
        and drive.peak_a >= motor.peak_a * reserve
    )


def _joins(cable: Cable, motor: Motor, load: Load) -> bool:
    return (
        cable.plug == motor.plug
        and cable.rated_a >= motor.rated_a
        and cable.length_m >= load.cable_m
    )
