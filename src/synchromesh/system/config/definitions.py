"""Imports and checks what a configuration names: services, gateway, opening and policies."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from synchromesh.errors import ConfigError, ContractError, SynchromeshError
from synchromesh.http import AsgiApp
from synchromesh.resilience import LimitOptions
from synchromesh.saga import SagaDefinition
from synchromesh.service import Service
from synchromesh.service.forgetting import Retention
from synchromesh.spelling import nearest
from synchromesh.system.config.schema import FILE_NAME, ServiceSection, SystemConfig

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway

# The keys of a service's section that say something of an ASGI application, too.
_OF_APPLICATIONS = ("app", "port", "replicas", "server")


def load_services(config: SystemConfig, folder: Path) -> list[Service]:
    """Import the services of a system; its folder comes first on the import path.

    Those that are ASGI applications are not among them: `load_applications` returns those.

    Raises:
        ConfigError: a module or attribute is missing, or is neither a service of that name nor an
            ASGI application.
    """
    _import_from(folder)
    loaded = [_load(name, config, folder) for name in config.services]
    return [each for each in loaded if isinstance(each, Service)]


def load_part(
    name: str, config: SystemConfig, folder: Path
) -> tuple[list[Service], dict[str, SynchromeshError]]:
    """Import the services of a system for a process that runs one of them, or the gateway.

    Its own has to be there. The code of another that cannot be imported is left out: a release that
    is broken stops the service that it is of, and no process of others that starts meanwhile.

    Args:
        name: a service or "gateway".

    Returns what could be imported, and why others could not, by their names.

    Raises:
        ConfigError, ContractError: as `load_services` does, of its own alone.
    """
    _import_from(folder)
    loaded: list[Service | AsgiApp] = []
    left_out: dict[str, SynchromeshError] = {}
    for each in config.services:
        try:
            loaded.append(_load(each, config, folder))
        except SynchromeshError as error:
            if each == name:
                raise
            left_out[each] = error
    return [each for each in loaded if isinstance(each, Service)], left_out


def load_application(name: str, config: SystemConfig, folder: Path) -> AsgiApp:
    """Return the ASGI application that a service is.

    Raises:
        ConfigError, ContractError: as `load_services` does; or it is a `Service`.
    """
    _import_from(folder)
    loaded = _load(name, config, folder)
    if isinstance(loaded, Service):
        raise ConfigError(f"{name!r} is a Service, and was an application when the system started")
    return loaded


def load_applications(config: SystemConfig, folder: Path) -> dict[str, AsgiApp]:
    """Return the services that are ASGI applications, by name. `load_services` goes first.

    Raises:
        ConfigError: as `load_services` does.
    """
    loaded = {name: _load(name, config, folder) for name in config.services}
    return {name: each for name, each in loaded.items() if not isinstance(each, Service)}


def without_applications(config: SystemConfig, services: Iterable[Service]) -> SystemConfig:
    """Return the configuration of a system whose ASGI applications run elsewhere.

    Args:
        services: what `load_services` has returned.
    """
    ours = {service.name for service in services}
    theirs = [name for name in config.services if name not in ours]
    if not theirs:
        return config
    system = replace(config.system, joined=(*config.system.joined, *theirs))
    kept = {name: own for name, own in config.services.items() if name in ours}
    return replace(config, system=system, services=kept)


def load_opening(config: SystemConfig, folder: Path) -> Callable[[Any], Awaitable[None]] | None:
    """Import the system's opening function; None where there is none.

    Raises:
        ConfigError: it is missing, or no async function.
    """
    if not config.dev.opening:
        return None
    where = f"{FILE_NAME}: [dev] opening = {config.dev.opening!r}"
    opening: Callable[[Any], Awaitable[None]] = load_attribute(config.dev.opening, where, folder)
    if not inspect.iscoroutinefunction(opening):
        raise ConfigError(f"{where} is not an async function; write async def")
    return opening


def load_gateway(config: SystemConfig, folder: Path) -> Gateway | None:
    """Import the definition of the gateway; None where there is none. `load_services` goes first.

    Raises:
        ConfigError: it is missing, or no gateway.
    """
    if not config.gateway.app:
        return None
    from synchromesh.gateway import Gateway

    where = f"{FILE_NAME}: [gateway] app = {config.gateway.app!r}"
    gateway = load_attribute(config.gateway.app, where, folder)
    if not isinstance(gateway, Gateway):
        raise ConfigError(f"{where} is not a Gateway; name the one that the module defines")
    return gateway


def _import_from(folder: Path) -> None:
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


def _load(name: str, config: SystemConfig, folder: Path) -> Service | AsgiApp:
    section = config.services[name]
    where = f"{FILE_NAME}: [services.{name}] app = {section.app!r}"
    service = load_attribute(section.app, where, folder)
    if not isinstance(service, Service):
        return _application(service, section, where, name)
    if section.server != "auto":
        raise ConfigError(
            f"{where} is a Service, which needs no server of its own; leave out server = "
            f"{section.server!r}"
        )
    if service.name != name:
        raise ConfigError(f"{where}: that service is named {service.name!r}; use the same name")
    if service.is_external:
        raise ConfigError(
            f"{where} implements a contract with external=True, calls of which carry no "
            f"credential; name it in [external.{name}], or take external=True off the contract"
        )
    has_file = not config.engine.is_on_server(name)
    if section.replicas > 1 and has_file and (state := service.state):
        raise ConfigError(
            f"{FILE_NAME}: [services.{name}] replicas = {section.replicas}, and {name!r} has "
            f"{'; '.join(state)}: a SQLite file has one writer. Keep databases on PostgreSQL "
            "([engine] postgres, or dev --engine postgres), or leave out replicas, or move its "
            "queries to a service of queries only"
        )
    return service


def _application(found: Any, section: ServiceSection, where: str, name: str) -> AsgiApp:
    """Return an ASGI application as it is; raise ConfigError for what is none."""
    call = found if inspect.isroutine(found) else getattr(found, "__call__", None)  # noqa: B004
    if isinstance(found, type) or not inspect.iscoroutinefunction(call) or not _takes_three(call):
        hint = "name what the module defines: a Service, or an application such as FastAPI()"
        if callable(found) and hasattr(found, "wsgi_app"):
            hint = "that is a WSGI application; wrap it, such as by a2wsgi.WSGIMiddleware"
        raise ConfigError(
            f"{where} is not a Service, nor an ASGI application, but {_kind_of(found)}; {hint}"
        )
    defaults = ServiceSection("")
    for key in ServiceSection.__struct_fields__:
        if key not in _OF_APPLICATIONS and getattr(section, key) != getattr(defaults, key):
            raise ConfigError(
                f"{where} is an ASGI application, and {key} bounds what only a Service has; leave "
                f"it out of [services.{name}]"
            )
    application: AsgiApp = found
    return application


def _kind_of(found: Any) -> str:
    name = found.__name__ if isinstance(found, type) else type(found).__name__
    return f"the class {name}" if isinstance(found, type) else f"of the type {name}"


def _takes_three(call: Callable[..., Any]) -> bool:
    """Say whether something can be called as `app(scope, receive, send)`."""
    try:
        inspect.signature(call).bind(None, None, None)
    except (TypeError, ValueError):
        return False
    return True


def load_attribute(place: str, where: str, folder: Path) -> Any:
    """Import what a "module:attribute" names; `where` it stands, for messages.

    Raises:
        ConfigError: it is missing, or its module cannot be imported.
    """
    module_name, colon, attribute = place.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f'{where}; expected "module:attribute", such as "services.a:a"')
    try:
        module = importlib.import_module(module_name)
    except ContractError as error:
        raise ContractError(f"{error.message}{_place_of(error, folder)}") from error
    except (SynchromeshError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Also what a script ends by: here it would end whatever else the process does.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(f"{where}: there is no module {missing!r} in {folder}") from error
        why = f"{type(error).__name__}: {error}{_place_of(error, folder)}"
        raise ConfigError(f"{where}: importing it failed: {why}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{where}: module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)


def _place_of(error: BaseException, folder: Path) -> str:
    """Return the innermost line of the system's own code in a traceback; "" where there is none."""
    below = str(folder.resolve())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(below)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def places_of(config: SystemConfig, service: str) -> LimitOptions:
    """Return how many calls a service works on at once, and how many wait, as configured."""
    section = config.services.get(service) or ServiceSection("")
    return LimitOptions(section.in_flight, section.waiting)


def saga_places_of(config: SystemConfig, service: str) -> LimitOptions:
    """Return how many sagas a service has at work at once, and how many are queued."""
    section = config.services.get(service) or ServiceSection("")
    return LimitOptions(section.sagas.in_flight, section.sagas.queued)


def check_keep(services: list[Service], keep_s: float) -> None:
    """Check that inbox records outlive every saga that may still call or undo (S6).

    Raises:
        ConfigError: a saga outlives them.
    """
    for service in services:
        for definition in service.sagas:
            longest_s = _longest_s(definition)
            if longest_s >= keep_s:
                raise ConfigError(
                    f"saga {service.name}.{definition.name} may take {longest_s:g} s, but inboxes "
                    f"forget after {keep_s:g} s; shorten its deadlines"
                )


def retention_of(
    config: SystemConfig,
    services: Iterable[Service],
    keep_s: float,
    left_out: Collection[str] = (),
) -> Retention:
    """Return after which time services forget, as configured.

    Args:
        left_out: services whose code could not be imported: of their events nothing is checked.

    Raises:
        ConfigError: an event is none that is published, or a projection is made of it; or a saga is
            forgotten while its start may still be repeated.
    """
    times = config.retention.compile()
    if times.sagas_s is not None and times.sagas_s < keep_s:
        raise ConfigError(
            f"{FILE_NAME}: [retention] sagas = {config.retention.sagas!r}, and callers may repeat "
            f"the start of one for {keep_s:g} s; make it no shorter, or it would run twice"
        )
    published = {event.full_name: (each, event.kind) for each in services
                 for event in each.published()}  # fmt: skip
    for name in times.events_s:
        if name.partition(".")[0] in left_out:
            continue
        if name not in published:
            near = nearest(name, published)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(published)}"
            raise ConfigError(
                f"{FILE_NAME}: [retention] events: no service publishes {name!r}; {hint}"
            )
        service, kind = published[name]
        versions = [each for of in service.projections.values() for each in of.values()]
        of = [each.name for each in versions if kind in each.events]
        if of:
            raise ConfigError(
                f"{FILE_NAME}: [retention] events: {name!r} makes projection {of[0]!r}, which "
                "could not be rebuilt without it; leave it out, or make the projection of others"
            )
    return Retention(sagas_s=times.sagas_s, events_s=times.events_s)


def _longest_s(definition: SagaDefinition[Any, Any]) -> float:
    policy = definition.policy
    return definition.deadline_s + max(policy.undo_deadline_s, policy.after_pivot_deadline_s)
