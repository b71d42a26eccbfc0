"""`Split` and `Mirror` as the engine runs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from synchromesh.chance import Chance
from synchromesh.durations import is_count, is_number
from synchromesh.gateway.beside import Mirror, Split
from synchromesh.gateway.comparing import Ignored
from synchromesh.gateway.fallbacks import Note
from synchromesh.gateway.forward import CompiledForward, check_upstream, read_path
from synchromesh.gateway.leading import UpstreamPaths
from synchromesh.gateway.router import Template
from synchromesh.gateway.shapes import is_a

# Methods that change nothing, copies of which are harmless.
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FLAGS: Final = {Split: ("sticky",), Mirror: ("writes", "values")}


@dataclass(frozen=True, slots=True)
class CompiledSplit:
    """A `Split` as the engine runs it: the way to the other upstream, and who goes there."""

    passage: CompiledForward
    share: float
    is_sticky: bool

    def takes(self, client: str, chance: Chance) -> bool:
        """Tell whether a request goes to the other upstream; `client` counts where it is sticky."""
        if not self.is_sticky:
            return chance.random() < self.share
        # The same everywhere and after each start; with a larger share nobody comes back.
        drawn = int.from_bytes(hashlib.sha256(client.encode()).digest()[:8])
        return drawn < self.share * 2.0**64


@dataclass(frozen=True, slots=True)
class CompiledMirror:
    """A `Mirror` as the engine runs it."""

    passage: CompiledForward
    share: float
    has_writes: bool
    ignored: Ignored
    has_values: bool
    in_flight_max: int
    kept_max: int

    def takes(self, method: str, chance: Chance) -> bool:
        """Tell whether a request is copied."""
        return (self.has_writes or method in READS) and chance.random() < self.share


class BesideReader:
    """Compiles what a `Forward` has beside its upstream, and notes its mistakes.

    Args:
        passage: of the route.
        ways: by upstream, those that lead there.
    """

    def __init__(
        self,
        passage: CompiledForward,
        template: Template,
        ways: dict[str, tuple[UpstreamPaths, ...]],
        note: Note,
    ) -> None:
        self._passage = passage
        self._template = template
        self._ways = ways
        self._note = note

    def split(self, split: Split | None) -> CompiledSplit | None:
        """Return a split as the engine runs it; None where there is none, or it cannot be read."""
        if split is None:
            return None
        if not is_a(split, Split):
            self._note(f"split is a {type(split).__name__}; write Split(to, percent=5)")
            return None
        note = self._noting("split")
        share = _share(split.percent, note, least=0.0)
        return CompiledSplit(self._beside(split, note), share, split.sticky)

    def mirror(self, mirror: Mirror | None) -> CompiledMirror | None:
        """Return a mirror as the engine runs it; None where there is none, or it cannot be read."""
        if mirror is None:
            return None
        if not is_a(mirror, Mirror):
            self._note(f"mirror is a {type(mirror).__name__}; write Mirror(to)")
            return None
        note = self._noting("mirror")
        for name in ("in_flight_max", "kept_max"):
            value = getattr(mirror, name)
            if not is_count(value) or value < 1:
                note(f"{name} is {value!r}; make it a whole number, 1 or more")
                return None
        share = _share(mirror.percent, note, least=1e-9)
        if self._template.method not in (*READS, "ANY") and mirror.writes is not True:
            note(
                f"{self._template.method} changes something, and writes are not copied; say "
                "writes=True where the mirror may do it, too"
            )
        return CompiledMirror(
            self._beside(mirror, note),
            share,
            mirror.writes,
            _ignored(mirror.ignore, note),
            mirror.values,
            mirror.in_flight_max,
            mirror.kept_max,
        )

    def _beside(self, beside: Split | Mirror, note: Note) -> CompiledForward:
        """Return the way to the other upstream: with all that the route says of its own."""
        check_upstream(beside.to, note)
        for name in _FLAGS[type(beside)]:
            value = getattr(beside, name)
            if not is_a(value, bool):
                note(f"{name} is {str(value)[:40]!r}; write True or False")
        if beside.to == self._passage.to:
            note(f"leads to {beside.to!r}, where the route itself leads; name another upstream")
        path = self._passage.path
        if beside.path:
            path = read_path(beside.path, self._template, note)
        own, others = UpstreamPaths(), self._ways[str(beside.to)]
        for ways in (own, others[0]):
            ways.add(self._template.path, path)
        return replace(self._passage, to=str(beside.to), path=path, ways=(own, *others))

    def _noting(self, what: str) -> Note:
        return lambda mistake: self._note(f"its {what}: {mistake}")


def _share(percent: object, note: Note, *, least: float) -> float:
    if not is_number(percent) or not least <= float(percent) <= 100:  # type: ignore[arg-type]
        span = "a number from 0 to 100" if not least else "a number above 0, and 100 at most"
        note(f"percent is {str(percent)[:40]!r}; make it {span}")
        return 0.0
    return float(percent) / 100  # type: ignore[arg-type]


def _ignored(pointers: Iterable[str], note: Note) -> Ignored:
    if is_a(pointers, str):
        note(f'ignore is a text; write a set of texts, such as {{"{pointers}"}}')
        return Ignored()
    try:
        return Ignored.of(map(str, pointers))
    except ValueError as error:
        note(f'{str(error)[:40]!r} is no JSON pointer; write one such as "/items/*/id"')
        return Ignored()
