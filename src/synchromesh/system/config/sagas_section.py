"""How many sagas of a service run at once, as `synchromesh.toml` says."""

from __future__ import annotations

import msgspec


class SagasSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[services.NAME.sagas]`: how many sagas of a service run at once.

    Attributes:
        in_flight: how many are at work at once; those that sleep do not count.
        queued: how many more wait for a place, and are durable; further starts are shed.
    """

    in_flight: int = 1024
    queued: int = 10_000
