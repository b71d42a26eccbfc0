"""The schema of `synchromesh.toml`: which services a system has, where, and how edges differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, cast

import msgspec

from synchromesh.calls import OperationPolicy
from synchromesh.discovery import BalancerOptions
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.resilience import (
    AdaptiveLimitOptions,
    BreakerOptions,
    BudgetOptions,
    HedgeOptions,
    LimitOptions,
    Policy,
    RetryOptions,
)
from synchromesh.system.config.admin_section import AdminSection
from synchromesh.system.config.advice_section import AdviceSection
from synchromesh.system.config.engine_section import EngineSection
from synchromesh.system.config.external_section import ExternalSection
from synchromesh.system.config.gateway_section import GatewaySection
from synchromesh.system.config.layers import Secret
from synchromesh.system.config.sagas_section import SagasSection
from synchromesh.system.config.telemetry_section import TelemetrySection
from synchromesh.system.config.tls_sections import SystemTlsSection

FILE_NAME = "synchromesh.toml"
# The names of those callers that are no services.
GATEWAY = "gateway"
CLIENT = "control"
# Whose edges those of clients from outside are.
OUTSIDE = "client"
QUANTILES = ("p90", "p95", "p99")
BALANCERS = ("peak_ewma", "round_robin")
REPLICAS_MAX = 64


class SystemSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[system]`: its name, where its services listen, and the event loop that runs them.

    Attributes:
        name: what messages and `status` call it.
        host: the address that services and the gateway listen on; the control socket is always on
            loopback.
        advertise: the host name or address by which processes on other hosts reach the services of
            this one; "" is `host`.
        node: tells instances of this host from those of the same name on others, as in
            "quoting#1@NODE"; "" where all run on one. `synchromesh run` takes the host's own name.
        control_port: the port of the control socket; 0 takes any free one.
        loop: the event loop: "auto" is uvloop where the extra `fast` is installed, and asyncio's
            own elsewhere; "uvloop" needs the extra.
        key: a reference to the key that signs every hop: "env:NAME" or "file:PATH", at least 32
            bytes as hex or base64. "" has one made in the run directory.
        accepted_key: a reference to another key, which is accepted beside `key` while that is
            changed; "" for none.
        hang: with `--split`, for how long the event loop of a process may answer nothing until the
            process is replaced; 1 s or more.
        on_failure: what a part does that fails too often while the system runs: with "continue" it
            is given up and tried again after growing pauses, and the others go on; with "stop" it
            ends the system, with exit code 3.
        tls: what services on several hosts prove themselves by to each other, by TLS; both sides
            do.
        joined: the services that other processes answer for, by `synchromesh.asgi.join` or by HTTP.
    """

    name: str
    host: str = "127.0.0.1"
    advertise: str = ""
    node: str = ""
    control_port: int = 0
    loop: Literal["auto", "asyncio", "uvloop"] = "auto"
    key: Secret = ""
    accepted_key: Secret = ""
    hang: str = "30s"
    on_failure: Literal["continue", "stop"] = "continue"
    tls: SystemTlsSection = SystemTlsSection()
    joined: tuple[str, ...] = ()


class ServiceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[services.NAME]`: a service of this system.

    Attributes:
        app: where its definition is: "module:attribute", from this folder. It may be an existing
            ASGI application, too, such as a FastAPI one, which a process of its own runs.
        port: its HTTP port; 0 takes any free one.
        pages_max: bounds its database, in pages of 4096 bytes; 0 sets no bound.
        in_flight: how many calls it works on at once; each operation finds its own limit below.
        waiting: how many more may wait for a place, for each operation; further ones are shed.
        replicas: how many instances run, 1 to 64, on any free port each; more than one of a service
            that writes only on PostgreSQL.
        sagas: how many sagas it has at work at once, and how many more are queued.
        server: which server runs an ASGI application; "auto" takes uvicorn where it is installed,
            else granian.
    """

    app: str
    port: int = 0
    pages_max: int = 0
    in_flight: int = 1000
    waiting: int = 1000
    replicas: int = 1
    sagas: SagasSection = SagasSection()
    server: Literal["auto", "uvicorn", "granian"] = "auto"


class RetrySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`retry = {...}` of a policy: how often a call is attempted.

    Attributes:
        attempts: attempts in all, the first one too; 1 is no retry.
    """

    attempts: int = 3

    def compile(self) -> RetryOptions:
        """Return the options that the section describes. Raises ConfigError for no attempt."""
        if self.attempts < 1:
            raise ConfigError(f"attempts = {self.attempts}; make it 1 (no retry) or more")
        return RetryOptions(attempts_max=self.attempts)


class BudgetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`budget = {...}` of a policy: which share of the edge's calls may be retries or hedges.

    Attributes:
        ratio: those that are allowed for each call, 0 to 1.
        floor: those that are allowed in a second, however few the calls.
    """

    ratio: float = 0.2
    floor: float = 1.0

    def compile(self) -> BudgetOptions:
        """Return the options that the section describes.

        Raises:
            ConfigError: a number is out of its range.
        """
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio = {self.ratio:g}; make it a number from 0 to 1")
        if not self.floor >= 0:
            raise ConfigError(f"floor = {self.floor:g}; make it 0 or more")
        return BudgetOptions(ratio=self.ratio, floor_per_s=self.floor)


class LimitSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`limit = {...}` of a policy: the bulkhead of the edge; further calls are shed at the caller.

    Left out, the limit finds itself, by how much longer answers take than usual.

    Attributes:
        in_flight: how many calls run at once, fixed by hand.
        waiting: how many more may wait for a place; left out it is 0 for a fixed limit, and else
            1000.
        least: the least that a limit which finds itself may come to.
        most: the most.
    """

    in_flight: int | None = None
    waiting: int | None = None
    least: int = 4
    most: int = 1000

    def compile(self) -> LimitOptions | AdaptiveLimitOptions:
        """Return the options that the section describes.

        Raises:
            ConfigError: a number is out of its range, or the limit is both fixed and not.
        """
        if self.waiting is not None and self.waiting < 0:
            raise ConfigError(f"waiting = {self.waiting}; make it 0 or more")
        if self.in_flight is not None:
            return self._fixed(self.in_flight)
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"least = {self.least}, and most = {self.most}; make least 1 or more, and most no "
                "less than that"
            )
        found = AdaptiveLimitOptions()
        return AdaptiveLimitOptions(
            initial=min(max(found.initial, self.least), self.most),
            limit_min=self.least,
            limit_max=self.most,
            queue_max=found.queue_max if self.waiting is None else self.waiting,
        )

    def _fixed(self, in_flight: int) -> LimitOptions:
        if in_flight < 1:
            raise ConfigError(
                f"in_flight = {in_flight}, which would send nothing; make it 1 or more, or leave "
                "it out, and the limit finds itself"
            )
        if (self.least, self.most) != (LimitSection().least, LimitSection().most):
            raise ConfigError(
                f"in_flight = {in_flight} fixes the limit, and least and most bound one that finds "
                "itself; leave out either"
            )
        return LimitOptions(in_flight, self.waiting or 0)


class BreakerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`breaker = {...}` of a policy: the circuit breaker of the edge.

    Attributes:
        window: how far back outcomes count.
        minimum_calls: fewer outcomes in the window never open it.
        failure_rate: the share of failures in the window that opens it, 0 to 1.
        open_for: how long it stays open: "SHORTEST..LONGEST"; it doubles with each failed probe.
        probes: how many calls may be under way at once at the end of the ramp, which begins with
            one; when as many more have succeeded, it closes.
        ramp: the ramp ends so long after its first success, however few the calls, unless one
            failed.
    """

    window: str = "10s"
    minimum_calls: int = 10
    failure_rate: float = 0.5
    open_for: str = "250ms..700ms"
    probes: int = 32
    ramp: str = "1s"

    def compile(self) -> BreakerOptions:
        """Return the options that the section describes.

        Raises:
            ConfigError: a number is out of its range, or a text is no duration.
        """
        if not 0 < self.failure_rate <= 1:
            raise ConfigError(
                f"failure_rate = {self.failure_rate:g}; make it a number above 0 and at most 1"
            )
        for key, count in (("minimum_calls", self.minimum_calls), ("probes", self.probes)):
            if count < 1:
                raise ConfigError(f"{key} = {count}; make it 1 or more")
        open_for_s, open_for_max_s = self._open_for_s()
        return BreakerOptions(
            window_s=duration(self.window, "window"),
            minimum_calls=self.minimum_calls,
            failure_rate=self.failure_rate,
            open_for_s=open_for_s,
            open_for_max_s=open_for_max_s,
            probes_max=self.probes,
            ramp_s=duration(self.ramp, "ramp"),
        )

    def _open_for_s(self) -> tuple[float, float]:
        shortest, dots, longest = self.open_for.partition("..")
        try:
            bounds_s = duration(shortest), duration(longest if dots else shortest)
        except ConfigError:
            bounds_s = 1.0, 0.0
        if bounds_s[0] > bounds_s[1]:
            raise ConfigError(
                f"open_for = {self.open_for[:40]!r}; make it the shortest and the longest time, "
                'such as "250ms..700ms", or one for both'
            )
        return bounds_s


class HedgeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hedge = {...}` of an operation: a late query is sent again, to another instance.

    Attributes:
        after: "p90", "p95" or "p99": once a call takes longer than that share of the last ones; or
            a duration, such as "50ms".
        ratio: hedges that are allowed for each call, 0 to 1.
    """

    after: str = "p95"
    ratio: float = 0.05

    def compile(self) -> HedgeOptions:
        """Return the options that the section describes.

        Raises:
            ConfigError: `after` is neither, or the ratio is out of its range.
        """
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio = {self.ratio:g}; make it a number from 0 to 1")
        if self.after in QUANTILES:
            return HedgeOptions(cast("Literal['p90', 'p95', 'p99']", self.after), self.ratio)
        try:
            after_s = duration(self.after)
        except ConfigError as error:
            raise ConfigError(
                f'after = {self.after[:40]!r}; make it "p90", "p95", "p99" or a duration such as '
                '"50ms"'
            ) from error
        return HedgeOptions(after_s, self.ratio)


class OperationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[policies."CALLER:CALLEE".operations.NAME]`: what differs for one operation of the callee.

    What is left out is as on the edge.

    Attributes:
        timeout: how long one attempt may take; "" is as on the edge.
        retry: how often a call is attempted.
        hedge: when it is sent a second time; of queries alone.
    """

    timeout: Annotated[str, msgspec.Meta(examples=["2s"])] = ""
    retry: RetrySection | None = None
    hedge: HedgeSection | None = None

    def compile(self, edge: Policy) -> OperationPolicy:
        """Return the policy that the section describes, on an edge with that one.

        Raises:
            ConfigError: a value is wrong; the message begins with its key.
        """
        timeout_s, retry, hedge = edge.timeout_s, edge.retry, None
        if self.timeout:
            timeout_s = duration(self.timeout, "timeout")
        if self.retry is not None:
            with _within("retry"):
                retry = self.retry.compile()
        if self.hedge is not None:
            with _within("hedge"):
                hedge = self.hedge.compile()
        return OperationPolicy(timeout_s, retry, hedge, is_timed_as_edge=not self.timeout)


class PolicySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[policies."CALLER:CALLEE"]`: what differs from the default policy on that edge.

    The callers are the services, `gateway`, and `client` for clients from outside; the callees are
    services and external ones.

    Attributes:
        timeout: how long one attempt may take.
        retry: how often a call is attempted.
        budget: which share of the calls may be retries or hedges.
        limit: the bulkhead.
        breaker: the circuit breaker.
        balancer: how the instances share the calls: "peak_ewma" gives one to the better of two that
            chance draws, "round_robin" to each in turn.
        operations: what differs for single operations of the callee, by name.
    """

    timeout: str = "2s"
    retry: RetrySection = RetrySection()
    budget: BudgetSection = BudgetSection()
    limit: LimitSection = LimitSection()
    breaker: BreakerSection = BreakerSection()
    balancer: str = "peak_ewma"
    operations: dict[str, OperationSection] = {}

    def compile(self) -> Policy:
        """Return the policy of the edge that the section describes.

        Raises:
            ConfigError: a value is wrong; the message begins with its key.
        """
        timeout_s = duration(self.timeout, "timeout")
        with _within("retry"):
            retry = self.retry.compile()
        with _within("budget"):
            budget = self.budget.compile()
        with _within("limit"):
            limit = self.limit.compile()
        with _within("breaker"):
            breaker = self.breaker.compile()
        return Policy(timeout_s, retry, budget, limit, breaker)

    def compile_balancer(self) -> BalancerOptions:
        """Return how the instances share the calls. Raises ConfigError for an unknown balancer."""
        if self.balancer not in BALANCERS:
            raise ConfigError(
                f"balancer is {self.balancer[:40]!r}; make it {' or '.join(map(repr, BALANCERS))}"
            )
        return BalancerOptions(by=cast("Literal['peak_ewma', 'round_robin']", self.balancer))

    def compile_operations(self) -> dict[str, OperationPolicy]:
        """Return the policies of single operations, by name.

        Raises:
            ConfigError: one has a mistake; the message begins with its key.
        """
        if not self.operations:
            return {}
        edge, compiled = self.compile(), {}
        for name, section in self.operations.items():
            with _within(f"operations.{name}"):
                compiled[name] = section.compile(edge)
        return compiled


class RetentionTimes(msgspec.Struct, frozen=True):
    """The seconds of `[retention]`; None is for ever."""

    sagas_s: float | None
    events_s: dict[str, float]
    logs_s: float | None


class RetentionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[retention]`: after which time services forget what they keep.

    Attributes:
        sagas: runs that ended, with their records; "" keeps them for ever. Those that are stuck, or
            wait, are never forgotten.
        events: public events by name, such as "orders.order_placed" = "90d", once all relays and
            projections have passed them; those that are not named are kept for ever.
        logs: logs of parts that are no more, and of runs long ago; "" keeps them for ever.
        archive: whether what is forgotten is kept in files of JSON lines, in the run directory.
    """

    sagas: str = "30d"
    events: dict[str, str] = {}
    logs: str = "30d"
    archive: bool = False

    def compile(self) -> RetentionTimes:
        """Return what the section describes.

        Raises:
            ConfigError: a text is no duration; the message begins with its key.
        """
        return RetentionTimes(
            duration(self.sagas, "sagas") if self.sagas else None,
            {name: duration(text, f'events."{name}"') for name, text in self.events.items()},
            duration(self.logs, "logs") if self.logs else None,
        )


class DevSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[dev]`: what `synchromesh dev` does besides.

    Attributes:
        opening: an async function, as "module:function", that is given a client once the system is
            up, each time it starts; it sends the commands that the system begins with.
    """

    opening: str = ""


class SystemConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `synchromesh.toml`.

    Attributes:
        system: the system itself.
        services: its services, at least one, by name.
        external: services of others, by name.
        policies: how edges differ from the default policy, by caller and callee.
        gateway: the API gateway.
        admin: where each process tells of its health.
        engine: the servers that keep its databases and carry its messages, where it needs some.
        retention: after which time services forget what they keep.
        telemetry: what is exported to a collector.
        dev: what `synchromesh dev` does besides.
    """

    system: SystemSection
    services: dict[str, ServiceSection]
    external: dict[str, ExternalSection] = {}
    policies: dict[str, PolicySection] = {}
    gateway: GatewaySection = GatewaySection()
    admin: AdminSection = AdminSection()
    engine: EngineSection = EngineSection()
    retention: RetentionSection = RetentionSection()
    telemetry: TelemetrySection = TelemetrySection()
    dev: DevSection = DevSection()
    advice: AdviceSection = AdviceSection()


@contextmanager
def _within(section: str) -> Iterator[None]:
    """Put a section before the key that a mistake in it begins with."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{section}.{error.message}") from error
