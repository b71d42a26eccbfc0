"""The time budget of a graceful shutdown, divided among its stages."""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StopBudget:
    """The time bounds of a graceful shutdown's stages; together they stay below `total_s`.

    A system stops from the outside in: the gateway, then its services (what was taken is answered,
    then handlers drain), then the control API, then external services. One process that is replaced
    has nobody to wait for, and more time for its own calls.

    Attributes:
        gateway_s: the gateway answers what it has taken.
        answer_s: servers answer what they have taken.
        drain_s: handlers end that nobody waits for at a server.
        control_s: the control API answers.
        telemetry_s: a process sends what is left of its telemetry.
        external_s: an external service ends after SIGTERM.
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
    unready_s: float = 0.5
    heard_s: float = 0.1
    replaced_s: float = 9.0
    replaced_answer_s: float = 4.0
    replaced_gateway_s: float = 7.5
    hurry_s: float = 0.5

    def __post_init__(self) -> None:
        # A process that starts meanwhile is ended before the others.
        stages = (
            self.unready_s, self.gateway_s, self.services_s, self.control_s, self.telemetry_s,
            self.external_s,
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


def _check(takes_s: float, below_s: float, what: str, shorten: str) -> None:
    if takes_s >= below_s:
        raise ConfigError(
            f"{what} may take {takes_s:g} s; make {shorten} shorter than {below_s:g} s"
        )
