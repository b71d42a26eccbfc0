"""`[admin]`: where each process of a system tells of its health."""

from __future__ import annotations

import msgspec


class AdminSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[admin]`: the listener of each process that tells of its health; no client needs it.

    Attributes:
        host: the address that they listen on; whoever reaches it is asked for no credential.
        port: of the process that `synchromesh dev` is; 0 takes any free one.
        ports: of the processes of `dev --split`, by service, replica such as "quoting#2", or
            "gateway"; those that are left out take a free one each.
    """

    host: str = "127.0.0.1"
    port: int = 0
    ports: dict[str, int] = {}

    @property
    def url(self) -> str:
        """Where the process listens that `synchromesh dev` is, as far as that is chosen."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"
