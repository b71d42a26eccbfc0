"""The section of `synchromesh.toml` that says which engines keep databases and carry messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.system.config.layers import SECRET_FORMS, SecretUrl
from synchromesh.system.config.secrets import read_secret

_SCHEMES = {"postgres": ("postgresql", "postgres"), "nats": ("nats", "tls", "ws", "wss")}
_FORMS = {
    "postgres": "postgresql://HOST:PORT, or postgresql://HOST:PORT,HOST:PORT for a cluster",
    "nats": "nats://HOST:PORT, or nats://HOST:PORT,nats://HOST:PORT for a cluster, of one user",
}
_PORT_MAX = 65_535
# What a system is on that has no server, as `EngineSection.shown` says it.
FILES = {"databases": "SQLite files"}


class EngineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[engine]`: the servers that a system runs on once one machine is too small for it.

    Each is the URL of a server, or a reference to it: "env:NAME" or "file:PATH". A URL with a
    password is only ever given by reference.

    Attributes:
        postgres: the PostgreSQL server that keeps a database for each service, such as
            "postgresql://HOST:5432"; its user is whom `synchromesh db create` connects as, and
            each service has a role of its own. "" keeps them in SQLite files.
        nats: the NATS server that has the registry and carries messages, such as
            "nats://HOST:4222", "tls://HOST:4222?ca=PATH", or the servers of a cluster with commas
            between them; "" keeps the one in the system and has the others go by calls.
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

    def is_shared(self, own_nats: str) -> bool:
        """Return whether API keys and clients' grants are on NATS, and not in the run directory.

        They stay there where `dev` has brought the server along: that system is in one folder.

        Args:
            own_nats: what refers to the server that `dev` brings along.
        """
        return self.nats not in ("", own_nats)

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
        schemes = _SCHEMES[engine]
        is_right = _are_urls(url, schemes) if engine == "nats" else _is_url(url, schemes)
        if url and not is_right:
            place = f"{given} " if url != given else ""
            raise ConfigError(
                f"{name}: {place}is no URL of a server; write {_FORMS[engine]}, "
                "and percent-encode what is odd in a password, a comma as %2C"
            )
        return url

    def shown(self, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
        """Return what the system runs on, without users and passwords.

        Raises:
            ConfigError: as `url` does.

        Example:
            >>> engine = EngineSection(postgres="postgresql://db:5432", sqlite=("customers",))
            >>> engine.shown(Path(), {})
            {'databases': 'PostgreSQL at db:5432, and SQLite files of customers'}
            >>> EngineSection().shown(Path(), {})
            {'databases': 'SQLite files'}
        """
        postgres, nats = (self.url(each, folder, environment) for each in ("postgres", "nats"))
        databases = f"PostgreSQL at {_places(postgres)}" if postgres else FILES["databases"]
        if postgres and self.sqlite:
            databases += f", and SQLite files of {', '.join(self.sqlite)}"
        found = {"databases": databases}
        if nats:
            found["registry and messages"] = f"NATS at {_places(nats)}"
        return found


def _places(url: str) -> str:
    """Return the hosts and ports of a URL, which may be several with commas between them.

    Example:
        >>> _places("nats://me:secret@a:4222,nats://b:4222"), _places("postgresql:///?host=/run")
        ('a:4222, b:4222', '/run')
    """
    found = []
    for each in url.split(","):
        parts = urlsplit(each if "://" in each else f"//{each}")
        query = dict(parse_qsl(parts.query))
        found.append(parts.netloc.rpartition("@")[2] or query.get("host", "its own address"))
    return ", ".join(found)


def _are_urls(text: str, schemes: tuple[str, ...]) -> bool:
    """Whether it is one, or several of one scheme and one user with commas between them."""
    scheme, *others = text.split(",")
    first = scheme.partition("://")[0]
    every = [scheme, *(each if "://" in each else f"{first}://{each}" for each in others)]
    if any("@" in each and "://" not in each for each in others):
        return False  # a comma in the password, of which the rest would be taken for a server
    users = {urlsplit(each).netloc.rpartition("@")[0] for each in every if _is_url(each, (first,))}
    return all(_is_url(each, schemes) and each.startswith(f"{first}://") for each in every) and (
        len(users - {""}) <= 1
    )


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
