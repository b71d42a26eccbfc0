"""Compiles the branches of an aggregate: what each needs from the path and from the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.calls.signature import Signature
from synchromesh.codec import decode
from synchromesh.durations import duration
from synchromesh.errors import ConfigError, ContractError
from synchromesh.gateway.composition import BranchNode, BranchOutcome, EachNode, Reference
from synchromesh.gateway.fallbacks import CompiledFallback, Note, read_fallback
from synchromesh.gateway.picks import Pick, read_pick
from synchromesh.gateway.router import Template
from synchromesh.gateway.routes import Aggregate, Branch, Each, Static
from synchromesh.gateway.shapes import (
    element_of,
    field_at,
    fits,
    is_a,
    is_text,
    without_null,
    words,
)

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SOURCE = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_PATH = "path"
_EACH = "each"
_AT_MOST_MAX = 1000


@dataclass(frozen=True, slots=True)
class CompiledBranch:
    """One branch as the engine runs it.

    Attributes:
        step: what it needs from other branches.
        from_path: by parameter, the place of the path that it comes from.
        operation: what is asked; it takes null for an answer where `empty` is given.
        timeout_s: bounds it; None for the aggregate's deadline alone.
        stand_in: what answers where it fails; None for nothing.
        pick: what is shown of an answer; None for all.
        empty: the JSON of what an answer without content stands for; None for nothing.
        may_be_absent: whether there may be nothing to ask for.
    """

    operation: Operation[..., Any]
    step: BranchNode
    from_path: Mapping[str, str]
    timeout_s: float | None
    stand_in: CompiledFallback | None
    pick: Pick | None = None
    empty: bytes | None = None
    may_be_absent: bool = False

    def filled(self, outcome: BranchOutcome) -> BranchOutcome:
        """Return an outcome with what an answer without content stands for in its place."""
        if self.empty is None or outcome.value is not None or not outcome.has_data:
            return outcome
        value = decode(self.empty, self.operation.shape.result)
        return msgspec.structs.replace(outcome, value=value)


def read_branches(
    aggregate: Aggregate, template: Template, deadline_s: float, note: Note
) -> dict[str, CompiledBranch]:
    """Compile branches, and collect every mistake."""
    if template.method != "GET":
        note(f"an aggregate only reads; write GET, not {template.method}")
    is_whole = aggregate.all_or_nothing
    if not is_a(is_whole, bool):
        note(f"all_or_nothing is {is_whole!r}; write True or False")
    if not any(branch.required or is_whole for branch in aggregate.branches.values()):
        note("no branch is required: with all of them down it would answer 200 with nothing")
    shapes = _shapes(aggregate, note)
    parts: dict[str, CompiledBranch] = {}
    for name, branch in aggregate.branches.items():
        if name in shapes:
            reader = _BranchReader(name, branch, aggregate, template, shapes, note)
            parts[name] = reader.part(deadline_s)
    used = {place for part in parts.values() for place in part.from_path.values()}
    unused = [place for place in template.places if place not in used]
    if unused and len(parts) == len(aggregate.branches):
        note(f"{{{unused[0]}}} is used by no branch; name it in args as path.{unused[0]}")
    circle = _circle_of(parts)
    if circle:
        note(f"the branches need each other in a circle: {' -> '.join(circle)}")
    return parts


def _shapes(aggregate: Aggregate, note: Note) -> dict[str, Signature]:
    shapes: dict[str, Signature] = {}
    for name, branch in aggregate.branches.items():
        if not _NAME.fullmatch(name) or name in (_PATH, _EACH):
            note(
                f"{name[:40]!r} cannot name a branch; write lower-case letters, digits and _, and "
                'not "path", which is where the places are, nor "each", which is an element'
            )
        elif not is_a(branch.operation, Operation):
            note(f"branch {name} leads to no operation; name one of a contract")
        elif branch.operation.is_command:
            note(
                f"branch {name} is the command {branch.operation.full_name}; an aggregate only "
                "reads, and a fallback must never stand for a write"
            )
        else:
            try:
                shapes[name] = branch.operation.shape
            except ContractError as error:
                note(f"branch {name}: {error.message}")
    return shapes


class _BranchReader:
    """Compiles one branch, and collects its mistakes."""

    def __init__(
        self,
        name: str,
        branch: Branch,
        aggregate: Aggregate,
        template: Template,
        shapes: Mapping[str, Signature],
        note: Note,
    ) -> None:
        self._name = name
        self._branch = branch
        self._aggregate = aggregate
        self._template = template
        self._shapes = shapes
        self._note_all = note
        self._may_be_absent = False

    def part(self, deadline_s: float) -> CompiledBranch:
        """Return the branch as the engine runs it."""
        branch, result = self._branch, self._shapes[self._name].result
        source, element = self._read_each()
        references, from_path, from_element = self._read_args(element)
        each = None
        if source is not None:
            assert branch.each is not None
            is_cut = branch.each.beyond == "cut"
            each = EachNode(
                source, from_element, branch.each.at_most, branch.each.at_once, is_cut=is_cut
            )
        if self._aggregate.all_or_nothing and branch.fallback is not None:
            self._note("has a fallback, and the aggregate is all_or_nothing; drop one of the two")
        empty = self._read_empty(result)
        is_required = branch.required or self._aggregate.all_or_nothing
        return CompiledBranch(
            branch.operation if empty is None else branch.operation.or_null(),
            BranchNode(references, is_required, each),
            from_path,
            self._read_timeout(deadline_s),
            read_fallback(branch.fallback, result, self._note),
            read_pick(branch.pick, result, self._note),
            empty,
            self._may_be_absent,
        )

    def _read_empty(self, result: Any) -> bytes | None:
        """Return the JSON of what an answer without content stands for; None for nothing."""
        if self._branch.empty is None:
            return None
        if not is_a(self._branch.empty, Static):
            self._note("empty is no value; write one such as empty=Static([])")
            return None
        read = read_fallback(self._branch.empty, result, lambda told: self._note(f"empty: {told}"))
        return None if read is None else read.static

    def _read_each(self) -> tuple[Reference | None, Any]:
        """Return the array that the branch is over, and the type of its elements; None for none."""
        each = self._branch.each
        if each is None:
            return None, None
        if not is_a(each, Each) or not is_a(each.of, str):
            self._note('each names no array; write such as each=Each("order.lines", at_most=50)')
            return None, None
        self._check_each(each)
        if not _SOURCE.fullmatch(each.of) or each.of.split(".")[0] in (_PATH, _EACH):
            self._note(f'{each.of[:60]!r} is no array; write such as "order.lines"')
            return None, None
        other, *fields = each.of.split(".")
        if not self._is_there(each.of, other):
            return None, None
        found = field_at(self._shapes[other].result, fields)
        if isinstance(found, str):
            self._note(f"{each.of!r}: {found}")
            return None, None
        kind, may_be_null = found
        element = element_of(kind)
        if element is None:
            self._note(f"{each.of!r} is {words(kind)}; each takes a list, a set or a tuple[T, ...]")
            return None, None
        if may_be_null:
            self._may_be_absent = True
            if self._branch.required:
                self._note(f"is required and {each.of!r} may be null; there would be no array")
        return Reference(other, tuple(fields)), element

    def _check_each(self, each: Each) -> None:
        for name in ("at_most", "at_once"):
            number = getattr(each, name)
            if not is_a(number, int) or not 1 <= number <= _AT_MOST_MAX:
                self._note(f"each is {name} {number!r}; write 1 to {_AT_MOST_MAX}")
        if each.beyond not in ("fail", "cut"):
            self._note(f'each is {each.beyond!r} beyond at_most; write "fail" or "cut"')
        elif each.beyond == "cut" and self._aggregate.all_or_nothing:
            self._note("each cuts a longer array, and the aggregate is all_or_nothing")

    def _is_there(self, source: str, other: str) -> bool:
        """Tell whether another branch can be taken from, and note why not."""
        branches = self._aggregate.branches
        if other not in branches:
            known = ", ".join((_PATH, *branches))
            self._note(f"{source!r} names no branch; there are: {known}")
            return False
        if branches[other].each is not None:
            self._note(
                f"{source!r} is of a branch that has an answer for each of an array; no other can "
                "take from it"
            )
            return False
        is_whole = self._aggregate.all_or_nothing
        if self._branch.required and not (branches[other].required or is_whole):
            self._note(f"is required and needs {other}, which is not; make that required too")
        return other in self._shapes  # else what is wrong there has been said

    def _note(self, mistake: str) -> None:
        self._note_all(f"branch {self._name}: {mistake}")

    def _read_args(
        self, element: Any
    ) -> tuple[dict[str, Reference], dict[str, str], dict[str, Reference]]:
        """Return what comes from other branches, from the path, and from an element of that type.

        `element` is None where the branch is over no array.
        """
        shape, full_name = self._shapes[self._name], self._branch.operation.full_name
        references: dict[str, Reference] = {}
        from_path: dict[str, str] = {}
        from_element: dict[str, Reference] = {}
        for parameter, source in self._branch.args.items():
            if parameter not in shape.hints:
                known = ", ".join(shape.hints) or "none"
                self._note(f"{parameter!r} is no parameter of {full_name}; it has: {known}")
            elif not _SOURCE.fullmatch(source):
                self._note(
                    f'{source[:60]!r} is no source of {parameter!r}; write "path.id" or '
                    '"machine.order_id"'
                )
            elif source.split(".")[0] == _PATH:
                self._read_place(parameter, source, from_path)
            elif source.split(".")[0] == _EACH:
                if self._branch.each is None:
                    self._note(f"{source!r} is of an element; say by each=Each(...) of which array")
                elif element is not None:
                    self._read_kind(parameter, source, element, from_element)
            elif self._is_there(source, source.split(".")[0]):
                found = self._shapes[source.split(".")[0]].result
                self._read_kind(parameter, source, found, references)
        if self._branch.each is not None and not from_element and element is not None:
            self._note('asks the same for each element; take something from it, such as "each.id"')
        for missing in _missing(shape, self._branch.args):
            self._note(f"{full_name} needs {missing!r}; say in args where it comes from")
        return references, from_path, from_element

    def _read_place(self, parameter: str, source: str, from_path: dict[str, str]) -> None:
        place = source.removeprefix("path.")
        if place not in self._template.places:
            known = ", ".join(f"path.{known}" for known in self._template.places) or "none"
            self._note(f"{source!r} is no place of the path; it has: {known}")
        elif not is_text(self._shapes[self._name].hints[parameter]):
            self._note(f"{parameter!r} is no plain value; a path cannot carry it")
        else:
            from_path[parameter] = place

    def _read_kind(
        self, parameter: str, source: str, kind: Any, references: dict[str, Reference]
    ) -> None:
        """Read an argument that comes from a value of a type."""
        other, *fields = source.split(".")
        target, takes_null = without_null(self._shapes[self._name].hints[parameter])
        references[parameter] = Reference(other, tuple(fields), takes_null)
        found = field_at(kind, fields)
        if isinstance(found, str):
            self._note(f"{source!r}: {found}")
            return
        kind, may_be_null = found
        if not fits(kind, target):
            self._note(
                f"{source!r} is {words(kind)} and {parameter!r} of "
                f"{self._branch.operation.full_name} takes {words(target)}"
            )
        elif may_be_null and not takes_null:
            self._may_be_absent = True
            if self._branch.required:
                self._note(
                    f"is required and {source!r} may be null; there would be nothing to ask for"
                )

    def _read_timeout(self, deadline_s: float) -> float | None:
        if self._branch.timeout is None:
            return None
        try:
            timeout_s = duration(self._branch.timeout, "timeout")
        except ConfigError as error:
            self._note(f"its {error.message}")
            return 0.0
        if timeout_s > deadline_s:
            self._note(
                f"its timeout of {self._branch.timeout} is longer than the deadline of the "
                f"aggregate, {self._aggregate.deadline}"
            )
        return timeout_s


def _missing(shape: Signature, args: Mapping[str, str]) -> list[str]:
    parameters = shape.signature.parameters
    return [n for n, p in parameters.items() if p.default is p.empty and n not in args]


def _circle_of(parts: Mapping[str, CompiledBranch]) -> list[str]:
    """Return a cycle of branches that need each other, with its first one at both ends."""
    needs = {name: sorted(set(part.step.needs) & parts.keys()) for name, part in parts.items()}
    has_changed = True
    while has_changed:
        free = [name for name, others in needs.items() if not needs.keys() & set(others)]
        has_changed = bool(free)
        for name in free:
            del needs[name]
    if not needs:
        return []
    # Each of those that are left needs another one of them, so that the way comes round.
    way = [next(iter(needs))]
    while way[-1] not in way[:-1]:
        way.append(next(other for other in needs[way[-1]] if other in needs))
    return way[way.index(way[-1]) :]
