"""Exports a system's gateway for Envoy: reads the configuration, and writes the files.

Files are replaced whole, by renaming: Envoy looks at the folder, and takes nothing else for a
change. None of them holds a secret; all of them are private all the same, for they tell where
secrets are, and what is guarded by what.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.gateway import Certificates, Gateway, read_proxies
from synchromesh.gateway.arguments import sound
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.envoy import (
    GATEWAY_CLUSTER,
    EnvoySettings,
    Export,
    HostPort,
    Upstream,
    eds,
    eds_file,
    export,
)
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.external_section import ExternalSection
from synchromesh.system.config.rundir import write_private
from synchromesh.system.config.schema import GATEWAY, SystemConfig

BOOTSTRAP = "envoy.json"
REPORT = "report.json"
# What a socket's path may have, less what Envoy's own name takes.
_SOCKET_PATH_MAX = 100
_KNOWN = frozenset({"url", "urls", "weights", "health", "tls", "command", "env"})
# A host that stands for every address of the machine, and where that is reached from itself.
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is read, and nothing listens there


@dataclass(frozen=True, slots=True)
class ListenAt:
    """Says where an Envoy listens, and what it proves itself by."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the gateway is, and the external services, by the running system; none if it is not."""

    gateway: str = ""
    externals: Mapping[str, Sequence[str]] = field(default_factory=dict)


def listening(text: str, certificate: Path | None, key: Path | None, now_s: float) -> ListenAt:
    """Read what an Envoy is to listen at, and try its certificate.

    Raises:
        ConfigError: it is no address and port, or the certificate is missing or wrong.
    """
    host, colon, number = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    port = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else -1
    if not colon or not host or HostPort(host, 0).is_named or not 0 < port < 65_536:
        raise ConfigError(
            f'--listen {text[:60]!r} is no address and port; write one such as "127.0.0.1:8443", '
            'or "0.0.0.0:8443" for all addresses'
        )
    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key go together; give both, or none")
    if certificate is None or key is None:
        return ListenAt(host, port)
    from synchromesh.tls import ServerFiles, ServerTls

    certificate, key = certificate.resolve(), key.resolve()
    ServerTls(ServerFiles(certificate, key), now_s=now_s)
    return ListenAt(host, port, certificate, key)


def export_envoy(
    config: SystemConfig,
    gateway: Gateway,
    entries: Sequence[CompiledRoute],
    *,
    system: Path,
    folder: Path,
    at: ListenAt,
    found: Whereabouts,
) -> Export:
    """Compile the gateway of a system for Envoy; nothing is written.

    Args:
        entries: what `check_gateway` made of the gateway.
        system: the folder of the system.
        folder: where the files will be; absolute.
        found: where the parts of the system are.

    Raises:
        ConfigError: Envoy cannot stand before this gateway; the message names every reason.
    """
    refuse_unfit(config, gateway, folder)
    clients = config.gateway.clients
    settings = EnvoySettings(
        name=config.system.name,
        folder=folder,
        system=system,
        host=at.host,
        port=at.port,
        certificate=at.certificate,
        key=at.key,
        proxies=read_proxies(config.gateway.trusted_proxies),
        upstreams={
            name: _upstream(name, each, system, found.externals.get(name, ()))
            for name, each in config.external.items()
        },
        gateway=gateway_place(config, found),
        health=config.gateway.health,
        policies=policies_of(config, GATEWAY),
        clients=clients.compile(),
        pool=clients.compile_pool(),
    )
    return export(gateway, entries, settings)


def refuse_unfit(config: SystemConfig, gateway: Gateway, folder: Path) -> None:
    """Refuse a gateway before which Envoy cannot stand; whether it is right is checked elsewhere.

    Raises:
        ConfigError: it cannot; the message names every reason.
    """
    mistakes = list(_mistakes(config, sound(gateway)[0], folder))
    if mistakes:
        lines = "".join(f"\n  {mistake}" for mistake in mistakes)
        raise ConfigError(f"the gateway cannot be exported, mistakes: {len(mistakes)}{lines}")


def _mistakes(config: SystemConfig, gateway: Gateway, folder: Path) -> Iterator[str]:
    section = config.gateway
    if any(isinstance(each, Certificates) for each in gateway.auth):
        yield (
            "Certificates: Envoy ends TLS, and no certificate of a client reaches the gateway "
            "behind it; take Certificates out of auth, and [gateway] tls out of the configuration, "
            "or let these clients come to a gateway that ends TLS itself"
        )
    elif section.tls.certificate:
        yield (
            "[gateway] tls: Envoy ends TLS before the gateway; take tls out, and give the files by "
            "--certificate and --key. No certificate of a client reaches the gateway then"
        )
    if section.forwarded_by == "forwarded":
        yield (
            '[gateway] forwarded_by = "forwarded": Envoy reads X-Forwarded-For alone; make it '
            '"x-forwarded", and have the proxy before it write that'
        )
    if not section.trusted_proxies:
        yield (
            "[gateway] trusted_proxies is empty, so that the gateway would take all clients for "
            'one, Envoy; name the address that Envoy comes from, such as ["127.0.0.1"]'
        )
    socket = folder / "admin.sock"
    if len(os.fsencode(socket)) > _SOCKET_PATH_MAX:
        yield (
            f"{socket} is longer than {_SOCKET_PATH_MAX} bytes, which a socket's name may not be; "
            "choose a folder with a shorter path"
        )


def _upstream(name: str, section: ExternalSection, system: Path, found: Sequence[str]) -> Upstream:
    weights = _weights(name, section)
    urls = section.addresses if any(map(_is_named, section.addresses)) else found
    try:
        written = [HostPort.of(url) for url in section.addresses]
        places = [replace(HostPort.of(url), weight=weights.get(url, 1)) for url in urls or weights]
    except ConfigError:
        return Upstream(name, why="has a path in its url, which Envoy does not put before others")
    more = next(
        (
            each.name
            for each in msgspec.structs.fields(section)
            if each.name not in _KNOWN and getattr(section, each.name) != each.default
        ),
        "",
    )
    why = f"has {more}, which the export does not know of" if more else ""
    if len({(each.is_tls, each.host if each.is_tls else "") for each in written}) > 1:
        why = "has urls of which each is secured otherwise"
    elif section.health is not None and any(each.is_named for each in written):
        why = "has urls with names, and the gateway alone knows which of them are up"
    return Upstream(name, places, bool(section.weights), section.tls.files(system), why)


def _weights(name: str, section: ExternalSection) -> dict[str, int]:
    """Return the weights of the URLs that are known before anything runs."""
    if section.command:
        return {}
    return {each.url: each.weight or 1 for each in section.endpoints(name)}


def _is_named(url: str) -> bool:
    try:
        return HostPort.of(url).is_named
    except ConfigError:
        return False


def gateway_place(config: SystemConfig, found: Whereabouts) -> HostPort | None:
    """Return where Envoy reaches the gateway; None where that is not known before it runs."""
    host = config.gateway.host or config.system.host
    if found.gateway:
        place = HostPort.of(found.gateway)
    elif config.gateway.port:
        place = HostPort(host, config.gateway.port)
    else:
        return None
    return replace(place, host=_EVERY.get(place.host, place.host))


# -- writing ---------------------------------------------------------------------------------------


def write(made: Export, folder: Path, report: object) -> tuple[Path, ...]:
    """Write the files of an export, each private to this user and replaced whole.

    The configuration comes last: Envoy refuses to start where one that it names is missing.

    Raises:
        ConfigError: one cannot be written.
    """
    contents = {
        **made.files,
        folder / REPORT: report,
        folder / BOOTSTRAP: made.bootstrap,
    }
    for parent in sorted({folder, *(path.parent for path in contents)}):
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the folder {parent} cannot be made: {error.strerror}; choose another one"
            ) from error
    for path, content in contents.items():
        write_private(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    return tuple(contents)


class EdsFiles:
    """Keeps the files that say where instances are as the registry has it.

    Nothing that is known is taken away: where nobody is listed, or nobody can say, the last list
    that had somebody stays (R4, R5).

    Args:
        made: the export whose files they are.
    """

    def __init__(self, made: Export, config: SystemConfig, folder: Path) -> None:
        self._made = made
        self._config = config
        self._folder = folder
        self._written: dict[str, list[HostPort]] = {}

    def follow(self, found: Whereabouts) -> tuple[str, ...]:
        """Write the files of what has moved, and return its names.

        Raises:
            ConfigError: one cannot be written.
        """
        moved = []
        for name, places in self._listed(found):
            if places and places != self._written.get(name):
                path = eds_file(self._folder, name)
                write_private(path, msgspec.json.encode(eds(name, places)))
                self._written[name] = places
                moved.append(name)
        return tuple(moved)

    def _listed(self, found: Whereabouts) -> Iterator[tuple[str, list[HostPort]]]:
        ours = gateway_place(self._config, found)
        yield GATEWAY_CLUSTER, [] if ours is None else [ours]
        for name in self._made.upstreams:
            section = self._config.external[name]
            weights = _weights(name, section)
            places = [
                replace(HostPort.of(url), weight=weights.get(url, 1))
                for url in found.externals.get(name, ())
            ]
            yield name, sorted(places, key=lambda place: (place.host, place.port))

    def __repr__(self) -> str:
        return f"<EdsFiles in {self._folder}>"
