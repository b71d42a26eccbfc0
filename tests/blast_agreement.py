"""Whether `blast` says what a drill has seen."""

from __future__ import annotations

from synchromesh.drill.answers import NO_ANSWER, Seen
from synchromesh.drill.course import Column
from synchromesh.system.control.blast import Blast, Effect

UNDONE = "409 saga_undone"


def disagreements(found: Blast, column: Column) -> list[str]:
    """Return the routes of which the two say something else, each with both."""
    effects = {hit.what: hit.effect for hit in found.hits}
    return [
        f"{route} {effects.get(route) or 'as always'}: {seen.cell()}"
        for route, seen in column.seen.items()
        if not _agrees(effects.get(route, ""), seen)
    ]


def _agrees(effect: str, seen: Seen) -> bool:
    words = seen.then.words
    has_failed = words == NO_ANSWER or words[:1] in "45"
    if not effect:
        return not seen.is_touched
    if effect == Effect.STOPS.value:
        return has_failed
    if effect == Effect.DEGRADES.value:
        return not has_failed
    if effect == Effect.WAITS.value:
        # A saga goes on later, or has undone all of it.
        return not has_failed or words == UNDONE
    return True
