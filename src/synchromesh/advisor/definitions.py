"""What is wrong before anything runs: contracts, routes, sagas, keys. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from synchromesh.advisor.advice import AdviceCase
from synchromesh.advisor.facts import Facts, SagaStepFacts

# Words that name what belongs to a person; a field is looked at word by word.
_PERSONAL = frozenset({
    "birthday", "birthdate", "email", "firstname", "iban", "lastname", "passport", "phone", "ssn",
    "street", "surname",
})  # fmt: skip
_PERSONAL_PAIRS = frozenset({
    ("date", "birth"), ("first", "name"), ("last", "name"), ("full", "name"), ("home", "address"),
    ("postal", "address"), ("tax", "id"),
})  # fmt: skip


def open_commands(facts: Facts) -> Iterator[AdviceCase]:
    """Find commands that anybody may send, as often as they like."""
    for route in facts.routes:
        if route.is_public and not route.is_read and not route.has_rate:
            yield AdviceCase(
                f"{route.name} is public, changes data, and has no rate", (route.name,)
            )


def scopes_for_nothing(facts: Facts) -> Iterator[AdviceCase]:
    """Find keys that may do more than there is to do."""
    asked = {scope for route in facts.routes for scope in route.scopes}
    for key_id, scopes in sorted(facts.keys.items()):
        if unused := sorted(set(scopes) - asked):
            yield AdviceCase(f"key {key_id} has scopes that no route asks for", tuple(unused))


def steps_without_undo(facts: Facts) -> Iterator[AdviceCase]:
    """Find steps before the pivot that change something which nothing takes back."""
    for steps in _sagas(facts).values():
        pivots = [at for at, step in enumerate(steps) if step.is_pivot]
        before = steps[: pivots[0]] if pivots else steps[:-1]
        for step in before:
            if step.changes and not step.has_undo:
                yield AdviceCase(f"{step.saga}: {step.what} is not undone", (step.place,))


def steps_that_refuse_late(facts: Facts) -> Iterator[AdviceCase]:
    """Find steps behind the pivot that may say no, when there is no way back."""
    for steps in _sagas(facts).values():
        is_behind = False
        for step in steps:
            if is_behind and step.refuses:
                no = ", ".join(step.refuses)
                yield AdviceCase(f"{step.saga}: {step.what} may refuse with {no}", (step.place,))
            is_behind = is_behind or step.is_pivot


def personal_fields(facts: Facts) -> Iterator[AdviceCase]:
    """Find public events that tell personal data in plain text."""
    for event in facts.events:
        if told := [name for name in event.fields if _is_personal(name)]:
            yield AdviceCase(f"{event.name} tells {', '.join(told)} in plain text", (event.place,))


def unused_operations(facts: Facts) -> Iterator[AdviceCase]:
    """Find operations that no code, no route and no kept trace has a use for."""
    seen = {span.name for spans in facts.traces for span in spans if span.kind == "call"}
    for each in facts.operations:
        if not each.is_named and each.name not in seen:
            yield AdviceCase(f"nothing calls {each.name}", (each.place,))


def unused_events(facts: Facts) -> Iterator[AdviceCase]:
    """Find public events that no service takes."""
    for each in facts.events:
        if not each.is_taken:
            yield AdviceCase(f"nobody takes {each.name}", (each.place,))


def _sagas(facts: Facts) -> dict[str, list[SagaStepFacts]]:
    found: dict[str, list[SagaStepFacts]] = {}
    for step in facts.steps:
        found.setdefault(step.saga, []).append(step)
    return found


def _is_personal(name: str) -> bool:
    words = name.casefold().split("_")
    pairs = {(one, other) for at, one in enumerate(words) for other in words[at + 1 :]}
    return not _PERSONAL.isdisjoint(words) or not _PERSONAL_PAIRS.isdisjoint(pairs)
