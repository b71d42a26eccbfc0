"""Compiles the branches of an aggregate: what each needs from the path and from the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.calls.signature import Signature
from synchromesh.durations import duration
from synchromesh.errors import ConfigError, ContractError
from synchromesh.gateway.composition import BranchNode, Reference
from synchromesh.gateway.fallbacks import CompiledFallback, Note, read_fallback
from synchromesh.gateway.router import Template
from synchromesh.gateway.routes import Aggregate, Branch
from synchromesh.gateway.shapes import fields_of, fits, is_a, is_text, without_null

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SOURCE = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_PATH = "path"


@dataclass(frozen=True, slots=True)
class CompiledBranch:
    """One branch as the engine runs it.

    Attributes:
        step: what it needs from other branches.
        from_path: by parameter, the place of the path that it comes from.
        timeout_s: bounds it; None for the aggregate's deadline alone.
        stand_in: what answers where it fails; None for nothing.
    """

    operation: Operation[..., Any]
    step: BranchNode
    from_path: Mapping[str, str]
    timeout_s: float | None
    stand_in: CompiledFallback | None


def read_branches(
    aggregate: Aggregate, template: Template, deadline_s: float, note: Note
) -> dict[str, CompiledBranch]:
    """Compile branches, and collect every mistake."""
    if template.method != "GET":
        note(f"an aggregate only reads; write GET, not {template.method}")
    if not any(branch.required for branch in aggregate.branches.values()):
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
        if not _NAME.fullmatch(name) or name == _PATH:
            note(
                f"{name[:40]!r} cannot name a branch; write lower-case letters, digits and _, and "
                'not "path", which is where the places are'
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

    def part(self, deadline_s: float) -> CompiledBranch:
        """Return the branch as the engine runs it."""
        references, from_path = self._read_args()
        return CompiledBranch(
            self._branch.operation,
            BranchNode(references, self._branch.required),
            from_path,
            self._read_timeout(deadline_s),
            read_fallback(self._branch.fallback, self._shapes[self._name].result, self._note),
        )

    def _note(self, mistake: str) -> None:
        self._note_all(f"branch {self._name}: {mistake}")

    def _read_args(self) -> tuple[dict[str, Reference], dict[str, str]]:
        shape, full_name = self._shapes[self._name], self._branch.operation.full_name
        references: dict[str, Reference] = {}
        from_path: dict[str, str] = {}
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
            else:
                self._read_reference(parameter, source, references)
        for missing in _missing(shape, self._branch.args):
            self._note(f"{full_name} needs {missing!r}; say in args where it comes from")
        return references, from_path

    def _read_place(self, parameter: str, source: str, from_path: dict[str, str]) -> None:
        place = source.removeprefix("path.")
        if place not in self._template.places:
            known = ", ".join(f"path.{known}" for known in self._template.places) or "none"
            self._note(f"{source!r} is no place of the path; it has: {known}")
        elif not is_text(self._shapes[self._name].hints[parameter]):
            self._note(f"{parameter!r} is no plain value; a path cannot carry it")
        else:
            from_path[parameter] = place

    def _read_reference(
        self, parameter: str, source: str, references: dict[str, Reference]
    ) -> None:
        other, *fields = source.split(".")
        if other not in self._aggregate.branches:
            known = ", ".join((_PATH, *self._aggregate.branches))
            self._note(f"{source!r} names no branch; there are: {known}")
            return
        references[parameter] = Reference(other, tuple(fields))
        if self._branch.required and not self._aggregate.branches[other].required:
            self._note(f"is required and needs {other}, which is not; make that required too")
        if other not in self._shapes:
            return  # what is wrong there has been said
        found = self._kind_of(source, self._shapes[other].result, fields)
        if found is None:
            return
        kind, may_be_null = found
        target, takes_null = without_null(self._shapes[self._name].hints[parameter])
        if not fits(kind, target):
            self._note(
                f"{source!r} is {_words(kind)} and {parameter!r} of "
                f"{self._branch.operation.full_name} takes {_words(target)}"
            )
        elif may_be_null and not takes_null and self._branch.required:
            self._note(f"is required and {source!r} may be null; there would be nothing to ask for")
        references[parameter] = Reference(other, tuple(fields), takes_null)

    def _kind_of(self, source: str, kind: Any, fields: list[str]) -> tuple[Any, bool] | None:
        kind, may_be_null = without_null(kind)
        for field in fields:
            known = fields_of(kind)
            if known is None or field not in known:
                has = "no fields" if not known else f"the fields {', '.join(known)}"
                self._note(f"{source!r}: there is no {field!r}; {_words(kind)} has {has}")
                return None
            kind, is_null = without_null(known[field])
            may_be_null = may_be_null or is_null
        return kind, may_be_null

    def _read_timeout(self, deadline_s: float) -> float | None:
        if self._branch.timeout is None:
            return None
        timeout_s = self._duration(self._branch.timeout)
        if timeout_s > deadline_s:
            self._note(
                f"its timeout of {self._branch.timeout} is longer than the deadline of the "
                f"aggregate, {self._aggregate.deadline}"
            )
        return timeout_s

    def _duration(self, text: str) -> float:
        try:
            return duration(text)
        except ConfigError as error:
            self._note(error.message)
            return 0.0


def _missing(shape: Signature, args: Mapping[str, str]) -> list[str]:
    parameters = shape.signature.parameters
    return [n for n, p in parameters.items() if p.default is p.empty and n not in args]


def _circle_of(parts: Mapping[str, CompiledBranch]) -> list[str]:
    """Return a cycle of branches that need each other, with its first one at both ends."""
    needs = {
        name: sorted({r.branch for r in part.step.references.values()} & parts.keys())
        for name, part in parts.items()
    }
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


def _words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
