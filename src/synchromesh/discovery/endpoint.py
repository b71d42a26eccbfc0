"""Endpoints: the addresses of instances, as callers resolve them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from synchromesh.errors import ConfigError

# Which schemes there are is up to the transports of a caller (RFC 3986, section 3.1).
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of one instance of a service.

    Attributes:
        instance: its name, the same after a restart and unique within the service.
        service: the service it is an instance of.
        url: "http://host:port", "inproc://name", or what another transport reaches.
        metadata: few and short facts about it, such as (("version", "1.2"),).
        weight: its share of the calls, beside those of the other instances; None where nobody says.
            Where one has a weight they are drawn by weights, and those without have 1.

    Raises:
        ConfigError: a name is empty, the url has no scheme or no place, or the weight is below 1.

    Example:
        >>> Endpoint("billing-1", "billing", "http://127.0.0.1:8001").scheme
        'http'
    """

    instance: str
    service: str
    url: str
    metadata: tuple[tuple[str, str], ...] = ()
    weight: int | None = None

    def __post_init__(self) -> None:
        if not self.instance or not self.service:
            raise ConfigError(
                f"endpoint {self.url!r} belongs to instance {self.instance!r} of service "
                f"{self.service!r}; give it both names"
            )
        if not _URL.fullmatch(self.url):
            raise ConfigError(
                f"endpoint of instance {self.instance!r} has the url {self.url!r}; make it "
                '"http://host:port", "inproc://name", or what another transport reaches'
            )
        if self.weight is not None and self.weight < 1:
            raise ConfigError(
                f"endpoint of instance {self.instance!r} has the weight {self.weight!r}; make it a "
                "whole number, 1 or more"
            )

    @property
    def scheme(self) -> str:
        """The part of the url that chooses the transport."""
        return self.url.partition("://")[0]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The listed endpoints of a service, ordered by instance.

    `is_stale` marks a last known good list: some of it may be gone, and nobody could say.
    """

    endpoints: tuple[Endpoint, ...]
    is_stale: bool = False
