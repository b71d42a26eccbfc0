"""TLS by the standard `ssl`: what a server proves itself by, and whom a client believes.

Certificates are replaced while a server runs: files that change are read again, tried, and serve
the next handshake; files that are wrong change nothing. Versions below TLS 1.2 are refused.
Sources: RFC 8446 (TLS 1.3), RFC 5280 (certificates), RFC 7301 (ALPN).
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synchromesh.errors import ConfigError
from synchromesh.watched import Stamp, stamp_of

DAY_S = 86_400
SOON_S = 14 * DAY_S
_FLIGHTS = 8

_log = logging.getLogger("synchromesh.tls")


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The files that a server proves itself by.

    Attributes:
        certificate: its certificate, and those of the authorities between, in PEM.
        key: the private key of the first one, in PEM, without a password.
        client_ca: the authorities whose certificates clients show; None asks for none.
        is_optional: a client may connect without one.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """Whom a client believes, and what it shows.

    Attributes:
        ca: the authorities that it believes, in PEM; None believes those of the system.
        certificate: what it shows a server that asks, in PEM; None shows nothing.
        key: the private key of that.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says that has been tried.

    Attributes:
        names: whom it is for.
        expires_s: when it ends, in seconds since 1970.
    """

    names: tuple[str, ...]
    expires_s: float


class ServerTls:
    """Terminates TLS with files that may change.

    Args:
        files: what it proves itself by.
        now_s: the wall clock, in seconds since 1970.

    Attributes:
        certificate: what it says.
        authorities: those that clients show certificates of, as they are in their file.

    Raises:
        ConfigError: a file is missing, cannot be read, has expired, or does not fit the others.
    """

    def __init__(self, files: ServerFiles, *, now_s: float) -> None:
        self._files = files
        # Before they are read: a change meanwhile is then seen as one.
        self._seen = self._stamps()
        self._current, self.certificate, self.authorities = _read_server(files, now_s)

    def context(self) -> ssl.SSLContext:
        """Return what the next handshake is made by.

        Another one after a change: with its own sessions, so that nobody who has shown a
        certificate of an authority that was withdrawn goes on by resuming what it had.
        """
        return self._current

    def refresh(self, *, now_s: float) -> bool:
        """Read the files again where they have changed; return whether others are in force.

        Files that are wrong are logged, and those before stay.
        """
        now = self._stamps()
        if now == self._seen:
            return False
        self._seen = now
        try:
            self._current, self.certificate, self.authorities = _read_server(self._files, now_s)
        except ConfigError as error:
            _log.error("the certificate stays as it was: %s", error.message)
            return False
        _log.info("another certificate is in force: %s", self._files.certificate)
        return True

    def take(self, other: ServerTls) -> None:
        """Go on with the files of another one, from the next handshake on."""
        self._files, self._seen = other._files, other._seen
        self._current, self.certificate = other._current, other.certificate
        self.authorities = other.authorities

    def warning(self, *, now_s: float) -> str:
        """Return what a person should know of the certificate; "" where that is nothing."""
        left_s = self.certificate.expires_s - now_s
        if left_s > SOON_S:
            return ""
        when = f"ends in {left_s / DAY_S:.1f} days" if left_s > 0 else "has expired"
        return f"the certificate {self._files.certificate} {when}; replace the file"

    def _stamps(self) -> tuple[Stamp | None, ...]:
        files = (self._files.certificate, self._files.key, self._files.client_ca)
        return tuple(stamp_of(path) for path in files if path is not None)


def client_context(files: ClientFiles = ClientFiles()) -> ssl.SSLContext:
    """Return the context of a client that believes who `files` say.

    Raises:
        ConfigError: a file is missing, cannot be read, or does not fit the others.
    """
    context = ssl.create_default_context()
    if files.ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _believe(context, files.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.certificate is not None or files.key is not None:
        if files.certificate is None or files.key is None:
            raise ConfigError("certificate and key go together; name both, or none")
        _load(context, files.certificate, files.key)
    return context


class ClientContexts:
    """Says what a client secures its connection to a host and port by.

    Args:
        special: by host and port, for those that are not proved by `files`.
        files: for all others; without them they are proved by the system's authorities.

    Raises:
        ConfigError: as `client_context` does.
    """

    def __init__(
        self,
        special: Mapping[tuple[str, int], ClientFiles] = MappingProxyType({}),
        files: ClientFiles = ClientFiles(),
    ) -> None:
        self._files = files
        # Before they are read: a change meanwhile is then seen as one.
        self._seen = self._stamps()
        self._default = client_context(files)
        self._special = {address: client_context(files) for address, files in special.items()}

    def __call__(self, host: str, port: int) -> ssl.SSLContext:
        """Return the context for a host and port."""
        return self._special.get((host, port), self._default)

    def refresh(self) -> None:
        """Read `files` again where they have changed; wrong ones are logged, and not taken."""
        now = self._stamps()
        if now == self._seen:
            return
        self._seen = now
        try:
            self._default = client_context(self._files)
        except ConfigError as error:
            _log.error("what is shown to others stays as it was: %s", error.message)

    def _stamps(self) -> tuple[Stamp | None, ...]:
        files = (self._files.ca, self._files.certificate, self._files.key)
        return tuple(stamp_of(path) for path in files if path is not None)


def _read_server(files: ServerFiles, now_s: float) -> tuple[ssl.SSLContext, Certificate, bytes]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, files.certificate, files.key)
    certificate = _tried(context, files.certificate)
    if certificate.expires_s <= now_s:
        raise ConfigError(f"the certificate {files.certificate} has expired; put a new one there")
    authorities = b""
    if files.client_ca is not None:
        authorities = _believe(context, files.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL if files.is_optional else ssl.CERT_REQUIRED
    return context, certificate, authorities


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        _readable(path)
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"{key} is not the key of {certificate}; they come in pairs"
        else:
            why = (
                f"{certificate} and {key} cannot be read ({error.reason or 'no PEM'}); a "
                "certificate and its private key are expected, in PEM, without a password"
            )
        raise ConfigError(why) from error


def _believe(context: ssl.SSLContext, ca: Path) -> bytes:
    """Have a context believe the authorities of a file, and return what is in it."""
    _readable(ca)
    authorities = ca.read_bytes()
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{ca} holds no certificates of authorities ({error.reason or 'no PEM'}); they are "
            "expected in PEM"
        ) from error
    return authorities


def _readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _tried(server: ssl.SSLContext, certificate: Path) -> Certificate:
    """Shake hands with a server in memory, by a client that believes this very certificate.

    That is how the standard library tells what a certificate says, and that it can be used.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _believe(client, certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(_FLIGHTS):
            for end in (theirs, ours):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"the certificate {certificate} cannot be used: {error.verify_message}; put another "
            "one there"
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"the certificate {certificate} cannot be used: {error.reason or error}"
        ) from error
    said: dict[str, Any] = theirs.getpeercert() or {}
    names = tuple(str(name) for _, name in said.get("subjectAltName", ()))
    return Certificate(names, float(ssl.cert_time_to_seconds(said["notAfter"])))
