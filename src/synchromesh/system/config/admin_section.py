"""`[admin]`: where each process of a system tells of its health."""

from __future__ import annotations

import msgspec

_EVERY = ("0.0.0.0", "::")  # noqa: S104


class AdminSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[admin]`: the listener of each process that tells of its health; no client needs it.

    Of a replica that `synchromesh run` runs it has the verbs of operators, too, who show a
    credential.

    Attributes:
        host: the address that they listen on; whoever reaches it may ask for health and metrics.
        port: of the process that `synchromesh dev` is; 0 takes any free one.
        ports: of the processes of `dev --split`, by service, replica such as "quoting#2", or
            "gateway"; those that are left out take a free one each.
        advertise: the host name or address by which operators on other hosts reach it; "" is
            `host`, or, where that is every address, the one by which services are reached.
        tls: whether it is reached by TLS, with the certificate of `[system] tls`; who asks needs
            none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    ports: dict[str, int] = {}
    advertise: str = ""
    tls: bool = False

    @property
    def url(self) -> str:
        """Where the process listens that `synchromesh dev` is, as far as that is chosen."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """Of the URLs of all listeners."""
        return "https" if self.tls else "http"

    def reached_at(self, url: str, own: str) -> str:
        """Return the URL by which others reach a listener.

        Args:
            url: where it listens.
            own: the host by which they reach the services of this one.

        Example:
            >>> AdminSection("0.0.0.0").reached_at("http://0.0.0.0:9100", "10.0.0.5")
            'http://10.0.0.5:9100'
        """
        host = self.advertise or (own if self.host in _EVERY else self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{url.rpartition(':')[2]}"
