"""The contracts of a release as files beside the code, one for each part."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from synchromesh.calls.description import ContractsOfPart, Described
from synchromesh.errors import ConfigError
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.definitions import load_gateway, load_services
from synchromesh.system.config.expectations import contracts_of_gateway, contracts_of_service
from synchromesh.system.config.gateway_check import check_gateway
from synchromesh.system.config.kept_files import SUFFIX, read_kept, write_kept
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY, SystemConfig

FORMAT = 1


class ReleasedContracts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of a part: what it offered and expected when it was released."""

    format: int
    part: str
    offers: Described
    expects: Described


def contracts_today(config: SystemConfig, folder: Path) -> dict[str, ContractsOfPart]:
    """Describe what each part of a system offers and expects, from its code.

    Raises:
        ConfigError: a definition cannot be loaded.
        ContractError: a service does not fit its contract.
    """
    services = load_services(config, folder)
    gateway = load_gateway(config, folder)
    found = {
        service.name: contracts_of_service(service, config.services[service.name].app)
        for service in services
    }
    if gateway is not None:
        entries = asyncio.run(check_gateway(gateway, config, RunDir(folder), RealRuntime()))
        found[GATEWAY] = contracts_of_gateway(entries)
    return found


def write_released(place: Path, parts: dict[str, ContractsOfPart]) -> None:
    """Write the contracts of all parts; files of parts that are no more are removed.

    Raises:
        ConfigError: the folder cannot be written, or has something else in it.
    """
    if place.is_dir():
        read_released(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            file = ReleasedContracts(FORMAT, name, part.offers, part.expects)
            write_kept(place / f"{name}{SUFFIX}", msgspec.json.encode(file, order="sorted"))
        for path in place.glob(f"*{SUFFIX}"):
            if path.stem not in parts:
                path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{error.filename or place} cannot be written: {error.strerror}; make it writable, or "
            "make room on the disk"
        ) from error


def read_released(place: Path) -> dict[str, ContractsOfPart]:
    """Read the contracts of a release; none where nothing was frozen.

    Raises:
        ConfigError: a file is none of ours, damaged, or of a newer release.
    """
    found = {}
    for path in sorted(place.glob(f"*{SUFFIX}")):
        file = read_kept(path, ReleasedContracts, newest=FORMAT, what="contract of a release")
        if file.part != path.stem:
            raise ConfigError(f"{path} is the contract of {file.part!r}; give it that name")
        found[file.part] = ContractsOfPart(file.offers, file.expects)
    return found
