"""The time budget of a graceful shutdown, divided among its stages."""

from __future__ import annotations

from dataclasses import dataclass, fields

from synchromesh.durations import FROM_0, refuse_wrong_numbers
from synchromesh.errors import ConfigError

# What is waited for beyond the stages, where something is wrong. A process that was killed: only
# where the kernel holds it, or the fork server that would tell of its end does not answer.
KILLED_WITHIN_S = 1.0
# The fork server: it has nothing to do but to end, and is killed then.
FORK_SERVER_ENDS_WITHIN_S = 1.0
# The link of a process that has ended: a copy that it has left to another one is not waited for.
LINK_ENDS_WITHIN_S = 0.1


@dataclass(frozen=True, slots=True)
class StopBudget:
    """The time bounds of a graceful shutdown's stages; together they stay below `total_s`.

    A system stops from the outside in: the gateway, then its services (what was taken is answered,
    then handlers drain), then the control API, then external services, and last the servers that
    `dev --engine` has started, which all others need. One process that is replaced has nobody to
    wait for, and more time for its own calls.

    Attributes:
        gateway_s: the gateway answers what it has taken.
        answer_s: servers answer what they have taken.
        drain_s: handlers end that nobody waits for at a server.
        control_s: the control API answers.
        telemetry_s: a process sends what is left of its telemetry.
        external_s: an external service ends after SIGTERM.
        engine_s: a server that was started with the system ends in order; 0 where there is none.
        engine_dies_s: the same, ends at once after that; it loses nothing that it acknowledged.
        has_applications: processes of applications end before the services here, each within
            `services_s`.
        unready_s: a process that was not ready ends; it has taken nothing.
        heard_s: for callers to see that an instance is no longer listed.
        replaced_s: a process that is replaced ends after SIGTERM.
        replaced_answer_s: the same as `answer_s` for a service that is replaced.
        replaced_gateway_s: the same as `gateway_s`; longer than the deadline that routes have.
        hurry_s: of any bound, what is left to end once a process is told to wait no longer.

    Raises:
        ConfigError: the stages do not fit.

    Example:
        >>> StopBudget().services_s
        4.5
        >>> StopBudget(answer_s=4.0)
        Traceback (most recent call last):
        synchromesh.errors.ConfigError: a stop may take 10.95 s; make its stages shorter than 10 s
    """

    total_s: float = 10.0
    gateway_s: float = 2.25
    answer_s: float = 3.0
    drain_s: float = 1.5
    control_s: float = 0.5
    telemetry_s: float = 0.2
    external_s: float = 2.0
    engine_s: float = 0.0
    engine_dies_s: float = 0.0
    has_applications: bool = False
    unready_s: float = 0.5
    heard_s: float = 0.1
    replaced_s: float = 9.0
    replaced_answer_s: float = 4.0
    replaced_gateway_s: float = 7.5
    hurry_s: float = 0.5

    def __post_init__(self) -> None:
        times = " ".join(each.name for each in fields(self) if each.name.endswith("_s"))
        refuse_wrong_numbers(self, (FROM_0, times))
        # A process that starts meanwhile is ended before the others.
        stages = (
            self.unready_s, self.gateway_s, self.services_s * (1 + self.has_applications),
            self.control_s, self.telemetry_s, self.external_s, self.engine_s, self.engine_dies_s,
        )  # fmt: skip
        service_s = self.heard_s + self.replaced_answer_s + self.drain_s
        replaced_s = self.hurry_s + self.telemetry_s + max(service_s, self.replaced_gateway_s)
        _check(sum(stages), self.total_s, "a stop", "its stages")
        _check(self.replaced_s, self.total_s, "a process that is replaced", "its bound")
        _check(replaced_s, self.replaced_s, "a process that is replaced", "its stages")

    @property
    def services_s(self) -> float:
        """The time for stopping all services, and the process of each."""
        return self.answer_s + self.drain_s


def budget_beside(*, engines: bool, applications: bool) -> StopBudget:
    """Return the budget of a system by what else ends within the same 10 s.

    Args:
        engines: whether servers were started with the system.
        applications: whether services of this process end after the processes of applications.

    Example:
        >>> budget_beside(engines=True, applications=False).engine_s
        1.5
    """
    if engines and applications:
        return StopBudget(
            gateway_s=1.75, answer_s=1.25, drain_s=0.75, external_s=1.0,
            engine_s=1.5, engine_dies_s=0.4, has_applications=True,
        )  # fmt: skip
    if engines:
        return StopBudget(
            answer_s=2.0, drain_s=1.0, external_s=1.5, engine_s=1.5, engine_dies_s=0.4
        )
    if applications:
        return StopBudget(answer_s=1.5, drain_s=1.0, external_s=1.5, has_applications=True)
    return StopBudget()


def _check(takes_s: float, below_s: float, what: str, shorten: str) -> None:
    if takes_s >= below_s:
        raise ConfigError(
            f"{what} may take {takes_s:g} s; make {shorten} shorter than {below_s:g} s"
        )
