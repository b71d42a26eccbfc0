"""One thing that differs between two definitions of a gateway, or two configurations of it."""

from __future__ import annotations

import msgspec


class GatewayChange(msgspec.Struct, frozen=True):
    """One thing that differs.

    Attributes:
        what: such as "GET /orders/{id}: rate".
        before, after: how it was and how it is; "" where it was not there, or is not any more.
    """

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before:
            return f"+ {self.what}  {self.after}"
        if not self.after:
            return f"- {self.what}  {self.before}"
        return f"~ {self.what}  {self.before} -> {self.after}"
