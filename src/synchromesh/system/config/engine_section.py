"""The section of `synchromesh.toml` that says which engines keep databases and carry messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.system.config.layers import SECRET_FORMS, SecretUrl
from synchromesh.system.config.secrets import read_secret

_SCHEMES = {"postgres": ("postgresql", "postgres"), "nats": ("nats", "tls", "ws", "wss")}
_PORT_MAX = 65_535


class EngineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[engine]`: the servers that a system runs on once one machine is too small for it.

    Each is the URL of a server, or a reference to it: "env:NAME" or "file:PATH". A URL with a
    password is only ever given by reference.

    Attributes:
        postgres: the PostgreSQL server that keeps a database for each service, such as
            "postgresql://HOST:5432"; its user is whom `synchromesh db create` connects as, and
            each service has a role of its own. "" keeps them in SQLite files.
        nats: the NATS server that has the registry and carries messages, such as
            "nats://HOST:4222"; "" keeps the one in the system and has the others go by calls.
        nats_monitor: its monitoring address, such as "http://HOST:8222", where a start looks
            whether it writes each message to its disk; "" for none, which a start says.
        sqlite: services whose databases stay in SQLite files beside the PostgreSQL server, such as
            those with personal values.
    """

    postgres: SecretUrl = ""
    nats: SecretUrl = ""
    nats_monitor: str = ""
    sqlite: tuple[str, ...] = ()

    def is_on_server(self, service: str) -> bool:
        """Return whether the database of a service is on the PostgreSQL server.

        Example:
            >>> engine = EngineSection(postgres="env:DATABASE_URL", sqlite=("customers",))
            >>> engine.is_on_server("orders"), engine.is_on_server("customers")
            (True, False)
        """
        return bool(self.postgres) and service not in self.sqlite

    def url(self, engine: str, folder: Path, environment: Mapping[str, str]) -> str:
        """Return the URL of an engine's server, "postgres" or "nats"; "" where none is given.

        Raises:
            ConfigError: what it refers to is missing, or no URL of such a server.
        """
        given: str = getattr(self, engine)
        name = f"engine.{engine}"
        url = given
        if given.startswith(SECRET_FORMS):
            url = read_secret(given, name=name, folder=folder, environment=environment)
        if url and not _is_url(url, _SCHEMES[engine]):
            place = f"{given} " if url != given else ""
            raise ConfigError(
                f"{name}: {place}is no URL of a server; write {_SCHEMES[engine][0]}://HOST:PORT, "
                "and percent-encode what is odd in a password"
            )
        return url


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    """Whether it is one with one host or several; a password has not cut it into other parts."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    hosts = parts.netloc.rpartition("@")[2].split(",")
    return (
        parts.scheme in schemes
        and bool(parts.netloc or parts.query)
        and text.isprintable()
        and all(map(_is_host, hosts))
        and not parts.fragment
        and "@" not in parts.path + parts.query
    )


def _is_host(text: str) -> bool:
    _, colon, port = text.rpartition("]")[2].partition(":")
    return not colon or (port.isdecimal() and port.isascii() and 1 <= int(port[:6]) <= _PORT_MAX)
