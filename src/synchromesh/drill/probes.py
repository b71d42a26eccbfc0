"""`probes.toml`: what a drill asks while a part of the system is away, and in which words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from synchromesh.codec import NO_FIT
from synchromesh.errors import ConfigError

FILE_NAME = "probes.toml"
PROBES_MAX = 100
# Stands for the number of a request, so that each order is another one.
NUMBER = "{n}"

_ROUTE = re.compile(r"[A-Z]+ \S+")


class Says(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words for an answer in which a value stands in for another one.

    Attributes:
        at: where in the JSON of an answer, as names and dots: "free.source.is_fallback".
        value: in TOML `is`: what is found there.
        words: what such an answer is called in the table.
    """

    at: str
    words: str
    value: Any = msgspec.field(default=None, name="is")


class Follow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked later, to learn what became of what a command was told meanwhile.

    Attributes:
        target: of a GET at the gateway; `{n}` is the number of the request.
        at: where in the answer stands what became of it; a 404 is "not taken".
        row: the name of its row in the table.
    """

    target: str
    at: str
    row: str


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request that is asked again and again.

    Attributes:
        route: as it is written in the gateway; the name of its row.
        target: path and query of an example; by default the path of the route.
        body: sent as JSON; in its texts `{n}` is the number of the request.
        principal: who asks, in a simulation; "" for anybody.
        scopes: what they may do there.
        key: in a live drill, the reference to the API key that is sent: "env:NAME" or "file:PATH".
        word: where in the JSON of an answer stands the word for it; "" calls it "fresh".
        says: words for answers that something stood in for; the first that fits counts.
        follow: of a command, how it is learned what became of it.
        every: how many turns pass between two requests; a turn is a quarter of a second.
        times: how many are sent in a turn.
    """

    route: str
    target: str = ""
    body: Any = None
    principal: str = ""
    scopes: frozenset[str] = frozenset()
    key: str = ""
    word: str = ""
    says: list[Says] = []
    follow: Follow | None = None
    every: int = 1
    times: int = 1

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.route.partition(" ")[0]

    @property
    def is_command(self) -> bool:
        """Whether it is sent under an idempotency key."""
        return self.method not in ("GET", "HEAD")

    def target_of(self, number: int) -> str:
        """Return path and query of the request with a number."""
        return (self.target or self.route.partition(" ")[2]).replace(NUMBER, str(number))

    def body_of(self, number: int) -> bytes:
        """Return the body of the request with a number; none where there is nothing to send."""
        return b"" if self.body is None else msgspec.json.encode(_filled(self.body, str(number)))


class Probes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `probes.toml`.

    Attributes:
        probe: what is asked.
        page: the file of the tables, beside `probes.toml`.
        opening: "module:function" that fills the databases before a simulated drill, as
            `[dev] opening` does, which it stands for.
        stand_ins: by external service, "module:function" that makes an ASGI application for it.
    """

    probe: list[Probe]
    page: str = "degradation.md"
    opening: str = ""
    stand_ins: dict[str, str] = {}

    @property
    def scopes(self) -> Mapping[str, frozenset[str]]:
        """What each principal may do: all that any of its probes needs."""
        found: dict[str, frozenset[str]] = {}
        for each in self.probe:
            if each.principal:
                found[each.principal] = found.get(each.principal, frozenset()) | each.scopes
        return found


def read_probes(folder: Path) -> Probes:
    """Read `probes.toml` of a system's folder.

    Raises:
        ConfigError: it is missing or wrong; the message names the place and the mend.
    """
    path = folder / FILE_NAME
    try:
        given = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}; a drill asks what it says, such as "
            '[[probe]] route = "GET /stock/{sku}", target = "/stock/SX90"'
        ) from error
    try:
        probes = msgspec.toml.decode(given, type=Probes)
    except (*NO_FIT, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    mistakes = list(_mistakes(probes))
    if mistakes:
        raise ConfigError("\n".join(f"{path}: {each}" for each in mistakes))
    return probes


def _mistakes(probes: Probes) -> list[str]:
    mistakes, routes = [], [each.route for each in probes.probe]
    if not 1 <= len(routes) <= PROBES_MAX:
        mistakes.append(f"it has {len(routes)} probes; write 1 to {PROBES_MAX}")
    for number, each in enumerate(probes.probe, 1):
        where = f"probe {number}, {each.route!r}: "
        if not _ROUTE.fullmatch(each.route):
            mistakes.append(f'{where}a route is a method and a path, such as "GET /stock/{{sku}}"')
            continue
        if routes.count(each.route) > 1:
            mistakes.append(f"{where}there are several of this route; one row is one probe")
        target = each.target_of(1)
        if not target.startswith("/") or "{" in target:
            mistakes.append(
                f'{where}its target {target!r} is no example; write one, such as "/stock/SX90"'
            )
        if each.follow is not None and not each.is_command:
            mistakes.append(f"{where}follow is for what changes something; leave it out")
        if each.every < 1 or each.times < 1:
            mistakes.append(f"{where}every and times are 1 or more")
    return mistakes


def _filled(value: Any, number: str) -> Any:
    if isinstance(value, str):
        return value.replace(NUMBER, number)
    if isinstance(value, list):
        return [_filled(each, number) for each in value]
    if isinstance(value, dict):
        return {name: _filled(each, number) for name, each in value.items()}
    return value
