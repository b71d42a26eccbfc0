"""Another upstream beside that of a `Forward`: it gets a share of its requests, or copies."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """Gives a share of the requests of a `Forward` to another upstream, which answers them.

    Attributes:
        to: the upstream: a service of the system, or an external one of `synchromesh.toml`.
        percent: how many of a hundred requests go there, 0 to 100.
        path: where that upstream has it, as `Forward.path`; "" where the first one has it, too.
        sticky: a client goes to the same one each time: a principal, or else an address. With a
            larger share those who went there already still do.

    Example:
        >>> Split("inventory", percent=5, path="/stock/{sku}").sticky
        False
    """

    to: str
    _: KW_ONLY
    percent: float
    path: str = ""
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Mirror:
    """Sends a copy of requests of a `Forward` to another upstream, and compares the answers.

    The copy is sent once the client has its answer, and by an edge of its own: it is never tried
    again, and neither its time nor its failures touch an answer. What would be too many copies at
    once is dropped, as is what has a body of more than 64 KiB, or an answer of more than 256 KiB.
    Each copy says so: `Synchromesh-Mirror: ?1`. Headers pass as to the first upstream.

    Attributes:
        to: the upstream, as of a `Split`.
        percent: how many of a hundred requests are copied, above 0 and to 100.
        path: where that upstream has it, as `Forward.path`; "" where the first one has it, too.
        writes: whether methods other than GET, HEAD and OPTIONS are copied, too: both upstreams
            then do what they say.
        ignore: what may differ in bodies of JSON, as JSON pointers (RFC 6901) in which `*` is any
            field or item, such as {"/served_at", "/items/*/id"}.
        values: whether differences are kept with path, query and the values that differ; not where
            these may be secret.
        in_flight_max: how many copies there may be at once.
        kept_max: how many of the last differences are kept.

    Example:
        >>> Mirror("inventory", ignore={"/served_at"}).percent
        100.0
    """

    to: str
    _: KW_ONLY
    percent: float = 100.0
    path: str = ""
    writes: bool = False
    ignore: AbstractSet[str] = frozenset()
    values: bool = False
    in_flight_max: int = 16
    kept_max: int = 50
