"""`synchromesh.toml`: which services a system has, where they run, and which policies differ.

One schema, `SystemConfig`, for the file, the environment and flags, checked throughout before
anything starts: an unknown key, a wrong type or a missing module is named with its place and what
would be right.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from synchromesh.durations import duration
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.gateway import Gateway
from synchromesh.resilience import BreakerOptions, LimitOptions, Policy, RetryOptions
from synchromesh.service import Service
from synchromesh.system.config.layers import Layers, Secret

FILE_NAME = "synchromesh.toml"
# The names of those callers that are no services.
GATEWAY = "gateway"
CLIENT = "control"

# Names become file names, parts of URLs and edges.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class SystemSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[system]`: its name, where its services listen, and the event loop that runs them.

    Attributes:
        name: what messages and `status` call it.
        host: the address that services and the gateway listen on; the control socket is always on
            loopback.
        control_port: the port of the control socket; 0 takes any free one.
        loop: the event loop; "uvloop" needs the extra `fast`.
        key: a reference to the key that signs every hop: "env:NAME" or "file:PATH", at least 32
            bytes as hex or base64. "" has one made in the run directory.
    """

    name: str
    host: str = "127.0.0.1"
    control_port: int = 0
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    key: Secret = ""


class ServiceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[services.NAME]`: a service of this system.

    Attributes:
        app: where its definition is: "module:attribute", from this folder.
        port: its HTTP port; 0 takes any free one.
        pages_max: bounds its database, in pages of 4096 bytes; 0 sets no bound.
    """

    app: str
    port: int = 0
    pages_max: int = 0


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
    open_for: str = "500ms..2s"

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


def load_config(
    folder: Path,
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    flags: Sequence[str] = (),
) -> SystemConfig:
    """Read and check the configuration of the system in a folder: file < environment < flags.

    Args:
        environment: `SYNCHROMESH_SERVICES__ORDERS__PORT=8001` sets `services.orders.port`.
        flags: settings such as "services.orders.port=8001".

    Raises:
        ConfigError: the file is missing or malformed, or a value is wrong; the message names where.
    """
    return read_layers(folder, environment=environment, flags=flags)[0]


def read_layers(
    folder: Path, *, environment: Mapping[str, str], flags: Sequence[str]
) -> tuple[SystemConfig, Layers]:
    """Read and check the configuration as `load_config` does; with where each value came from."""
    path = folder / FILE_NAME
    try:
        # Bytes, for reading text would make one line ending of another.
        text = path.read_bytes().decode()
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {FILE_NAME} in {folder}; go to the folder of your system, or make one "
            "with: synchromesh new NAME"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    layers = Layers(SystemConfig, path, text, data)
    layers.lay(environment, flags, {"policies": _edges(data)})
    config: SystemConfig = layers.convert()
    _check(config, layers)
    layers.refuse_near(environment, config)
    return config, layers


def _edges(data: Mapping[str, Any]) -> list[str]:
    """Return every edge that a policy may be given for."""
    services, external = data.get("services"), data.get("external")
    ours = list(services) if isinstance(services, dict) else []
    callees = [*ours, *(external if isinstance(external, dict) else ())]
    return [f"{caller}:{callee}" for caller in (*ours, GATEWAY) for callee in callees]


def load_services(config: SystemConfig, folder: Path) -> list[Service]:
    """Import the services of a system; its folder comes first on the import path.

    Raises:
        ConfigError: a module or attribute is missing, or is no service of that name.
    """
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    return [_load(name, section, folder) for name, section in config.services.items()]


def load_opening(config: SystemConfig, folder: Path) -> Callable[[Any], Awaitable[None]] | None:
    """Import the function that opens the system; None where there is none.

    Raises:
        ConfigError: it is missing, or no async function.
    """
    if not config.dev.opening:
        return None
    where = f"{FILE_NAME}: [dev] opening = {config.dev.opening!r}"
    opening: Callable[[Any], Awaitable[None]] = _import(config.dev.opening, where, folder)
    if not inspect.iscoroutinefunction(opening):
        raise ConfigError(f"{where} is no async function; write async def")
    return opening


def load_gateway(config: SystemConfig, folder: Path) -> Gateway | None:
    """Import the definition of the gateway; None where there is none. `load_services` goes first.

    Raises:
        ConfigError: it is missing, or no gateway.
    """
    if not config.gateway.app:
        return None
    where = f"{FILE_NAME}: [gateway] app = {config.gateway.app!r}"
    gateway = _import(config.gateway.app, where, folder)
    if not isinstance(gateway, Gateway):
        raise ConfigError(f"{where} is not a Gateway; name the one that the module defines")
    return gateway


def _load(name: str, section: ServiceSection, folder: Path) -> Service:
    where = f"{FILE_NAME}: [services.{name}] app = {section.app!r}"
    service = _import(section.app, where, folder)
    if not isinstance(service, Service):
        raise ConfigError(f"{where} is not a Service; name the one that the module defines")
    if service.name != name:
        raise ConfigError(f"{where}: that service is named {service.name!r}; use the same name")
    if service.is_external:
        raise ConfigError(
            f"{where} implements a contract with external=True, calls of which carry no "
            f"credential; name it in [external.{name}], or take external=True off the contract"
        )
    return service


def _import(place: str, where: str, folder: Path) -> Any:
    module_name, colon, attribute = place.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f'{where}; expected "module:attribute", such as "services.a:a"')
    try:
        module = importlib.import_module(module_name)
    except SynchromeshError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(f"{where}: there is no module {missing!r} in {folder}") from error
        why = f"{type(error).__name__}: {error}{_place_of(error, folder)}"
        raise ConfigError(f"{where}: importing it failed: {why}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{where}: module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)


def _place_of(error: Exception, folder: Path) -> str:
    """Return the innermost line below the system's folder that raised; "" where there is none."""
    below = str(folder.resolve())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(below)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _check(config: SystemConfig, layers: Layers) -> None:
    where = layers.where
    if not config.services:
        raise ConfigError(f"{where('services')}: [services] names no service; add [services.NAME]")
    for section, names in (("services", config.services), ("external", config.external)):
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{where(section, name)}: {name!r} cannot name a service; use lower-case "
                    "letters, digits and _"
                )
    twice_named = next((name for name in config.external if name in config.services), None)
    if twice_named is not None:
        raise ConfigError(
            f"{where('external', twice_named)}: {twice_named!r} is both a service and external; "
            "rename one"
        )
    _check_numbers(config, layers)
    for name, external in config.external.items():
        if bool(external.url) == bool(external.command):
            place = where("external", name)
            raise ConfigError(f"{place}: [external.{name}] needs either url or command")
        if external.url and not external.url.startswith("http://"):
            raise ConfigError(
                f"{where('external', name, 'url')}: [external.{name}] url = {external.url!r}; "
                "use http://..."
            )
    _check_edges(config, layers)


def _check_edges(config: SystemConfig, layers: Layers) -> None:
    where, callers = layers.where, set(config.services)
    known = {*config.services, *config.external}
    if GATEWAY in known:
        section = "services" if GATEWAY in config.services else "external"
        raise ConfigError(
            f"{where(section, GATEWAY)}: {GATEWAY!r} is the name of the gateway itself; "
            "rename this one"
        )
    if config.gateway.app:
        callers.add(GATEWAY)
    for edge, policy in config.policies.items():
        caller, colon, callee = edge.partition(":")
        if not colon or caller not in callers or callee not in known:
            raise ConfigError(
                f'{where("policies", edge)}: [policies."{edge}"] is no edge; expected '
                f'"CALLER:CALLEE" of {", ".join(sorted(known | callers))}'
            )
        try:
            policy.compile()
        except ConfigError as error:
            place = layers.places("policies", edge)
            raise ConfigError(f'{place}: [policies."{edge}"]: {error.message}') from error


def _check_numbers(config: SystemConfig, layers: Layers) -> None:
    for name, service in config.services.items():
        if service.pages_max < 0:
            raise ConfigError(
                f"{layers.where('services', name, 'pages_max')}: [services.{name}] pages_max is "
                f"{service.pages_max}; use 0 for no bound"
            )
    ports = {f"services.{name}.port": service.port for name, service in config.services.items()}
    ports["gateway.port"] = config.gateway.port
    ports["system.control_port"] = config.system.control_port
    taken: dict[int, str] = {}
    for name, port in ports.items():
        place = layers.where(*name.split("."))
        if not 0 <= port <= 65_535:
            raise ConfigError(f"{place}: port {port} is not one; use 1 to 65535, or 0 for any")
        if port and port in taken:
            raise ConfigError(
                f"{place}: port {port} is given twice, also at {taken[port]}; every server needs "
                "its own"
            )
        taken[port] = place
