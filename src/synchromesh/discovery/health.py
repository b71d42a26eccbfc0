"""Health of URLs that nobody registers: which of them are up, by the answers to their checks.

    UP ──`down_after` checks fail in a row──▶ DOWN ──`up_after` succeed in a row──▶ UP (warming up)

The first check of each decides alone. Where none is up all are listed: that a check is wrong, or
that who checks is cut off, is likelier than that all have failed at once, and where they have,
there is nothing to lose. A pure machine.

Source: active health checks and the panic threshold of Envoy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from synchromesh.discovery.endpoint import Endpoint
from synchromesh.durations import ABOVE_0, FROM_1, refuse_misfit, refuse_wrong_numbers

# The fact of an endpoint that says how often it has come back.
TERM = "term"


@dataclass(frozen=True, slots=True)
class HealthOptions:
    """Configures health checks.

    Attributes:
        every_s: from the beginning of a check to that of the next.
        timeout_s: how long an answer may take; at most `every_s`.
        down_after: so many failed checks in a row take an endpoint off the list.
        up_after: so many that succeed bring it back.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> HealthOptions(every_s=1.0).down_after
        2
    """

    every_s: float = 2.0
    timeout_s: float = 1.0
    down_after: int = 2
    up_after: int = 2

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (ABOVE_0, "every_s timeout_s"), (FROM_1, "down_after up_after"))
        refuse_misfit(self, "timeout_s", self.timeout_s <= self.every_s, "no more than every_s")


@dataclass(slots=True)
class _Seen:
    """What is known of an endpoint: whether it is up, and what its last checks came to."""

    endpoint: Endpoint
    is_up: bool = True
    is_checked: bool = False
    in_row: int = 0  # the checks that said otherwise, one after the other
    returns: int = 0
    why: str = ""


class UpstreamHealth:
    """Decides which endpoints of an upstream are listed.

    Args:
        endpoints: all that there are, at least one.
        options: how many checks decide.

    Example:
        >>> a, b = (Endpoint(name, "shop", f"http://{name}") for name in "ab")
        >>> health = UpstreamHealth((a, b))
        >>> health.observe("b", "it refused the connection")
        True
        >>> [each.instance for each in health.listed], health.down
        (['a'], {'b': 'it refused the connection'})
    """

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        options: HealthOptions = HealthOptions(),
    ) -> None:
        self.options = options
        self._seen = {each.instance: _Seen(each) for each in endpoints}

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, up or not."""
        return tuple(each.endpoint for each in self._seen.values())

    @property
    def listed(self) -> tuple[Endpoint, ...]:
        """The endpoints that requests may go to: those that are up; all where none is.

        One that has come back has another `term` than before, so that balancers let it warm up.
        """
        up = [each for each in self._seen.values() if each.is_up]
        return tuple(map(_listed, up or self._seen.values()))

    @property
    def down(self) -> dict[str, str]:
        """Why those that are down are so, by instance."""
        return {name: each.why for name, each in self._seen.items() if not each.is_up}

    def observe(self, instance: str, why: str = "") -> bool:
        """Learn what a check came to; return whether the endpoint is up that was not, or down.

        Args:
            instance: whose check.
            why: it failed; "" where it succeeded.
        """
        seen, options = self._seen[instance], self.options
        is_first, seen.is_checked = not seen.is_checked, True
        if why:
            seen.why = why
        if seen.is_up is not bool(why):
            seen.in_row = 0
            return False
        seen.in_row += 1
        enough = options.down_after if seen.is_up else options.up_after
        if seen.in_row < enough and not is_first:
            return False
        seen.is_up, seen.in_row = not seen.is_up, 0
        seen.returns += seen.is_up
        return True

    def __repr__(self) -> str:
        return f"<UpstreamHealth {len(self._seen) - len(self.down)} of {len(self._seen)} up>"


def _listed(seen: _Seen) -> Endpoint:
    endpoint = seen.endpoint
    if not seen.returns:
        return endpoint
    return replace(endpoint, metadata=(*endpoint.metadata, (TERM, str(seen.returns))))
