"""Fault injection into a running system: by service or edge, and healing it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable

import msgspec

from synchromesh.calls import Fault, FaultTable, Rule
from synchromesh.clock import loop_now
from synchromesh.codec import decode
from synchromesh.durations import duration
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.spelling import nearest
from synchromesh.system.config.parts import parts_of
from synchromesh.system.config.schema import CLIENT, GATEWAY, SystemConfig
from synchromesh.system.control.status_parts import FaultsStatus, FaultStatus
from synchromesh.system.supervise.messages import ActiveFault

ALL = "all"

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%")
_log = logging.getLogger("synchromesh.system")


class BreakRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /faults`: a fault on a service or an edge, as the command line has it.

    Attributes:
        target: "billing", an instance, "quoting#2", or an edge to either, "orders:billing".
        errors: the share of attempts that fail, such as "100%"; "" for none.
        latency: how much later they are sent, such as "300ms"; "" for not at all.
        stall: whether nothing answers.
        duration: in JSON `for`: how long it is in force, such as "20s"; "" until it is healed.
        who, why: asked for it, and why; "" where it was not said.
    """

    target: str
    errors: str = ""
    latency: str = ""
    stall: bool = False
    duration: str = msgspec.field(default="", name="for")
    who: str = ""
    why: str = ""


class HealRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /faults/heal`: which fault ends; by default all do. `who` asks, and `why`."""

    target: str = ALL
    who: str = ""
    why: str = ""


class FaultInjector:
    """Injects faults into a system's services and edges, heals and reports them.

    Args:
        table: the faults in force, which the callers of the system look at.
        callers: who calls: the services, and the clients that are part of the system.
        callees: who is called: the services, their instances, and the external ones.

    Attributes:
        elsewhere: returns the instances that run on other hosts.
    """

    def __init__(
        self, table: FaultTable, *, callers: Collection[str], callees: Collection[str]
    ) -> None:
        self._table = table
        self._callers = callers
        self._callees = callees
        # Who has put what stands at a target in force, and why.
        self._said: dict[str, tuple[str, str]] = {}
        self.elsewhere: Callable[[], Collection[str]] = tuple

    @property
    def callers(self) -> Collection[str]:
        """All callers: the services, and the clients that are part of the system."""
        return self._callers

    def act(self, body: bytes, *, is_heal: bool) -> tuple[BreakRequest | HealRequest, object]:
        """Do what the body of a request asks for; return the request, and what is answered.

        Raises:
            BadRequest: as `break_on_purpose` and `heal` do.
        """
        if not is_heal:
            asked = decode(body, BreakRequest)
            return asked, self.break_on_purpose(asked)
        healing = decode(body, HealRequest)
        healed = self.heal(healing)
        return healing, {"healed": healed, **msgspec.structs.asdict(self.status())}

    def break_on_purpose(self, wanted: BreakRequest) -> FaultStatus:
        """Inject a fault; one on the same target is replaced.

        Raises:
            BadRequest: there is no such service or edge, a value is wrong, or there are too many.
        """
        self.check(wanted.target)
        now = loop_now()
        try:
            latency_s = duration(wanted.latency, "latency") if wanted.latency else 0.0
            for_s = duration(wanted.duration, "for") if wanted.duration else None
        except ConfigError as error:
            raise BadRequest(error.message) from error
        fault = Fault(_share(wanted.errors) if wanted.errors else 0.0, latency_s, wanted.stall)
        until_s = None if for_s is None else now + for_s
        rule = self._table.put(wanted.target, fault, now=now, until_s=until_s)
        self._said[rule.target] = (wanted.who, wanted.why)
        said = {"who": wanted.who, "why": wanted.why}
        _log.info("broken on purpose: %s at %s", fault, rule.target, extra=said)
        return self._shown(rule, now)

    def heal(self, wanted: HealRequest) -> list[FaultStatus]:
        """Remove one fault or all; return those that were in force.

        Raises:
            BadRequest: there is no such service or edge.
        """
        if wanted.target != ALL:
            self.check(wanted.target)
        now = loop_now()
        healed = self._table.heal(None if wanted.target == ALL else wanted.target, now=now)
        said = {"who": wanted.who, "why": wanted.why}
        for rule in healed:
            _log.info("healed: %s at %s", rule.fault, rule.target, extra=said)
        return [self._shown(rule, now) for rule in healed]

    def status(self) -> FaultsStatus:
        """Return the faults in force, and how many attempts faults have ever struck."""
        now = loop_now()
        return FaultsStatus(
            [self._shown(rule, now) for rule in self._table.in_force(now)], self._table.struck
        )

    def standing(self, *, wall_us: int) -> tuple[ActiveFault, ...]:
        """Return the faults in force for `resume` in another process; `wall_us` is now."""
        now = loop_now()
        return tuple(
            ActiveFault(
                rule.target,
                rule.fault.errors,
                rule.fault.latency_s,
                rule.fault.is_stall,
                None if rule.until_s is None else wall_us + round((rule.until_s - now) * 1e6),
                *self._said.get(rule.target, ("", "")),
            )
            for rule in self._table.in_force(now)
        )

    def resume(self, standing: Iterable[ActiveFault], *, wall_us: int) -> None:
        """Put the faults of another process in force, each until its original end."""
        now = loop_now()
        for each in standing:
            fault = Fault(each.errors, each.latency_s, each.is_stall)
            left_us = None if each.until_us is None else each.until_us - wall_us
            until_s = None if left_us is None else now + left_us / 1e6
            self._table.put(each.target, fault, now=now, until_s=until_s)
            self._said[each.target] = (each.who, each.why)

    def _shown(self, rule: Rule, now: float) -> FaultStatus:
        who, why = self._said.get(rule.target, ("", ""))
        return FaultStatus(
            target=rule.target,
            what=str(rule.fault),
            errors=rule.fault.errors,
            latency_s=rule.fault.latency_s,
            is_stall=rule.fault.is_stall,
            left_s=None if rule.until_s is None else round(rule.until_s - now, 3),
            struck=rule.struck,
            who=who,
            why=why,
        )

    def check(self, target: str) -> None:
        """Raise `BadRequest` where there is no such service or edge."""
        caller, colon, callee = target.partition(":")
        if colon:
            _check_name(caller, self._callers, "caller", target)
        else:
            callee = caller
        _check_name(callee, (*self._callees, *self.elsewhere()), "service", target)


def faults_of(config: SystemConfig, table: FaultTable) -> FaultInjector:
    """Return the fault injector of a configured system."""
    services = tuple(config.services)
    clients = (CLIENT, GATEWAY) if config.gateway.app else (CLIENT,)
    instances = [part.instance for name in services for part in parts_of(config, name)]
    instances += [each for name, own in config.external.items() for each in own.instances(name)]
    return FaultInjector(
        table, callers=(*services, *clients), callees=(*services, *instances, *config.external)
    )


def _check_name(name: str, known: Collection[str], what: str, target: str) -> None:
    if name in known:
        return
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(sorted(known))}"
    where = f" in {target!r}" if name != target else ""
    raise BadRequest(f"there is no {what} {name!r}{where}; {hint}")


def _share(text: str) -> float:
    matched = _PERCENT.fullmatch(text)
    share = float(matched[1]) / 100 if matched else 0.0
    if not 0 < share <= 1:
        raise BadRequest(f'{text[:40]!r} is not an error rate; write "100%" or less, above "0%"')
    return share
