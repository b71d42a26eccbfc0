"""What others may know about the configurator: what fits together, and what it costs."""

from typing import Annotated, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from contracts.money import Money
from synchromesh import Contract, Rejection, query

Supply: TypeAlias = Literal["48VDC", "1x230VAC", "3x400VAC"]
TorqueNm: TypeAlias = Annotated[float, Meta(gt=0, le=10_000)]
SpeedRpm: TypeAlias = Annotated[int, Meta(ge=1, le=20_000)]
CableM: TypeAlias = Annotated[float, Meta(gt=0, le=100)]


class Source(Struct, frozen=True):
    """Who said it, and how long ago; None where they have not said anything yet.

    `is_fallback` marks what was said earlier and stands in for an answer that did not come.
    """

    service: str
    age_s: float | None
    is_fallback: bool = False


class Part(Struct, frozen=True):
    sku: str
    price: Money


class Free(Struct, frozen=True):
    """How many pieces of a drive are free; None where inventory neither says nor ever said."""

    pieces: int | None
    source: Source


class Configuration(Struct, frozen=True):
    """The cheapest drive, motor and cable that fit a load, and one another."""

    drive: Part
    motor: Part
    cable: Part
    total: Money
    free: Free


class PriceLine(Struct, frozen=True):
    """A price, and how many pieces are free; None where nothing was ever received."""

    sku: str
    price: Money
    free: int | None


class PriceList(Struct, frozen=True):
    """The list as the services that own it told it last; it is answered whether they run or not."""

    lines: tuple[PriceLine, ...]
    sources: tuple[Source, ...]


class NothingFits(Rejection, code="nothing_fits", status=409):
    """Raised when no drive, motor and cable on the price list carry such a load."""


class Configurator(Contract, Protocol, service="configurator", version="1.0"):
    @query("GET /configurations", raises=(NothingFits,))
    async def configure(
        self,
        torque_nm: TorqueNm,
        peak_nm: TorqueNm,
        speed_rpm: SpeedRpm,
        supply: Supply,
        cable_m: CableM,
    ) -> Configuration: ...

    @query("GET /prices")
    async def price_list(self) -> PriceList: ...
