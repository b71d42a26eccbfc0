"""Money, as every contract of servo-works speaks of it."""

from msgspec import Struct


class Money(Struct, frozen=True):
    """An amount in whole minor units (cents) of one currency, so that nothing is ever rounded."""

    minor: int
    currency: str

    def times(self, count: int) -> "Money":
        """Return what `count` pieces of this price cost."""
        return Money(self.minor * count, self.currency)

    def __str__(self) -> str:
        return f"{self.minor // 100}.{self.minor % 100:02d} {self.currency}"
