"""The sections of `synchromesh.toml` that name certificates.

TLS itself is imported where files are named: most systems name none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from synchromesh.network import Network
    from synchromesh.tls import ClientFiles, ServerFiles


class ClientTlsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tls = {...}` of `[external.NAME]`: files in PEM, relative to this folder.

    Attributes:
        ca: the authorities that are believed; "" for those of the system.
        certificate: what is shown to a server that asks for it; "" for nothing.
        key: the private key of that certificate.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def files(self, folder: Path) -> ClientFiles:
        """Return the files that are named."""
        from synchromesh.tls import ClientFiles

        return ClientFiles(
            *(folder / name if name else None for name in (self.ca, self.certificate, self.key))
        )


class SystemTlsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tls = {...}` of `[system]`: files in PEM, relative to this folder; read when they change.

    Attributes:
        certificate: of this host, for the address that others call it by, and those of the
            authorities between; both to serve and to call; "" has services call each other by
            plain HTTP.
        key: its private key, without a password.
        ca: the authority of the certificates of all hosts; of no others.
    """

    certificate: str = ""
    key: str = ""
    ca: str = ""

    def server(self, folder: Path) -> ServerFiles | None:
        """Return what services prove themselves by; None where they serve plain HTTP."""
        if not self.certificate:
            return None
        from synchromesh.tls import ServerFiles

        return ServerFiles(folder / self.certificate, folder / self.key, folder / self.ca)

    def client(self, folder: Path) -> ClientFiles | None:
        """Return what services call each other by; None where that is plain HTTP."""
        if not self.certificate:
            return None
        from synchromesh.tls import ClientFiles

        return ClientFiles(folder / self.ca, folder / self.certificate, folder / self.key)

    def believing(self, folder: Path, network: Network) -> Network | None:
        """Return a network that believes all hosts, and shows nothing; None without a `ca`.

        Raises:
            ConfigError: the file cannot be read, or holds no authority.
        """
        if not self.ca:
            return None
        from synchromesh.tls import ClientContexts, ClientFiles

        return network.secured(client=ClientContexts(files=ClientFiles(folder / self.ca)))


class ServerTlsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tls = {...}` of `[gateway]`: files in PEM, relative to this folder; read when they change.

    Attributes:
        certificate: the gateway's certificate, and those of the authorities between; "" serves
            plain HTTP.
        key: its private key, without a password.
        client_ca: the authorities whose certificates clients show; "" asks for none.
        client: "required" lets nobody connect without one of those, "optional" lets others in, who
            have to say who they are by a key or a token.
    """

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    client: Literal["required", "optional"] = "required"

    def files(self, folder: Path) -> ServerFiles | None:
        """Return the files that are named; None where plain HTTP is served."""
        if not self.certificate:
            return None
        from synchromesh.tls import ServerFiles

        client_ca = folder / self.client_ca if self.client_ca else None
        certificate, key = folder / self.certificate, folder / self.key
        return ServerFiles(certificate, key, client_ca, is_optional=self.client == "optional")
