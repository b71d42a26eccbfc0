"""`synchromesh openapi`: prints the OpenAPI document of the gateway, or of one service."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from synchromesh.cli.config import settings_option
from synchromesh.cli.gateway import definition_of
from synchromesh.cli.output import print_verbatim
from synchromesh.errors import ConfigError


@click.command()
@click.argument("service", default="")
@settings_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, which is replaced whole.",
)
@click.option("--page", is_flag=True, help="The reference page in its place, as HTML.")
@click.pass_obj
def openapi(
    folder: Path, service: str, settings: tuple[str, ...], out: Path | None, page: bool
) -> int:
    """Print the OpenAPI document of the gateway, or of SERVICE as it is called by HTTP.

    It is one of version 3.1, and nothing has to run for it. The same definition has the same bytes,
    to be committed and compared. SERVICE may also be one that joins, where somebody here has its
    contract.
    """
    import msgspec

    from synchromesh.gateway.openapi import written
    from synchromesh.gateway.reference import reference_page

    document = _of_service(folder, service, settings) if service else _of_gateway(folder, settings)
    if page:
        text = reference_page(document)
    else:
        text = msgspec.json.format(written(document), indent=2) + b"\n"
    if out is None:
        print_verbatim(text.decode().removesuffix("\n"))
        return 0
    # Beside it first, so that whoever reads the file never sees half of it.
    beside = out.with_name(f".{out.name}.new")
    try:
        beside.write_bytes(text)
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(
            f"{out} cannot be written: {error.strerror or error}; name another file with --out"
        ) from error
    return 0


def _of_gateway(folder: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    from synchromesh.gateway import OpenApi, openapi_of

    config, gateway = definition_of(folder, settings)
    if gateway.openapi is None:
        gateway = replace(gateway, openapi=OpenApi(title=config.system.name, path=""))
    return openapi_of(gateway)


def _of_service(folder: Path, name: str, settings: tuple[str, ...]) -> dict[str, Any]:
    from synchromesh.calls import Contract, operations_of
    from synchromesh.gateway.openapi_service import service_openapi
    from synchromesh.system.config.definitions import load_services
    from synchromesh.system.config.reading import load_config

    config = load_config(folder, environment=os.environ, flags=settings)
    contracts: list[type[object]] = []
    for service in load_services(config, folder):
        if service.name == name and service.contract is not None:
            contracts = [service.contract]
    # Whoever calls one that joins, or an external one, has its contract.
    contracts = contracts or [
        contract
        for contract in Contract.__subclasses__()
        if any(each.service == name for each in operations_of(contract).values())
    ]
    known = [*config.services, *config.system.joined, *config.external]
    if name not in known:
        raise ConfigError(f"there is no service {name[:40]!r}; there are {', '.join(known)}")
    if not contracts:
        raise ConfigError(
            f"no contract of {name!r} is known here; let a service that calls it import one"
        )
    return service_openapi(name, contracts)
