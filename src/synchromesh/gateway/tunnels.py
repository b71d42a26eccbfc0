"""How many WebSockets are open, in all and for each client. A pure machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from synchromesh.errors import RateLimited, Shed

# No client has more than this part of them.
_SHARES: Final = 4
_RETRY_AFTER_S: Final = 1.0


class TunnelPlaces:
    """Counts open tunnels; one client may have a quarter of them.

    Args:
        tunnels_max: how many there may be at once.

    Example:
        >>> places = TunnelPlaces(1)
        >>> with places.taken("alice"):
        ...     places
        <TunnelPlaces 1 of 1>
    """

    def __init__(self, tunnels_max: int) -> None:
        self._tunnels_max = tunnels_max
        self._share_max = max(1, tunnels_max // _SHARES)
        self._open: Counter[str] = Counter()

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """Hold a place for a client.

        Raises:
            Shed: all are taken.
            RateLimited: the client has its share.
        """
        if self._open.total() >= self._tunnels_max:
            raise Shed(f"all {self._tunnels_max} WebSockets are open; try again later")
        if self._open[client] >= self._share_max:
            raise RateLimited(
                f"{self._share_max} WebSockets of one client are open, its share; close some",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def __repr__(self) -> str:
        return f"<TunnelPlaces {self._open.total()} of {self._tunnels_max}>"
