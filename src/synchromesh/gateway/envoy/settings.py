"""What an export is made from, besides the definition of a gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from synchromesh.calls import Policies
from synchromesh.errors import ConfigError
from synchromesh.gateway.origin import ProxyNetwork
from synchromesh.http import Limits, PoolLimits
from synchromesh.tls import ClientFiles

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where an instance of an upstream is.

    Attributes:
        host: a name, or an address without brackets.
        is_tls: whether it is spoken to by TLS.
        weight: its share of the requests, beside the others'.
    """

    host: str
    port: int
    is_tls: bool = False
    weight: int = 1

    @classmethod
    def of(cls, url: str) -> HostPort:
        """Read a URL of http:// or https:// without a path.

        Raises:
            ConfigError: it is none.

        Example:
            >>> HostPort.of("https://id.servo.works").authority
            'id.servo.works'
        """
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if parts.scheme not in PORTS or not host or parts.path not in ("", "/"):
            raise ConfigError(
                f'{url[:80]!r} is no URL of an upstream; write one such as "http://10.0.0.7:8080"'
            )
        return cls(host, port or PORTS[parts.scheme], parts.scheme == "https")

    @property
    def is_named(self) -> bool:
        """Whether it has to be looked up."""
        try:
            ip_address(self.host)
        except ValueError:
            return True
        return False

    @property
    def authority(self) -> str:
        """What stands in `Host`."""
        return _authority(self.host, self.port, PORTS["https" if self.is_tls else "http"])


def _authority(host: str, port: int, usual: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == usual else f"{name}:{port}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """An external service.

    Attributes:
        places: where it is, as far as is known; names are looked up by Envoy, and the addresses of
            one that has none follow the registry.
        is_weighted: requests are shared by the weights of its places.
        tls: whom we believe there, and what we show.
        why: what keeps Envoy from asking it; "" for nothing.
    """

    name: str
    places: Sequence[HostPort] = ()
    is_weighted: bool = False
    tls: ClientFiles = field(default_factory=ClientFiles)
    why: str = ""

    @property
    def scheme(self) -> str:
        """How it is asked."""
        return "https" if any(place.is_tls for place in self.places) else "http"

    @property
    def is_named(self) -> bool:
        """Whether Envoy has to look its names up."""
        return any(place.is_named for place in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """Says what an Envoy is to listen at, and what stands around it.

    Attributes:
        name: of the system.
        folder: where its files are; absolute.
        system: the folder that files of keys are relative to.
        host, port: what it listens at.
        certificate, key: what it proves itself by, in PEM; None serves plain HTTP.
        proxies: what is trusted before it, and what the gateway trusts: Envoy is among them.
        upstreams: the external services, by name.
        gateway: where the gateway is, as far as is known.
        health: the path under which it tells whether it takes requests; "" for none.
        policies: of the gateway's edges.
        clients, pool: how much, how long and how many the gateway puts up with.
        authorities: the file of the authorities of the system, in PEM.
    """

    name: str
    folder: Path
    system: Path
    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    proxies: Sequence[ProxyNetwork] = ()
    upstreams: Mapping[str, Upstream] = field(default_factory=dict)
    gateway: HostPort | None = None
    health: str = ""
    policies: Policies = field(default_factory=Policies)
    clients: Limits = field(default_factory=Limits)
    pool: PoolLimits = field(default_factory=PoolLimits)
    authorities: Path = Path("/etc/ssl/certs/ca-certificates.crt")
