"""The schema of `synchromesh.toml`: which services a system has, where, and how edges differ."""

from __future__ import annotations

from typing import Literal

import msgspec

from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.resilience import BreakerOptions, LimitOptions, Policy, RetryOptions
from synchromesh.system.config.layers import Secret

FILE_NAME = "synchromesh.toml"
# The names of those callers that are no services.
GATEWAY = "gateway"
CLIENT = "control"
REPLICAS_MAX = 64


class SystemSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[system]`: its name, where its services listen, and the event loop that runs them.

    Attributes:
        name: what messages and `status` call it.
        host: the address that services and the gateway listen on; the control socket is always on
            loopback.
        control_port: the port of the control socket; 0 takes any free one.
        loop: the event loop: "auto" is uvloop where the extra `fast` is installed, and asyncio's
            own elsewhere; "uvloop" needs the extra.
        key: a reference to the key that signs every hop: "env:NAME" or "file:PATH", at least 32
            bytes as hex or base64. "" has one made in the run directory.
    """

    name: str
    host: str = "127.0.0.1"
    control_port: int = 0
    loop: Literal["auto", "asyncio", "uvloop"] = "auto"
    key: Secret = ""


class ServiceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[services.NAME]`: a service of this system.

    Attributes:
        app: where its definition is: "module:attribute", from this folder.
        port: its HTTP port; 0 takes any free one.
        pages_max: bounds its database, in pages of 4096 bytes; 0 sets no bound.
        replicas: how many instances run, 1 to 64; more than one only of a service of queries alone,
            on any free port each.
    """

    app: str
    port: int = 0
    pages_max: int = 0
    replicas: int = 1


class ExternalSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[external.NAME]`: somebody else's service, at a URL or as a child process.

    It has either `url` or `command`. A child prints one line of JSON with its `port` when it is
    ready, such as `{"port": 8080}`, and ends on SIGTERM.

    Attributes:
        url: where it is: "http://HOST:PORT".
        command: the program of a child process and its arguments; `{python}` stands for this
            interpreter and `{data}` for the folder of the databases.
        env: variables of the child, besides this process's own; `{python}` and `{data}` as above.
    """

    url: str = ""
    command: list[str] = []
    env: dict[str, str] = {}


class RetrySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`retry = {...}` of a policy: how often a call is attempted.

    Attributes:
        attempts: attempts in all, the first one too; 1 is no retry.
    """

    attempts: int = 3


class LimitSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`limit = {...}` of a policy: the bulkhead of the edge; further calls are shed at the caller.

    Attributes:
        in_flight: how many calls run at once; 0 sets no bound.
        waiting: how many more may wait for a place.
    """

    in_flight: int = 0
    waiting: int = 0

    def compile(self) -> LimitOptions | None:
        """Return the options that the section describes; None where it sets no bound.

        Raises:
            ConfigError: a number is below 0, or calls would wait for what has no bound.
        """
        if self == LimitSection():
            return None
        if self.in_flight < 1 or self.waiting < 0:
            raise ConfigError(
                f"limit has in_flight = {self.in_flight} and waiting = {self.waiting}; make "
                "in_flight 1 or more and waiting 0 or more, or leave out limit for no bound"
            )
        return LimitOptions(self.in_flight, self.waiting)


class BreakerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`breaker = {...}` of a policy: the circuit breaker of the edge.

    Attributes:
        window: how far back outcomes count.
        minimum_calls: fewer outcomes in the window never open it.
        failure_rate: the share of failures in the window that opens it, 0 to 1.
        open_for: how long it stays open: "SHORTEST..LONGEST"; it doubles with each failed probe.
    """

    window: str = "10s"
    minimum_calls: int = 10
    failure_rate: float = 0.5
    open_for: str = "250ms..700ms"

    def compile(self) -> BreakerOptions:
        """Return the options that the section describes."""
        shortest, dots, longest = self.open_for.partition("..")
        return BreakerOptions(
            window_s=duration(self.window),
            minimum_calls=self.minimum_calls,
            failure_rate=self.failure_rate,
            open_for_s=duration(shortest),
            open_for_max_s=duration(longest if dots else shortest),
        )


class PolicySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[policies."CALLER:CALLEE"]`: what differs from the default policy on that edge.

    The callers are the services and `gateway`; the callees are services and external ones.

    Attributes:
        timeout: how long one attempt may take.
        retry: how often a call is attempted.
        limit: the bulkhead.
        breaker: the circuit breaker.
    """

    timeout: str = "2s"
    retry: RetrySection = RetrySection()
    limit: LimitSection = LimitSection()
    breaker: BreakerSection = BreakerSection()

    def compile(self) -> Policy:
        """Return the policy that the section describes."""
        return Policy(
            timeout_s=duration(self.timeout),
            retry=RetryOptions(attempts_max=self.retry.attempts),
            limit=self.limit.compile(),
            breaker=self.breaker.compile(),
        )


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway]`: the API gateway.

    Attributes:
        app: where its definition is: "module:attribute", from this folder; "" for no gateway.
        port: its HTTP port; 0 takes any free one.
    """

    app: str = ""
    port: int = 0


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
        dev: what `synchromesh dev` does besides.
    """

    system: SystemSection
    services: dict[str, ServiceSection]
    external: dict[str, ExternalSection] = {}
    policies: dict[str, PolicySection] = {}
    gateway: GatewaySection = GatewaySection()
    dev: DevSection = DevSection()
