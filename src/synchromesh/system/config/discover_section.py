"""`discover = {...}` of `[external.NAME]`: where its instances are told, by DNS or in a file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from synchromesh.discovery.readers import (
    DnsAddresses,
    DnsServices,
    Reader,
    StaticFile,
    check_srv,
)
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.system.config.urls import shown, url_fault

_KINDS = ("dns", "srv", "file")
_NO_TLS = (
    "what is found so is reached by http:// alone; name what has TLS in urls, so that each has to "
    "prove to be that host"
)


class DiscoverSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`discover = {...}` of `[external.NAME]`: its instances are found by DNS, or in a file.

    It has either `dns`, `srv` or `file`. What was found last stays where nothing can be read.

    Attributes:
        dns: "http://HOST:PORT"; each address of the host, A or AAAA, is an instance.
        srv: "http://_SERVICE._PROTO.DOMAIN"; each SRV record of the best priority is an instance,
            with its weight. It needs the extra `dns`.
        file: a JSON file, relative to this folder, of URLs, such as `["http://10.0.0.7:8080"]`;
            instead of one `{"url": "...", "weight": 3}`.
        every: how often it is read.
    """

    dns: str = ""
    srv: str = ""
    file: str = ""
    every: str = "5s"

    @property
    def every_s(self) -> float:
        """How often it is read, in seconds. Raises ConfigError."""
        return duration(self.every, "every")

    def check(self) -> None:
        """Raise a ConfigError for what is wrong; its message begins with the key."""
        given = [each for each in _KINDS if getattr(self, each)]
        if len(given) != 1:
            named = " and ".join(given) or "none of them"
            raise ConfigError(f"dns: discover needs either dns, srv or file, and has {named}")
        self.every_s  # noqa: B018  raises
        for key, url in (("dns", self.dns), ("srv", self.srv)):
            if url and (fault := plain_fault(url) or _name_fault(key, url)):
                raise ConfigError(f"{key}: {key} = {shown(url)!r}; {fault}")

    def reader(self, folder: Path) -> Reader:
        """Return what reads it, which has been tried as far as that says anything for good.

        Raises:
            ConfigError: the file is missing or wrong.
            MissingExtra: `srv` needs the extra `dns`.
        """
        if self.dns:
            return DnsAddresses(self.dns)
        if self.srv:
            check_srv()
            return DnsServices(self.srv)
        return StaticFile(folder / self.file, plain_fault)


def plain_fault(url: str) -> str:
    """Return what is wrong with the URL of an instance that is found; "" for nothing."""
    return _NO_TLS if url.startswith("https://") else url_fault(url)


def _name_fault(key: str, url: str) -> str:
    parts = urlsplit(url)
    if key == "srv" and parts.port is not None:
        return "SRV records say the port; leave it out"
    if key == "srv" and not (parts.hostname or "").startswith("_"):
        return "write the name of SRV records, such as http://_stock._tcp.internal"
    if key == "dns" and (parts.hostname or "").startswith("_"):
        return "that is a name of SRV records; write srv = instead"
    return ""
