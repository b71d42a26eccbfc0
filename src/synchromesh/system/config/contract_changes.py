"""What a change of contracts breaks for whom: a pure comparison of a release with today's code.

Parts are replaced one by one, so that each new one meets all the others as they were released.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from synchromesh.calls.compatibility import Difference, differences
from synchromesh.calls.description import ContractsOfPart, Described

NEW, GONE, CHANGED = "new", "gone", "changed"

Parts = Mapping[str, ContractsOfPart]


class ContractChange(msgspec.Struct, frozen=True):
    """An operation or event that is not as it was released.

    Attributes:
        name: the operation or event, such as "inventory.reserve".
        what: "new", "gone" or "changed".
        breaks: what no longer fits whoever expects it as it was released, in words.

    Example:
        >>> print(ContractChange("inventory.count", "new"))
        inventory.count is new
    """

    name: str
    what: str
    breaks: tuple[str, ...] = ()

    def __str__(self) -> str:
        fits = ", and fits whoever expects it as it was" if self.what == CHANGED else ""
        return f"{self.name} is {self.what}{'' if self.breaks else fits}"


def changes(released: Parts, today: Parts) -> list[ContractChange]:
    """Return what parts offer otherwise than they did when they were released, by name."""
    found: list[ContractChange] = []
    for part in sorted({*released, *today}):
        before, now = _of(released, part).offers, _of(today, part).offers
        old, new = before.digests, now.digests
        for name in sorted({*old, *new}):
            if old.get(name) == new.get(name):
                continue
            what = NEW if name not in old else GONE if name not in new else CHANGED
            expected = _only(before, name) if what == CHANGED else Described()
            said = differences(expected, now, of=part, by="")
            breaks = tuple(f"{each.where} {each.what}".strip() for each in said)
            found.append(ContractChange(name, what, breaks))
    return found


def breaks(released: Parts, today: Parts) -> list[Difference]:
    """Return what does not fit while parts of today replace the released ones one by one.

    What did not fit among the released ones either is left out.
    """
    before = set(_misfits(released, released))
    found = (*_misfits(today, released), *_misfits(released, today), *_misfits(today, today))
    return [each for each in dict.fromkeys(found) if each not in before]


def _misfits(expecting: Parts, offering: Parts) -> Iterator[Difference]:
    """Yield what some parts expect of others, as far as those do not offer it."""
    for by, part in expecting.items():
        names = {each.partition(".")[0] for each in part.expects.digests}
        for of in sorted(names - {by}):
            yield from differences(part.expects, _of(offering, of).offers, of=of, by=by)


def _of(parts: Parts, name: str) -> ContractsOfPart:
    return parts.get(name, ContractsOfPart())


def _only(described: Described, name: str) -> Described:
    return Described(
        {n: each for n, each in described.operations.items() if n == name},
        {n: each for n, each in described.events.items() if n == name},
    )
