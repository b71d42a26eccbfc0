"""Faults that people put in force on purpose: which attempts of which calls they strike.

A fault is put on a *target*: a callee service, such as "billing", one instance of it, such as
"quoting#2", or one edge to either, such as "orders:billing". It strikes at the caller, before
anything is sent, so that it works for services that are not ours too, and on every transport. An
instance's own fault goes before its service's, and for each of them an edge's before its callee's.
"""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.chance import Chance
from synchromesh.durations import FROM_0, SHARE, is_number
from synchromesh.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: attempts fail at a rate, are delayed, or are never answered.

    An attempt waits `latency_s` first; then a share of `errors` fails, and what is left hangs where
    `is_stall`, and is sent where not.

    Attributes:
        errors: the share of attempts that fail, 0 to 1.
        latency_s: how much later an attempt is sent.
        is_stall: whether nothing answers until the caller gives up.

    Raises:
        BadRequest: a value is outside its range, or there is none.

    Example:
        >>> print(Fault(errors=0.5, latency_s=0.3))
        0.3 s late, 50% errors
    """

    errors: float = 0.0
    latency_s: float = 0.0
    is_stall: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.errors) or not SHARE.has(self.errors):
            raise BadRequest(f"a fault fails {self.errors!r} of all attempts; make it 0 to 1")
        if not is_number(self.latency_s) or not FROM_0.has(self.latency_s):
            raise BadRequest(f"a fault is {self.latency_s!r} s late; make it 0 or more")
        if not (self.errors or self.latency_s or self.is_stall):
            raise BadRequest("a fault does nothing; give it errors, latency or a stall")

    def __str__(self) -> str:
        suffered = (
            f"{self.latency_s:g} s late" if self.latency_s else "",
            f"{self.errors * 100:g}% errors" if self.errors else "",
            "stall" if self.is_stall else "",
        )
        return ", ".join(filter(None, suffered))


@dataclass(frozen=True, slots=True)
class Strike:
    """The effect of a fault on one attempt: a delay, and then an error, a stall, or nothing."""

    why: str
    latency_s: float
    is_error: bool
    is_stall: bool


@dataclass(slots=True)
class Rule:
    """One fault in force; `until_s` is on the loop's clock, None until it is healed.

    `struck` counts the attempts that it struck.
    """

    target: str
    fault: Fault
    until_s: float | None = None
    struck: int = 0


class FaultTable:
    """Holds the faults in force, one a target, and decides which attempts they strike.

    Args:
        rules_max: how many targets may have a fault at once.

    Example:
        >>> class Certain:
        ...     def random(self) -> float:
        ...         return 0.0
        >>> table = FaultTable()
        >>> _ = table.put("billing", Fault(errors=1.0), now=0.0, until_s=20.0)
        >>> table.strike("orders", "billing", now=1.0, rng=Certain()).why
        '100% errors at billing'
        >>> table.strike("orders", "billing", now=20.0, rng=Certain()) is None
        True
        >>> table
        <FaultTable 0 in force, 1 struck>
    """

    def __init__(self, *, rules_max: int = 64) -> None:
        self._rules_max = rules_max
        self.rules: dict[str, Rule] = {}
        # All attempts that were ever struck, those of faults that are healed too.
        self.struck = 0

    @property
    def is_empty(self) -> bool:
        """True while no attempt can be struck; the one look that a call costs without faults."""
        return not self.rules

    def put(self, target: str, fault: Fault, *, now: float, until_s: float | None = None) -> Rule:
        """Put a fault in force on a target; one that was there is replaced.

        Raises:
            BadRequest: as many targets have a fault as may.
        """
        self._sweep(now)
        if target not in self.rules and len(self.rules) >= self._rules_max:
            raise BadRequest(f"{self._rules_max} faults are in force already; heal one first")
        rule = self.rules[target] = Rule(target, fault, until_s)
        return rule

    def heal(self, target: str | None, *, now: float) -> list[Rule]:
        """End the fault of one target, or with None all; return those that were in force."""
        self._sweep(now)
        targets = list(self.rules) if target is None else [target]
        return [self.rules.pop(each) for each in targets if each in self.rules]

    def in_force(self, now: float) -> list[Rule]:
        """Return the faults in force, by target."""
        self._sweep(now)
        return [self.rules[target] for target in sorted(self.rules)]

    def strike(
        self, caller: str, callee: str, *, now: float, rng: Chance, instance: str = ""
    ) -> Strike | None:
        """Say what the next attempt of an edge suffers; None where it is spared.

        `instance` is what of the callee it goes to, where that is known.
        """
        self._sweep(now)
        targets = (f"{caller}:{instance}", instance, f"{caller}:{callee}", callee)
        rule = next((self.rules[each] for each in targets if each in self.rules), None)
        if rule is None:
            return None
        fault = rule.fault
        is_error = fault.errors > 0 and rng.random() < fault.errors
        if not (is_error or fault.latency_s or fault.is_stall):
            return None
        rule.struck += 1
        self.struck += 1
        why = f"{fault} at {rule.target}"
        return Strike(why, fault.latency_s, is_error, fault.is_stall and not is_error)

    def __repr__(self) -> str:
        return f"<FaultTable {len(self.rules)} in force, {self.struck} struck>"

    def _sweep(self, now: float) -> None:
        over = [
            target
            for target, rule in self.rules.items()
            if rule.until_s is not None and now >= rule.until_s
        ]
        for target in over:
            del self.rules[target]
