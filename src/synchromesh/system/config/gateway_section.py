"""`[gateway]`: the API gateway of a system."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.system.config.clients_section import ClientsSection
from synchromesh.system.config.tls_sections import ServerTlsSection

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway]`: the API gateway.

    Attributes:
        app: where its definition is: "module:attribute", from this folder; "" for no gateway.
        host: the address that it listens on; "" is that of [system].
        port: its HTTP port; 0 takes any free one.
        replicas: how many `dev --split` runs, 1 to 64: the first listens on `port`, the others on
            the ports after it. Rates are divided by them.
        clients: how much, how long and how many it puts up with.
        trusted_proxies: the addresses, or networks such as "10.0.0.0/8", of proxies before it:
            whom a request comes from is read from what they have written, and from nobody else.
        forwarded_by: what they write: "x-forwarded" or "forwarded"; all else may be a client's own.
        tls: what it proves itself by; without it, it serves plain HTTP.
        health: the path under which clients are told whether it takes requests, such as "/healthz":
            200 where it does, else 503; "" takes no path from the routes.
        access_log: which requests are logged, a line each: "off", "on", or a share of those that
            went well, such as "1%", with all others.
    """

    app: str = ""
    host: str = ""
    port: int = 0
    replicas: int = 1
    clients: ClientsSection = ClientsSection()
    trusted_proxies: tuple[str, ...] = ()
    forwarded_by: Literal["", "x-forwarded", "forwarded"] = ""
    tls: ServerTlsSection = ServerTlsSection()
    health: str = ""
    access_log: str = "off"

    def access_share(self) -> float:
        """Return the share of the requests that is logged of those that went well; 0 for no log.

        Raises:
            ConfigError: the text says neither.
        """
        if self.access_log in ("off", "on"):
            return float(self.access_log == "on")
        number = _SHARE.fullmatch(self.access_log)
        if number is None or not 0 < (share := float(number[1]) / 100) <= 1:
            raise ConfigError(
                f'access_log = {self.access_log[:40]!r}; make it "off", "on", or a share such as '
                '"1%"'
            )
        return share
