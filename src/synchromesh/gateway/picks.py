"""Which fields of a branch's answer an aggregate shows, and under which names. A pure machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from synchromesh.gateway.composition import value_at
from synchromesh.gateway.shapes import element_of, field_at, is_a, without_null

Note: TypeAlias = Callable[[str], None]

_SHOWN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ARRAYS: Final = (list, set, frozenset)


@dataclass(frozen=True, slots=True)
class Picked:
    """A field that is shown: where it is, its type, and whether null may stand there."""

    fields: tuple[str, ...]
    kind: Any
    may_be_null: bool


Pick: TypeAlias = Mapping[str, Picked]


def read_pick(
    pick: Collection[str] | Mapping[str, str] | None, result: Any, note: Note
) -> Pick | None:
    """Compile what is picked of answers of a type, None for all, and collect its mistakes.

    Example:
        >>> import msgspec
        >>> class Line(msgspec.Struct):
        ...     sku: str
        >>> read_pick({"article": "sku"}, list[Line], print)
        {'article': Picked(fields=('sku',), kind=<class 'str'>, may_be_null=False)}
    """
    if pick is None:
        return None
    if is_a(pick, str):
        note(f'pick is a text; write names of fields, such as ("{str(pick)[:40]}",)')
        return None
    if not is_a(pick, Collection):
        note('pick names no fields; write such as ("id", "sku") or {"number": "id"}')
        return None
    sources = pick if isinstance(pick, Mapping) else {name: name for name in pick}
    if not sources:
        note("pick names no field; drop it to show all of them")
    kind = without_null(result)[0]
    while (element := element_of(kind)) is not None:
        kind = without_null(element)[0]
    picked: dict[str, Picked] = {}
    for shown, source in sources.items():
        if not is_a(shown, str) or not is_a(source, str) or not _SHOWN.fullmatch(shown):
            note(
                f"pick shows {str(source)[:40]!r} as {str(shown)[:40]!r}; write names of fields, "
                'and for one that is further in or renamed a mapping, such as {"city": "site.city"}'
            )
            continue
        fields = tuple(source.split("."))
        found = field_at(kind, fields)
        if isinstance(found, str):
            note(f"pick takes {source[:60]!r}: {found}")
        else:
            picked[shown] = Picked(fields, *found)
    return picked


def shown(pick: Pick, value: object) -> object:
    """Return what is shown of an answer; of an array what is shown of each element.

    Example:
        >>> from typing import NamedTuple
        >>> class Line(NamedTuple):
        ...     sku: str
        ...     qty: int
        >>> shown({"article": Picked(("sku",), str, False)}, [Line("SX90", 2), None])
        [{'article': 'SX90'}, None]
    """
    if value is None:
        return None
    if isinstance(value, _ARRAYS) or type(value) is tuple:
        return [shown(pick, each) for each in value]
    return {name: value_at(value, each.fields) for name, each in pick.items()}
